"""Falsified reports: each lie is found and named, also one that the holder itself has signed."""

import copy
import dataclasses
import functools
import json

import pytest

from credit_client.chain import GENESIS, Entry, canonical
from credit_client.identity import open_identity
from credit_client.ledger import Ledger
from credit_client.report import recount, verify
from credit_client.report.statement import privacy_report
from credit_client.safekeeping import override
from credit_common.certificates import load_key, sign
from credit_common.errors import PrivacyError

ROUNDS = ("adapter", "histogram", "adapter", "histogram", "adapter", "histogram")


@pytest.fixture(scope="module", autouse=True)
def _each_epsilon_once():
    """The same ε is asked for in every test: computed once, by the real function."""

    @functools.cache
    def computed(text, delta, replace_one):
        return recount.epsilon_of(json.loads(text), delta, replace_one)

    def remembered(events, delta, replace_one=False):
        return computed(json.dumps(events), delta, replace_one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "epsilon_of", remembered)
        yield


@pytest.fixture
def without_prv(monkeypatch):
    monkeypatch.setattr(verify, "_prv", lambda groups, delta: None)


@pytest.fixture(scope="module")
def holder(enrolled, answer):
    identity = enrolled()
    answer(identity, *ROUNDS)
    return identity


def reported(identity):
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        return privacy_report(identity, ledger)


@pytest.fixture(scope="module")
def good(holder):
    return reported(holder)


@pytest.fixture(scope="module")
def lost(enrolled, answer):
    """A holder that lost its ledger, signed for that, and went on."""
    identity = enrolled()
    answer(identity, *ROUNDS[:2])
    identity.ledger_path.unlink()
    override(open_identity(identity.home, ledger_lost=True), "the disk broke")
    answer(identity, *ROUNDS)
    return identity, reported(identity)


@pytest.fixture
def check(tmp_path):
    """Problems of a report; signed anew with a holder's key, if one is given."""

    def run(report, signer=None):
        if signer is not None:
            report = {name: value for name, value in report.items() if name != "signature"}
            key = load_key(signer.key_pem, "key")
            report["signature"] = sign(key, canonical(report).encode())
        path = tmp_path / "report.json"
        path.write_text(json.dumps(report))
        return verify.verify_report(path)

    return run


def chained_anew(report):
    """Numbers, hashes and head of changed entries made to fit."""
    previous = GENESIS
    fields = [field.name for field in dataclasses.fields(Entry)]
    for number, entry in enumerate(report["releases"], start=1):
        entry.update(sequence=number, previous=previous)
        entry["hash"] = previous = Entry(**{name: entry[name] for name in fields}).hash
    count = len(report["releases"])
    report["ledger_head"].update(sequence=count, hash=previous)
    return report


def event_changed(report, number, **changes):
    entry = report["releases"][number - 1]
    entry["event"] = canonical({**json.loads(entry["event"]), **changes})
    return report


def test_a_true_report_is_verified_by_three_accountants(good, check):
    verdict = check(good)
    assert verdict.problems == ()
    assert verdict.difference < 0.001
    assert verdict.prv == pytest.approx(good["epsilon"], abs=0.02)
    assert (
        {
            "epsilon",
            "epsilon_replace_one",
            "epsilon_by_account.train",
            "epsilon_by_account.holdout",
            "epsilon_shared.2",
            "epsilon_shared.3",
            "epsilon_shared.5",
        }
        == set(verdict.found)
        == set(verdict.claimed)
    )
    assert verdict.found["epsilon"] < verdict.found["epsilon_replace_one"]


def test_the_prv_accountant_alone_would_find_a_lie(good, check, monkeypatch):
    said = good["epsilon"]
    monkeypatch.setattr(verify, "_prv", lambda groups, delta: said + 0.04)
    assert [p for p in check(good).problems if "PRV" in p]
    monkeypatch.setattr(verify, "_prv", lambda groups, delta: said + 0.02)
    assert not check(good).problems


LIES = {
    "epsilon": lambda r: r.update(epsilon=r["epsilon"] - 0.02),
    "epsilon_replace_one": lambda r: r.update(epsilon_replace_one=r["epsilon"]),
    "epsilon_shared.3": lambda r: r["epsilon_shared"].update({"3": r["epsilon"]}),
    "epsilon_shared is left out": lambda r: r.update(epsilon_shared=None),
    "epsilon_by_account.holdout": lambda r: r["epsilon_by_account"].update(holdout=0.1),
    "epsilon: the report says None": lambda r: r.update(epsilon=None),
    "epsilon: the report says nan": lambda r: r.update(epsilon=float("nan")),
    "accounts_add": lambda r: r.update(accounts_add=True),
    "lost_entries": lambda r: r.update(lost_entries=1),
    "overrides": lambda r: r["overrides"].append({"sequence": 9, "reason": "none"}),
    "mechanism": lambda r: r["mechanism"].update(noise_multiplier=9.0),
    "ledger_head: its counter": lambda r: r["ledger_head"].update(counter=99),
    "the chain of the ledger does not end at its head": lambda r: r["releases"].pop(),
    "the chain of the ledger does not end": lambda r: r["ledger_head"].update(hash="0" * 64),
    "the chain of the ledger breaks at entry 3": lambda r: r["releases"].pop(2),
    "the chain of the ledger breaks at entry 2": lambda r: r["releases"][1].update(
        previous="0" * 64
    ),
    "the chain of the ledger breaks at entry 4": lambda r: event_changed(
        r, 4, noise_multiplier=9.0
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.usefixtures("without_prv")
def test_a_lie_is_named_even_if_the_holder_signed_it(good, holder, check, lie):
    report = copy.deepcopy(good)
    LIES[lie](report)
    assert any("changed after it was signed" in p for p in check(report).problems)
    problems = check(report, holder).problems
    assert any(p.startswith(lie) for p in problems), problems
    assert not any("signed" in p for p in problems)


def entry_removed(report):
    del report["releases"][2]


def sigma_raised(report):
    event_changed(report, 3, noise_multiplier=9.0)


def split_hidden(report):
    del report["releases"][0]


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (entry_removed, "epsilon: the report says"),
        (sigma_raised, "epsilon_by_account.holdout: the report says"),
        (split_hidden, "accounts_add: the report says False"),
    ],
)
@pytest.mark.usefixtures("without_prv")
def test_entries_changed_with_their_hashes_still_spend_something_else(
    good, holder, check, lie, named
):
    report = copy.deepcopy(good)
    lie(report)
    chained_anew(report)
    assert any("changed after it was signed" in p for p in check(report).problems)
    problems = check(report, holder).problems
    assert any(p.startswith(named) for p in problems), problems
    assert not any("chain" in p for p in problems)


