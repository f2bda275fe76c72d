import errno
import json
import os
import shutil

import pytest

from credit_client import witness as module
from credit_client.chain import GENESIS
from credit_client.ledger import Ledger
from credit_client.witness import Witness, state_folder
from credit_common.errors import LedgerBusyError, PrivacyError
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


def folder_in_its_place(witness, monkeypatch):
    witness.path.unlink()
    witness.path.mkdir()


def full_disk(witness, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", fail)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(folder_in_its_place, "cannot be read"), (full_disk, "No space left.*XDG_STATE_HOME")],
)
def test_a_charge_that_the_witness_cannot_note_is_not_answered_from_this_ledger(
    path, witness, monkeypatch, spoil, said
):
    with Ledger.open(path, witness) as ledger:
        spoil(witness, monkeypatch)
        with pytest.raises(PrivacyError, match=said):
            charge(ledger, 0)
        with pytest.raises(PrivacyError, match="closed"):  # not even what was charged
            ledger.lookup("m0", "r")
    monkeypatch.undo()
    if witness.path.is_dir():
        witness.path.rmdir()
    with Ledger.open(path, Witness(witness.path)) as ledger:
        assert ledger.lookup("m0", "r") == b"reply"  # charged once, and answered from there
        assert witness.mark().counter == 1


needs_locks = pytest.mark.skipif(os.name == "nt", reason="Windows has no such lock")


@pytest.fixture
def copy(path, witness, tmp_path):
    """A copy of the holder's folder, with one charge in it and the same witness."""
    filled(path, witness, 0)
    shutil.copy(path, tmp_path / "copy.ledger")
    return tmp_path / "copy.ledger"


@needs_locks
def test_of_two_copies_of_a_ledger_one_is_open_at_a_time(path, copy, witness):
    with Ledger.open(path, witness) as ledger:
        with pytest.raises(LedgerBusyError, match=r"own\.json is in use by another client"):
            Ledger.open(copy, Witness(witness.path))
        with Ledger.open(copy):  # its own lock was let go of
            pass
        charge(ledger, 1)
    with pytest.raises(PrivacyError, match="rolled back: it ends at entry 1"):
        Ledger.open(copy, Witness(witness.path))


@needs_locks
def test_a_ledger_that_fails_lets_go_of_its_witness(path, witness):
    filled(path, witness, 0)
    mark = witness.path.read_bytes()
    witness.path.write_text("{")
    with pytest.raises(PrivacyError, match="cannot be read"):
        Ledger.open(path, witness)
    witness.path.write_bytes(mark)
    filled(path, Witness(witness.path), 1)


def test_a_mark_that_another_has_moved_is_left_and_nothing_is_answered(path, copy, witness):
    """Where the lock is not kept, as on Windows: each of two copies has a budget of its own."""
    lock = witness.path.with_name(f"{witness.path.name}.lock")
    with Ledger.open(path, witness) as one:
        lock.unlink(missing_ok=True)  # what it holds is found by nobody
        with Ledger.open(copy, Witness(witness.path)) as other:
            charge(other, 1)
            moved = witness.path.read_bytes()
            with pytest.raises(PrivacyError, match="changed by another client"):
                charge(one, 2)
            with pytest.raises(PrivacyError, match="closed"):
                one.lookup("m2", "r")
            assert witness.path.read_bytes() == moved
            charge(other, 3)
    with pytest.raises(PrivacyError, match="rolled back: it ends at entry 2"):
        Ledger.open(path, Witness(witness.path))


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
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("", "state", "./state", "../state", None):  # not a folder, or one of many
        if ignored is None:
            monkeypatch.delenv("XDG_STATE_HOME")
        else:
            monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert str(state_folder()) == "/home/somebody/.local/state/credit-federation/witness"
