import contextlib
import hashlib
import sqlite3

import pytest

from credit_client.chain import GENESIS, Entry, create_file, first_break, open_file
from credit_common.errors import PrivacyError


def chain(length):
    rows, previous = [], GENESIS
    for sequence in range(1, length + 1):
        entry = Entry(
            sequence=sequence,
            time="2024-01-01T00:00:00+00:00",
            account="train",
            event="null",
            contract_digest="c",
            message_id=f"m{sequence}",
            request_digest="r",
            reply_digest="é",
            previous=previous,
        )
        rows.append(entry.to_row())
        previous = entry.hash
    return rows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


def test_a_missing_ledger_is_never_made_by_opening(path):
    with pytest.raises(PrivacyError, match="restore it from its backup"):
        open_file(path)
    assert not path.exists()


def test_an_existing_file_is_never_overwritten(path):
    path.write_bytes(b"something")
    with pytest.raises(PrivacyError, match="exists already"):
        create_file(path)
    assert path.read_bytes() == b"something"


@pytest.mark.parametrize("content", [b"", b"not a data base at all, but long enough " * 40])
def test_a_file_that_is_no_ledger_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(PrivacyError):
        open_file(path)


def test_another_sqlite_file_is_refused(path):
    with sqlite3.connect(path) as shell:
        shell.execute("CREATE TABLE entries (sequence)")
    shell.close()
    with pytest.raises(PrivacyError, match="not a ledger"):
        open_file(path)


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    with pytest.raises(PrivacyError, match="cannot create"):
        create_file(tmp_path / "no folder" / "ledger.db")


def test_every_commit_is_synced_to_the_disk(path):
    with contextlib.closing(create_file(path)) as made:
        settings = {
            name: made.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "locking_mode")
        }
    assert settings == {"journal_mode": "delete", "synchronous": 3, "locking_mode": "exclusive"}


def test_a_row_gives_its_entry_back_through_the_file(path):
    with contextlib.closing(create_file(path)) as made:
        for row in chain(3):
            made.execute(f"INSERT INTO entries VALUES ({', '.join('?' * len(row))})", row)
    with contextlib.closing(open_file(path)) as again:
        rows = again.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    assert rows == chain(3)
    assert [Entry.from_row(row).to_row() for row in rows] == rows


def test_an_untouched_chain_has_no_break():
    for length in range(4):
        assert first_break(chain(length)) is None


@pytest.mark.parametrize("column", range(10))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_change_in_any_column_is_found_where_it_is(column, number):
    rows = chain(3)
    row = list(rows[number - 1])
    row[column] = 9 if column == 0 else "changed"
    rows[number - 1] = tuple(row)
    assert first_break(rows) == number


@pytest.mark.parametrize("column", range(9))
def test_a_change_with_its_own_hash_renewed_is_found_at_the_latest_in_the_next_entry(column):
    rows = chain(3)
    row = list(rows[1])
    row[column] = 9 if column == 0 else "changed"
    rows[1] = Entry.from_row(tuple(row)).to_row()
    assert first_break(rows) == (2 if column in (0, 8) else 3)


def test_a_row_taken_out_doubled_or_exchanged_is_found():
    a, b, c = chain(3)
    assert first_break([b, c]) == 1
    assert first_break([a, c]) == 2
    assert first_break([a, a, b, c]) == 2
    assert first_break([a, c, b]) == 2


def test_an_end_cut_off_is_not_found_by_the_chain_alone():
    assert first_break(chain(3)[:2]) is None


def test_the_form_of_a_hash_never_changes():
    """Written out here a second time: another form would make every kept ledger look tampered."""
    (row,) = chain(1)
    text = (
        '{"account":"train","contract_digest":"c","event":"null","message_id":"m1","previous":"'
        + hashlib.sha256(b"credit-federation ledger 1").hexdigest()
        + '","reply_digest":"é","request_digest":"r","sequence":1,'
        '"time":"2024-01-01T00:00:00+00:00"}'
    )
    assert row[-1] == hashlib.sha256(text.encode()).hexdigest()