@pytest.mark.usefixtures("without_prv")
def test_a_report_signed_by_another_key_names_that_key(good, lost, check):
    other, _ = lost
    problems = check(good, other).problems
    assert "the report was changed after it was signed" in problems
    assert check(good).signer != check(lost[1]).signer


@pytest.mark.usefixtures("without_prv")
def test_lost_entries_leave_epsilon_unknown_whatever_the_report_says(lost, check):
    identity, report = lost
    honest = check(report).problems
    assert honest == ("3 entries or more were lost: epsilon is unknown",)
    for lie, named in (
        ({"epsilon": 1.0}, "claims an epsilon"),
        ({"epsilon_replace_one": 1.0}, "claims an epsilon"),
        ({"epsilon_shared": {"2": 1.0}}, "claims an epsilon"),
        ({"overrides": []}, "overrides: the report does not tell"),
        ({"lost_entries": 0}, "lost_entries: the report says 0"),
        ({"epsilon_of_entries": {"add_remove": 0.1, "replace_one": 0.1}}, "epsilon: the report"),
    ):
        problems = check({**report, **lie}, identity).problems
        assert any(named in p for p in problems), lie
        assert set(honest) < set(problems)


@pytest.mark.usefixtures("without_prv")
def test_a_word_about_lost_entries_must_be_signed_by_a_person(lost, check):
    identity, report = copy.deepcopy(lost)
    event_changed(report, 1, reason="nothing happened")
    report["overrides"][0]["reason"] = "nothing happened"
    problems = check(chained_anew(report), identity).problems
    assert "entry 1 is an override that nobody signed" in problems


@pytest.mark.usefixtures("without_prv")
def test_an_override_that_is_left_out_of_the_entries_changes_what_the_report_says(lost, check):
    identity, report = copy.deepcopy(lost)
    del report["releases"][0]
    of_entries = report["epsilon_of_entries"]
    report.update(
        epsilon=of_entries["add_remove"],
        epsilon_replace_one=of_entries["replace_one"],
        epsilon_shared={"2": of_entries["add_remove"]},
    )
    problems = check(chained_anew(report), identity).problems
    assert any(p.startswith("lost_entries") for p in problems)
    assert any(p.startswith("overrides") for p in problems)


@pytest.mark.usefixtures("without_prv")
def test_accounts_that_add_are_verified_as_one(enrolled, answer, check):
    identity = enrolled()
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        ledger.bind_split("an older salt", 0.25)
    answer(identity, *ROUNDS)
    report = reported(identity)
    assert report["accounts_add"] is True
    assert report["epsilon"] > max(report["epsilon_by_account"].values()) + 0.1
    assert check(report).problems == ()
    report["epsilon"] = max(report["epsilon_by_account"].values())
    assert any(p.startswith("epsilon: ") for p in check(report, identity).problems)


def test_an_event_of_no_meaning_is_refused_by_its_number(good, holder, check):
    report = event_changed(copy.deepcopy(good), 2, steps=-100)
    with pytest.raises(PrivacyError, match="entry 2 has a steps"):
        check(chained_anew(report), holder)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, "x", None, float("nan")])
def test_a_delta_that_is_none_is_refused(good, check, delta):
    with pytest.raises(PrivacyError):
        check({**good, "delta": delta})


@pytest.mark.parametrize("name", ["releases", "signature", "epsilon", "ledger_head", "mechanism"])
def test_a_report_with_a_part_cut_out_is_none(good, check, name):
    report = {key: value for key, value in good.items() if key != name}
    with pytest.raises(PrivacyError, match="not a privacy report"):
        check(report)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", '"x"', "[" * 100_000, "\udc80", '{"epsilon": 1']
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PrivacyError) as caught:
        verify.verify_report(path)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_told_twice_is_refused(good, tmp_path):
    """A reader who takes the first and a program that takes the last would see two claims."""
    path = tmp_path / "report.json"
    path.write_text('{"epsilon": 0.1, ' + json.dumps(good)[1:])
    with pytest.raises(PrivacyError, match="twice"):
        verify.verify_report(path)
