"""The privacy report says what its specification lists, from the ledger, and refuses to guess."""

import base64
import copy
import json
import math

import pytest

from credit_client.chain import canonical
from credit_client.heads import OwnHeads
from credit_client.identity import open_identity
from credit_client.ledger import Ledger
from credit_client.report.statement import SHARED, privacy_report
from credit_client.safekeeping import override
from credit_common.certificates import is_signed, load_key
from credit_common.errors import CreditError, PrivacyError
from credit_common.heads import head_to_json, sign_head

ROUNDS = ("adapter", "histogram", "adapter", "histogram")
ARM = {
    "name": "as shipped",
    "kind": "sound",
    "claimed_epsilon": 2,
    "lower_bound": 0.45,
    "confidence": 0.95,
    "canaries": 1000,
    "caught": False,
}


def reported(identity, audit=None):
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        return privacy_report(identity, ledger, audit)


@pytest.fixture(scope="module")
def holder(enrolled, answer):
    identity = enrolled()
    answer(identity, *ROUNDS)
    return identity


@pytest.fixture(scope="module")
def report(holder):
    return reported(holder, {"arms": [ARM]})


@pytest.fixture
def fresh(enrolled, answer):
    """A holder that one test may spoil."""
    identity = enrolled()
    answer(identity, "adapter", "histogram")
    return identity


def test_the_keys_that_programs_rely_on_are_there(report):
    asked = (
        "unit, adjacency, epsilon, epsilon_replace_one, delta, accountant, ledger_head, releases"
    )
    assert set(asked.split(", ")) <= set(report)
    assert json.loads(json.dumps(report)) == report


def test_every_item_of_the_specification_is_told(report, contract):
    assert "user" in report["unit"]
    assert contract.record.user in report["row_rule"]
    assert "add or remove" in report["adjacency"]
    assert "change" in report["adjacency"]
    plan = report["mechanism"]
    assert (plan["sampling_rate"], plan["noise_multiplier"], plan["clip_norm"]) == (0.1, 1.0, 1.0)
    assert (plan["steps"], plan["rounds"], plan["steps_per_round"]) == (6, 3, 2)
    assert plan["sampler"] == "Poisson"
    assert "ChaCha20" in plan["noise_source"]
    assert report["accountant"]["version"]
    assert report["accountant"]["cross_check"]["epsilon"] >= report["epsilon"]
    assert report["delta"] == contract.privacy.delta
    assert report["budget"] == contract.privacy.epsilon
    assert "every message" in report["adversary"]
    assert report["tuning"] == "not stated in the contract"
    assert report["audit"]["arms"] == [ARM]
    said = " ".join(report["excluded"])
    for word in ("timing", "collusion", "floating point", "roll-back", "several holders"):
        assert word in said
    assert "NIST SP 800-226" in report["structure"]
    assert "anonymous" in report["structure"]
    assert report["contract_digest"] == contract.digest


def test_epsilon_is_the_ledgers_own(report, holder):
    delta = report["delta"]
    with Ledger.open(holder.ledger_path, holder.witness) as ledger:
        assert report["epsilon"] == ledger.epsilon_overall(delta)
        assert report["epsilon_replace_one"] == ledger.epsilon_replace_one(delta)
        for account in ("train", "holdout"):
            assert report["epsilon_by_account"][account] == ledger.epsilon(account, delta)
    assert report["budget_left"] == pytest.approx(report["budget"] - report["epsilon"])
    assert report["remark"] is None


def test_a_user_of_several_holders_loses_more_with_each(report):
    several = [report["epsilon"], *(report["epsilon_shared"][str(k)] for k in SHARED)]
    assert SHARED == (2, 3, 5)
    assert several == sorted(set(several))


def test_the_meaning_of_epsilon_is_bayes_rule(report):
    factor = math.exp(report["epsilon"])
    assert report["meaning"]["odds_factor"] == pytest.approx(factor)
    for before, after in report["meaning"]["belief_after"].items():
        before = float(before)
        assert after / (1 - after) == pytest.approx(factor * before / (1 - before))


def test_all_entries_and_all_messages_are_in_it(report, holder):
    with Ledger.open(holder.ledger_path, holder.witness) as ledger:
        assert [entry["hash"] for entry in report["releases"]] == [e.hash for e in ledger.entries()]
        head = {"counter": 5, "sequence": 5, "hash": ledger.head[1]}
    assert report["ledger_head"] == head
    assert report["contracts"] == {report["contract_digest"]: {"train": 2, "holdout": 2}}
    sent = holder.manifest.lines()
    for kind in ("greeting", "adapter", "histogram"):
        of_kind = [line.bytes for line in sent if line.message == kind]
        assert report["messages"][kind] == {"times": len(of_kind), "bytes": sum(of_kind)}
    assert set(report["messages"]) == {line.message for line in sent}


def test_it_is_signed_with_the_holders_key_and_says_so_of_every_word(report):
    plain = {name: value for name, value in report.items() if name != "signature"}
    signed = (report["signature"], report["public_key"])
    assert is_signed(canonical(plain).encode(), *signed)
    for name in plain:
        changed = copy.deepcopy(plain)
        changed[name] = "changed"
        assert name == "public_key" or not is_signed(canonical(changed).encode(), *signed)


def test_no_key_no_payload_and_no_path_is_in_it(report, holder):
    text = json.dumps(report)
    key = "".join(holder.key_pem.decode().splitlines()[1:-1])
    secret = base64.b64decode(key)
    assert key[:40] not in text
    assert secret[7:39].hex() not in text
    assert "adapter of m" not in text  # what the answers carried
    assert str(holder.home) not in text
    assert "a public salt" not in text
    own = {"rejects", "rows", "users", "shard"}
    assert not own & set(report)


