"""Falsified reports: each lie is found and named, also one that the holder itself has signed."""

import copy
import dataclasses
import json

import pytest

from credit_client.chain import GENESIS, Entry, canonical
from credit_client.identity import open_identity
from credit_client.ledger import Ledger
from credit_client.report import recount, verify
from credit_client.report.statement import privacy_report
from credit_client.safekeeping import override
from credit_common import accountant
from credit_common.certificates import load_key, sign
from credit_common.errors import PrivacyError
from credit_common.events import FieldHistograms, Histogram, SampledGaussian, event_to_json

ROUNDS = ("adapter", "histogram", "adapter", "histogram", "adapter", "histogram")


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
    "epsilon_shared: it must be for 2, 3, 5": lambda r: r["epsilon_shared"].pop("5"),
    "epsilon_shared: it must be for 2": lambda r: r["epsilon_shared"].update({"4": 9.0}),
    "epsilon_shared is left out": lambda r: r.update(epsilon_shared=None),
    "epsilon_by_account.holdout": lambda r: r["epsilon_by_account"].update(holdout=0.1),
    "epsilon: the report says None": lambda r: r.update(epsilon=None),
    "epsilon: the report says nan": lambda r: r.update(epsilon=float("nan")),
    "epsilon_of_entries": lambda r: r["epsilon_of_entries"].update(replace_one=0.1),
    "meaning: ": lambda r: r["meaning"].update(odds_factor=1.5),
    "meaning: it": lambda r: r["meaning"]["belief_after"].update({"0.5": 0.51}),
    "meaning: it is": lambda r: r.update(meaning=None),
    "budget_left": lambda r: r.update(budget_left=r["budget_left"] + 0.1),
    "accountant: Rényi": lambda r: r["accountant"]["cross_check"].update(epsilon=r["epsilon"]),
    "accountant: Rényi's": lambda r: r["accountant"]["cross_check"].update(epsilon=None),
    "contracts": lambda r: r["contracts"][r["contract_digest"]].update(train=2),
    "contracts: ": lambda r: r["contracts"].update({"ab" * 32: {"train": 1}}),
    "messages: the report lists statistics": lambda r: r["messages"].update(
        statistics={"times": 1, "bytes": 9}
    ),
    "messages_of_lost_entries": lambda r: r.update(messages_of_lost_entries=1),
    "accounts_add": lambda r: r.update(accounts_add=True),
    "lost_entries": lambda r: r.update(lost_entries=1),
    "overrides": lambda r: r["overrides"].append({"sequence": 9, "reason": "none"}),
    "mechanism": lambda r: r["mechanism"].update(noise_multiplier=9.0),
    "mechanism: entry 3": lambda r: r["mechanism"].update(evaluation_noise_multiplier=9.0),
    "mechanism: its steps": lambda r: r["mechanism"].update(steps=1),
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


def test_a_small_epsilon_that_is_told_as_none_is_a_lie(enrolled, answer, check, contract_text):
    noise = "[evaluation]\nnoise_multiplier = "
    identity = enrolled(text=contract_text.replace(f"{noise}2.0", f"{noise}400.0"))
    answer(identity, "histogram")
    report = reported(identity)
    assert 0.005 < report["epsilon"] < 0.006
    assert check(report).problems == ()
    report.update(epsilon=0.0, epsilon_by_account={"train": 0.0, "holdout": 0.0})
    named = {problem.split(":")[0] for problem in check(report, identity).problems}
    assert {"epsilon", "epsilon_by_account.holdout"} <= named


def steps(q, sigma, n):
    return SampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=n)


