import json
import os

import pytest

from credit_client.chain import GENESIS
from credit_client.ledger import Ledger
from credit_client.witness import Witness, state_folder
from credit_common.errors import PrivacyError
from credit_common.events import Histogram


@pytest.fixture
def path(tmp_path):
    with Ledger.create(tmp_path / "own.ledger"):
        return tmp_path / "own.ledger"


@pytest.fixture
def witness(tmp_path):
    return Witness(tmp_path / "elsewhere" / "own.json")


def charge(ledger, number):
    ledger.charge(
        "holdout",
        Histogram(noise_multiplier=20.0),
        contract_digest="c",
        message_id=f"m{number}",
        request_digest="r",
        reply=b"reply",
        budget_epsilon=8.0,
        delta=1e-5,
    )


def filled(path, witness, *numbers):
    with Ledger.open(path, witness) as ledger:
        for number in numbers:
            charge(ledger, number)


def test_the_witness_follows_each_entry(path, witness):
    with Ledger.open(path, witness) as ledger:
        assert vars(witness.mark()) == {"counter": 0, "hash": GENESIS, "overrides": 0}
        for number in range(3):
            charge(ledger, number)
            assert (witness.mark().counter, witness.mark().hash) == (number + 1, ledger.head[1])
            ledger.forget_reply(f"m{number}")
    if os.name == "posix":
        assert witness.path.stat().st_mode & 0o077 == 0


def test_an_older_copy_put_back_is_refused(path, witness):
    filled(path, witness, 0, 1)
    older = path.read_bytes()
    filled(path, witness, 2)
    path.write_bytes(older)
    with pytest.raises(PrivacyError, match=r"rolled back: it ends at entry 2.*remembers 3"):
        Ledger.open(path, witness)
    with Ledger.open(path):  # the lock was let go
        pass


def test_another_ledger_in_its_place_is_refused(path, witness, tmp_path):
    filled(path, witness, 0, 1)
    path.unlink()
    Ledger.create(path).close()
    with Ledger.open(path) as fresh:
        for number in range(5):
            charge(fresh, number + 100)
    with pytest.raises(PrivacyError, match=r"another one than its witness.*entry 2 differs"):
        Ledger.open(path, witness)


def test_a_witness_that_a_crash_left_behind_is_no_contradiction(path, witness):
    filled(path, witness, 0)
    behind = witness.path.read_bytes()
    filled(path, witness, 1)
    witness.path.write_bytes(behind)
    with Ledger.open(path, Witness(witness.path)) as ledger:
        assert witness.mark().counter == ledger.balance.counter == 2


def test_a_charge_that_the_witness_cannot_note_is_not_answered_from_this_ledger(path, witness):
    with Ledger.open(path, witness) as ledger:
        witness.path.unlink()
        witness.path.mkdir()
        with pytest.raises(PrivacyError, match="XDG_STATE_HOME"):
            charge(ledger, 0)
        with pytest.raises(PrivacyError, match="closed"):  # not even what was charged
            ledger.lookup("m0", "r")
    witness.path.rmdir()
    with Ledger.open(path, Witness(witness.path)) as ledger:
        assert ledger.lookup("m0", "r") == b"reply"  # charged once, and answered from there
        assert witness.mark().counter == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"counter": 1}', '{"counter": "1", "hash": "x"}', "null"]
)
def test_a_damaged_witness_is_refused(path, witness, content):
    witness.path.parent.mkdir()
    witness.path.write_text(content)
    with pytest.raises(PrivacyError, match="witness"):
        Ledger.open(path, witness)


def test_a_hash_that_is_none_is_refused(path, witness):
    witness.path.parent.mkdir()
    witness.path.write_text(json.dumps({"counter": 1, "hash": None}))
    with pytest.raises(PrivacyError, match="damaged"):
        Ledger.open(path, witness)


def test_it_lies_in_the_users_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "credit-federation" / "witness"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(state_folder()) == "/home/somebody/.local/state/credit-federation/witness"
