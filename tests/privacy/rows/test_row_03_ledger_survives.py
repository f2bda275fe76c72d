"""Row 3: what was spent is remembered by one durable ledger, and each message is answered once.

The broken variants: a fresh privacy engine a round, which claims 1.995 where 8.29 is true; a ledger
that answers a repeated message anew; one that lets a release pass at the budget's end; one that
opens a new account for another contract; a gate that builds the reply before the charge.
"""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client import gate as gate_module
from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_common import wire
from credit_common.accountant import epsilon
from credit_common.errors import BudgetError, PrivacyError
from credit_common.events import SampledGaussian
from credit_common.privacy import mechanism_plan

SCHEMA = {"w": (3,)}
DELTA = 1e-5
ROUND = SampledGaussian(sampling_rate=0.05, noise_multiplier=1.0, steps=20)


def charge(ledger, number, budget=50.0, contract="a"):
    ledger.charge(
        "train",
        ROUND,
        contract_digest=contract,
        message_id=f"m{number}",
        request_digest="r",
        reply=b"bytes",
        budget_epsilon=budget,
        delta=DELTA,
    )


def check_spend_is_remembered(opened, path):
    """Thirty runs, each of which opens the account anew, spend what thirty rounds spend."""
    for number in range(30):
        with opened(path) as ledger:
            charge(ledger, number)
            claimed = ledger.epsilon_overall(DELTA)
    assert claimed == pytest.approx(epsilon([ROUND] * 30, DELTA))
    assert claimed == pytest.approx(8.29, abs=0.01)


def fresh_engine(path):
    return Ledger.in_memory()


def test_row_03_spend_outlives_the_process(tmp_path):
    Ledger.create(tmp_path / "own.ledger").close()
    check_spend_is_remembered(Ledger.open, tmp_path / "own.ledger")


def test_row_03_catches_a_fresh_engine_a_round(tmp_path):
    assert epsilon([ROUND], DELTA) == pytest.approx(1.995, abs=0.02)  # what it would claim
    with pytest.raises(AssertionError):
        check_spend_is_remembered(fresh_engine, tmp_path)


def check_other_contracts_share_the_account(ledger):
    charge(ledger, 1, contract="a")
    alone = ledger.epsilon_overall(DELTA)
    charge(ledger, 2, contract="b")
    assert ledger.epsilon_overall(DELTA) > alone


class AccountPerContract(Ledger):
    def charge(self, account, event, *, contract_digest, **rest):
        if self.entries() and self.entries()[-1].contract_digest != contract_digest:
            self._balance._spent = {"train": [], "holdout": []}
        return super().charge(account, event, contract_digest=contract_digest, **rest)


def test_row_03_a_new_contract_finds_the_old_spend():
    with Ledger.in_memory() as ledger:
        check_other_contracts_share_the_account(ledger)


def test_row_03_catches_an_account_for_each_contract():
    with AccountPerContract.in_memory() as ledger, pytest.raises(AssertionError):
        check_other_contracts_share_the_account(ledger)


def request(message_id="m1", value=0.0):
    arrays = wire.array_record({"w": np.full(3, value, np.float32)})
    content = RecordDict({wire.ARRAYS: arrays, wire.CONFIG: ConfigRecord({wire.ROUND: 1})})
    message = Message(content, dst_node_id=2, message_type="train")
    wire.set_message_id(message, message_id)
    return message


def fresh():
    return {"w": np.random.default_rng().normal(size=3).astype(np.float32)}


def sent(message):
    assert not message.has_error()
    return message.content.array_records["arrays"]["w"].numpy().tobytes()


@pytest.fixture
def gate_of(contract):
    wire.set_identity(7, wire.SERVER_NODE)
    plan = mechanism_plan(contract, "small")
    return lambda ledger: Gate(contract, plan, ledger, SCHEMA)


