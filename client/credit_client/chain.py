"""The chain of entries in a ledger's file: one SQLite file per holder, held by one process.

Entries are only ever added, each with the SHA-256 of the one before it. What the chain cannot show
by itself: entries cut off at its end, an older copy of the whole file put back, or a chain made
anew from its first entry. A witness outside the file has to remember its last hash for that.

The rollback journal (DELETE) with synchronous=EXTRA is used rather than a write-ahead log: at rest
the ledger is a single file that a person can copy, and with EXTRA the journal's end is on the disk
too, without which a power cut could bring back the state before a commit. A charge costs some
milliseconds, next to seconds of training.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from credit_common.errors import LedgerBusyError, PrivacyError

GENESIS = hashlib.sha256(b"credit-federation ledger 1").hexdigest()
APPLICATION_ID = 0x43464C31  # "CFL1", in the file's header: a ledger of format 1
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, account TEXT NOT NULL, event TEXT NOT NULL,
    contract_digest TEXT NOT NULL, message_id TEXT UNIQUE, request_digest TEXT NOT NULL,
    reply_digest TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE replies (message_id TEXT PRIMARY KEY, reply BLOB NOT NULL) STRICT;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER entries_fixed BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
COMMIT;
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger.

    Attributes:
        sequence: 1 for the first entry, without gaps.
        time: UTC, ISO 8601, seconds.
        account: "train" or "holdout"; "split" for the entry that records a salt and fraction,
            "override" for a person's word that entries were lost, "open" for a run without privacy.
        event: Canonical JSON of the privacy event ("null" in a run without privacy), of the split
            or of the signed word.
        contract_digest: The contract under which it was spent.
        message_id: The message that is answered; None where there is none.
        request_digest, reply_digest: SHA-256 of request and reply, in hex.
        previous: Hash of the entry before, or GENESIS.
    """

    sequence: int
    time: str
    account: str
    event: str
    contract_digest: str
    message_id: str | None
    request_digest: str
    reply_digest: str
    previous: str

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of all fields, in hex."""
        return digest(canonical(asdict(self)).encode())

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Self:
        """The entry of a row of the table; the row's hash is left aside."""
        return cls(**dict(zip(cls.__dataclass_fields__, row[:-1], strict=True)))

    def to_row(self) -> tuple[Any, ...]:
        """The row of the table: all fields, and the hash."""
        return (*asdict(self).values(), self.hash)


def canonical(plain: Any) -> str:
    """JSON with sorted keys and without spaces: one text for one meaning."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(content: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def first_break(rows: Iterable[tuple[Any, ...]]) -> int | None:
    """Number (from 1) of the first row that does not follow from those before it, or None.

    Args:
        rows: All rows of the table of entries, by their sequence number.
    """
    previous = GENESIS
    for number, row in enumerate(rows, start=1):
        entry = Entry.from_row(row)
        if (entry.sequence, entry.previous, entry.hash) != (number, previous, row[-1]):
            return number
        previous = entry.hash
    return None


def create_file(path: Path) -> sqlite3.Connection:
    """Make the file of an empty ledger, readable by its user alone.

    Raises:
        PrivacyError: If there is a file already, or it cannot be written.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        raise PrivacyError(f"{path} exists already: open it, its spend counts") from None
    except OSError as error:
        raise PrivacyError(f"cannot create the ledger {path}: {error.strerror}") from None
    connection = _connect(path)
    try:
        connection.executescript(_SCHEMA)
    except sqlite3.Error as error:
        connection.close()
        path.unlink(missing_ok=True)
        raise PrivacyError(f"cannot create the ledger {path}: {error}") from None
    return connection


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file of an existing ledger; its entries are not looked at.

    Raises:
        PrivacyError: If it is missing, in use by a process, or not a ledger.
    """
    if not path.is_file():
        raise PrivacyError(
            f"the ledger {path} is missing: restore it from its backup. A lost ledger counts "
            f"as spent; only a holder that never released anything may create a new one"
        )
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise PrivacyError(f"the ledger {path} is not this user's: {error.strerror}") from None
    connection = _connect(path)
    (kind,) = connection.execute("PRAGMA application_id").fetchone()
    if kind != APPLICATION_ID:
        connection.close()
        raise PrivacyError(f"{path} is not a ledger of this version")
    return connection


def open_in_memory() -> sqlite3.Connection:
    """An empty ledger without a file."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.executescript(_SCHEMA)
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )
        for setting in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = DELETE",
            "synchronous = EXTRA",
            "fullfsync = ON",  # on macOS a plain sync stops at the drive's cache
        ):
            connection.execute(f"PRAGMA {setting}")
        connection.executescript("BEGIN EXCLUSIVE; COMMIT;")  # the lock stays until close
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise LedgerBusyError(
                f"the ledger {path} is in use by another client: a holder runs one at a time"
            ) from None
        raise PrivacyError(f"the ledger {path} cannot be opened: {error}") from None
    return connection