def test_lost_entries_make_epsilon_unknown_and_the_reason_is_told(fresh):
    with Ledger.open(fresh.ledger_path, fresh.witness) as ledger:
        counter = ledger.balance.counter
    override(fresh, "a cleaner pulled the plug", counter=counter + 2)
    found = reported(fresh)
    for name in ("epsilon", "epsilon_replace_one", "epsilon_shared", "meaning", "budget_left"):
        assert found[name] is None, name
    assert "unknown" in found["remark"]
    assert found["lost_entries"] == 2
    (word,) = found["overrides"]
    assert word["reason"] == "a cleaner pulled the plug"
    assert found["epsilon_of_entries"]["add_remove"] > 0
    assert found["ledger_head"]["counter"] == counter + 3


def test_an_override_that_nobody_signed_is_refused(fresh):
    with Ledger.open(fresh.ledger_path, fresh.witness) as ledger:
        counter = ledger.balance.counter
        words = {"counter": counter, "holder": "shop", "previous": ledger.head[1], "reason": "so"}
        ledger.override(canonical(words), counter)
    with pytest.raises(PrivacyError, match=rf"entry {counter + 1} .*nobody signed"):
        reported(fresh)


def test_a_message_without_its_charge_is_refused(fresh):
    fresh.manifest.add("adapter", 100, message_id="elsewhere", round=1, payload_sha256="0" * 64)
    with pytest.raises(PrivacyError, match=r"'elsewhere'.* no charge"):
        reported(fresh)


def test_an_override_excuses_what_was_sent_before_it_and_nothing_after(fresh):
    fresh.ledger_path.unlink()
    override(open_identity(fresh.home, ledger_lost=True), "gone")
    release_of(fresh.home, "e" * 64, 1.0)
    found = reported(fresh)
    assert found["messages_of_lost_entries"] == 2
    assert found["messages"]["adapter"]["times"] == 1
    line = {"time": "2999-01-01T00:00:00+00:00", "message": "adapter", "bytes": 1, "round": 1}
    line |= {"message_id": "later", "payload_sha256": "0" * 64}
    with fresh.manifest.path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(PrivacyError, match=r"'later'.* no charge"):
        reported(fresh)


def release_of(home, digest, epsilon, *heads):
    folder = home / "releases" / "2026-01-01"
    folder.mkdir(parents=True)
    content = {"contract_digest": digest, "facts": {"epsilon": epsilon, "heads": heads}}
    (folder / "release.json").write_text(json.dumps(content))


def test_a_release_is_no_hindrance_where_the_ledger_has_what_was_signed_then(fresh):
    with Ledger.open(fresh.ledger_path, fresh.witness) as ledger:
        head = OwnHeads(fresh, ledger).head()
    release_of(fresh.home, "e" * 64, 1.0, head_to_json(head))
    assert reported(fresh)["epsilon"] > 0


def test_a_release_of_a_run_that_the_ledger_does_not_have_is_refused(fresh):
    with Ledger.open(fresh.ledger_path, fresh.witness) as ledger:
        counter = ledger.balance.counter
        head = OwnHeads(fresh, ledger).head()
    key = load_key(fresh.key_pem, "")
    fields = {n: v for n, v in head_to_json(head).items() if n not in ("public_key", "signature")}
    later = sign_head(key, **{**fields, "counter": counter + 1})
    release_of(fresh.home, "e" * 64, 1.0, head_to_json(later))
    with pytest.raises(PrivacyError, match=r"release\.json .*does not have"):
        reported(fresh)


def test_a_release_that_this_holder_sent_nothing_for_is_no_hindrance(fresh):
    release_of(fresh.home, "e" * 64, 1.0)
    assert reported(fresh)["epsilon"] > 0


def test_a_release_of_a_run_without_privacy_is_refused(fresh):
    release_of(fresh.home, fresh.bundle.contract.digest, None)
    with pytest.raises(PrivacyError, match="without privacy"):
        reported(fresh)


def test_a_federation_without_privacy_has_no_report(enrolled, contract_text):
    text = contract_text.replace("epsilon = 4.0\n", "").replace("noise_multiplier = 1.0\n", "")
    identity = enrolled(text=text.replace("noise_multiplier = 2.0", "noise_multiplier = 0.0"))
    with pytest.raises(PrivacyError, match="no privacy"):
        reported(identity)


def test_a_holder_that_never_sent_anything_has_spent_nothing(enrolled):
    found = reported(enrolled())
    assert found["epsilon"] == found["epsilon_replace_one"] == 0
    assert found["releases"] == []
    assert found["meaning"]["odds_factor"] == 1
    assert found["meaning"]["belief_after"] == {"0.01": 0.01, "0.5": 0.5}


@pytest.mark.parametrize(
    "audit",
    [
        {},
        {"arms": None},
        {"arms": [1]},
        {"arms": [{"name": "x"}]},
        {"arms": [{**ARM, "lower_bound": "low"}]},
        {"arms": [{**ARM, "caught": 1}]},
        {"arms": [{**ARM, "name": None}]},
    ],
)
def test_an_audit_that_is_none_is_refused(holder, audit):
    with pytest.raises(CreditError, match="audit"):
        reported(holder, audit)


def test_a_ledger_that_was_lost_has_no_report(fresh):
    fresh.ledger_path.unlink()
    with pytest.raises(PrivacyError, match="counts as spent"):
        open_identity(fresh.home)