def check_replay(gate):
    """The same message gets the same bytes; the same id with another request gets none."""
    first = sent(gate.send_adapter(request(), fresh))
    assert sent(gate.send_adapter(request(), fresh)) == first
    assert gate.send_adapter(request(value=1.0), fresh).has_error()


class Forgetful(Ledger):
    """Charges each message again: fresh noise on the same question."""

    def lookup(self, message_id, request_digest):
        return None

    def charge(self, *args, message_id, **rest):
        return super().charge(*args, message_id=message_id + str(len(self.entries())), **rest)


def test_row_03_a_replayed_message_gets_the_same_bytes(gate_of):
    with Ledger.in_memory() as ledger:
        check_replay(gate_of(ledger))


def test_row_03_catches_fresh_noise_on_a_replayed_message(gate_of):
    with Forgetful.in_memory() as ledger, pytest.raises(AssertionError):
        check_replay(gate_of(ledger))


def check_the_budget_ends(ledger):
    def spend():
        for number in range(6):
            charge(ledger, number, budget=2.5)

    with pytest.raises(BudgetError, match=r"budget ends here.*epsilon.*delta"):
        spend()
    assert 1.9 < ledger.epsilon_overall(DELTA) <= 2.5


class Lenient(Ledger):
    def check(self, account, event, budget_epsilon, delta):
        try:
            return super().check(account, event, budget_epsilon, delta)
        except BudgetError:
            return 0.0  # "log a warning and go on"


def test_row_03_the_budgets_end_refuses():
    with Ledger.in_memory() as ledger:
        check_the_budget_ends(ledger)


def test_row_03_catches_a_ledger_that_only_warns():
    failed = pytest.fail.Exception  # of pytest.raises, where nothing was raised
    with Lenient.in_memory() as ledger, pytest.raises(failed):
        check_the_budget_ends(ledger)


def check_charged_before_built(gate, ledger, monkeypatch):
    charged = []

    def build(message, payload, weight):
        charged.append([e.message_id for e in ledger.entries()])
        return wire.adapter_reply(message, payload, weight)

    monkeypatch.setattr(gate_module, "adapter_reply", build)
    assert sent(gate.send_adapter(request(), fresh))
    assert charged
    assert "m1" in charged[0]


def test_row_03_a_reply_is_built_after_its_charge(gate_of, monkeypatch):
    with Ledger.in_memory() as ledger:
        check_charged_before_built(gate_of(ledger), ledger, monkeypatch)


def test_row_03_catches_a_reply_that_is_built_first(contract, monkeypatch):
    class Hasty(Gate):
        def _answer(self, message, account, event, compute, build):
            build(compute())  # a crash here has sent what nobody charged
            return super()._answer(message, account, event, compute, build)

    wire.set_identity(7, wire.SERVER_NODE)
    with Ledger.in_memory() as ledger:
        gate = Hasty(contract, mechanism_plan(contract, "small"), ledger, SCHEMA)
        with pytest.raises(AssertionError):
            check_charged_before_built(gate, ledger, monkeypatch)


def check_a_lost_ledger_is_no_empty_one(opened, path):
    with Ledger.create(path) as ledger:
        charge(ledger, 1)
    path.unlink()
    with pytest.raises(PrivacyError, match="missing"):
        opened(path).close()


def open_or_create(path):
    return Ledger.open(path) if path.exists() else Ledger.create(path)


def test_row_03_a_lost_ledger_counts_as_exhausted(tmp_path):
    """How it is restored, or signed for, is in tests/client/test_safekeeping.py."""
    check_a_lost_ledger_is_no_empty_one(Ledger.open, tmp_path / "own.ledger")


def test_row_03_catches_a_ledger_that_is_made_anew(tmp_path):
    failed = pytest.fail.Exception
    with pytest.raises((AssertionError, failed)):
        check_a_lost_ledger_is_no_empty_one(open_or_create, tmp_path / "own.ledger")