PLANS = [
    [steps(0.001, 50.0, 1000)],
    [steps(0.001, 20.0, 10_000)],
    [steps(0.001, 1.0, 1_000_000)],
    [steps(0.01, 100.0, 10_000)],
    [steps(0.01, 0.8, 5000), steps(0.05, 1.0, 600), Histogram(noise_multiplier=8.0)],
    [steps(0.3, 5.0, 1000)],
    [steps(1, 30.0, 1000)],
    [Histogram(noise_multiplier=1000.0)],
    [Histogram(noise_multiplier=20.0, releases=30)],
    [FieldHistograms(noise_multiplier=50.0, fields=9), steps(0.05, 4.0, 100)],
    [steps(1, 0.5, 40)],
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_what_a_ledger_tells_stays_inside_the_tolerance(plan, delta):
    events = [event_to_json(event) for event in plan]
    for told, again in (
        (accountant.epsilon(plan, delta), recount.epsilon_of(events, delta)),
        (accountant.epsilon_replace_one(plan, delta), recount.epsilon_of(events, delta, True)),
        (accountant.epsilon_rdp(plan, delta), recount.renyi_of(events, delta)),
    ):
        assert told == again or abs(told - again) <= verify.tolerance(again) / 2


TRAIN, HOLDOUT = steps(0.05, 1.0, 60), Histogram(noise_multiplier=2.0)


@pytest.mark.parametrize("holders", [2, 3, 5])
@pytest.mark.parametrize("train", [TRAIN, steps(0.05, 2.0, 60)], ids=["train", "holdout"])
def test_a_user_of_several_holders_may_be_on_either_side_at_each(holders, train):
    own, other = event_to_json(train), event_to_json(HOLDOUT)
    sides = [
        recount.epsilon_of([own] * times + [other] * (holders - times), 1e-5)
        for times in range(holders + 1)
    ]
    apart = recount.Recount(train=[own], holdout=[other])
    found = recount.epsilon_shared(apart, holders, 1e-5)
    assert found == pytest.approx(max(sides), abs=1e-4)
    assert all(side <= found + 1e-4 for side in sides)
    added = recount.Recount(train=[own], holdout=[other], add=True)
    together = recount.epsilon_of([own, other] * holders, 1e-5)
    assert recount.epsilon_shared(added, holders, 1e-5) == pytest.approx(together, abs=1e-4)
    assert together > found + 0.1


def test_a_user_on_both_sides_may_have_more_than_on_either_side_alone():
    """A rare large loss on one side, small ones on the other: both readers must look between."""
    accounts = {
        "train": steps(0.001, 0.3, 1),
        "holdout": Histogram(noise_multiplier=1.5),
    }
    with Ledger.in_memory() as ledger:
        ledger.bind_split("salt", 0.25)
        for account, event in accounts.items():
            ledger.charge(
                account,
                event,
                contract_digest="c",
                message_id=account,
                request_digest="r",
                reply=b"",
                budget_epsilon=50.0,
                delta=1e-5,
            )
        told = ledger.balance.epsilon(1e-5, 5)
    train, holdout = ([event_to_json(event)] for event in accounts.values())
    found = recount.epsilon_shared(recount.Recount(train=train, holdout=holdout), 5, 1e-5)
    on_one_side = max(recount.epsilon_of(side * 5, 1e-5) for side in (train, holdout))
    assert found > on_one_side + 0.2
    assert told == pytest.approx(found, abs=1e-4)


@pytest.mark.usefixtures("without_prv")
def test_statistics_are_held_against_the_mechanism_too(good, holder, check):
    event = event_to_json(FieldHistograms(noise_multiplier=8.0, fields=2))
    report = copy.deepcopy(good)
    report["releases"][1]["event"] = canonical(event)
    problems = check(chained_anew(report), holder).problems
    assert "mechanism: entry 2 was charged for another than the report's" in problems
    report["mechanism"].update(statistics_noise_multiplier=8.0, statistics_fields=2)
    assert not any(p.startswith("mechanism") for p in check(report, holder).problems)


@pytest.mark.usefixtures("without_prv")
def test_counts_by_groups_are_verified_and_held_against_the_mechanism(
    enrolled, answer, check, grouped_text
):
    identity = enrolled(text=grouped_text)
    answer(identity, "adapter", "histogram", "adapter", "last histogram")
    report = reported(identity)
    verdict = check(report)
    assert (verdict.problems, report["mechanism"]["evaluation_groups"]) == ((), 1)
    two = [Histogram(noise_multiplier=2.0), FieldHistograms(noise_multiplier=2.0, fields=2)]
    spent = accountant.epsilon(two, report["delta"])
    assert verdict.found["epsilon_by_account.holdout"] == pytest.approx(spent, abs=1e-4)
    for groups in (0, 2):
        lie = copy.deepcopy(report)
        lie["mechanism"]["evaluation_groups"] = groups
        problems = check(lie, identity).problems
        assert problems == ("mechanism: entry 5 was charged for another than the report's",)
    for groups in (True, 1.0, -1, "1"):
        lie = copy.deepcopy(report)
        lie["mechanism"]["evaluation_groups"] = groups
        found = check(lie, identity).problems
        assert "mechanism: evaluation_groups must be a number of fields" in found
    # An entry that says that no group was counted spends less than the report tells.
    less = copy.deepcopy(report)
    less["releases"][4]["event"] = canonical(event_to_json(two[0]))
    problems = check(chained_anew(less), identity).problems
    assert any(p.startswith("epsilon_by_account.holdout: the report says") for p in problems)


@pytest.mark.usefixtures("without_prv")
def test_a_run_without_privacy_makes_epsilon_infinite_whatever_the_report_says(good, holder, check):
    report = copy.deepcopy(good)
    last = report["releases"][-1]
    report["releases"].append({**last, "account": "open", "event": "null", "message_id": None})
    chained_anew(report)["ledger_head"]["counter"] += 1
    number = len(report["releases"])
    named = f"entry {number} is a run without privacy: epsilon is infinite"
    problems = check(report, holder).problems
    assert named in problems
    assert any(p.startswith("epsilon: the report says") for p in problems)
    report.update(
        epsilon=None,
        epsilon_replace_one=None,
        epsilon_of_entries={"add_remove": None, "replace_one": None},
        epsilon_shared={"2": None, "3": None, "5": None},
        epsilon_by_account={"train": None, "holdout": None},
        meaning=None,
        budget_left=0,
    )
    report["accountant"]["cross_check"]["epsilon"] = None
    assert check(report, holder).problems == (named,)


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
    tidy = {**report, "messages_of_lost_entries": 7}  # nobody can count those
    assert check(tidy, identity).problems == honest


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


@pytest.mark.parametrize("delta", [0.9, 0.5, 0.0011])
@pytest.mark.usefixtures("without_prv")
def test_a_delta_that_no_contract_may_have_hides_nothing(enrolled, answer, check, delta):
    """At δ = 0.9 every ε is 0: such a report is true of its entries, and says nothing."""
    identity = enrolled()
    object.__setattr__(identity.bundle.contract.privacy, "delta", delta)
    answer(identity, *ROUNDS[:2])
    report = reported(identity)
    assert report["delta"] == delta
    with pytest.raises(PrivacyError, match=rf"delta = {delta}: must be inside \[1e-12, 0\.001\]"):
        check(report)


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
