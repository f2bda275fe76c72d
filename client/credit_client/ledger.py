"""The durable privacy ledger: what a holder's users have spent, across contracts, tasks and shards.

A charge is an entry of the chain (`credit_client.chain`). A reply is stored in the transaction
that charges for it, which is on the disk before `charge` returns. So a crash at any point leaves
either no charge and no reply, or a charge and the very bytes that a repeated request is answered
with: ε never falls, and fresh noise is never drawn twice for one message.

What the entries add up to is in `credit_client.balance`.
"""

import contextlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from credit_client.balance import Account, Balance, epsilon_of, split_text
from credit_client.chain import (
    GENESIS,
    Entry,
    canonical,
    create_file,
    digest,
    first_break,
    open_file,
    open_in_memory,
)
from credit_client.witness import Witness
from credit_common.errors import BudgetError, PrivacyError
from credit_common.events import Event, event_to_json


class Ledger:
    """A holder's ledger, held by one process at a time. Made by `create`, `open` or `in_memory`.

    Nobody else may open the file within the process either: closing any handle of it would drop
    the operating system's lock. Safe to use from several threads.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        name: str,
        *,
        durable: bool,
        witness: Witness | None = None,
    ) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._name = name
        self._durable = durable
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._witness = witness
        self._held: BinaryIO | None = None
        self._balance = Balance(durable=durable)
        try:
            if witness is not None:
                self._held = witness.hold()
            self.verify()
            for entry in self.entries():
                self._count(entry)
            if witness is not None:
                witness.check(self._balance.counter, self._balance.hash_at, name)
                self._tell_witness()
        except PrivacyError:
            self.close()
            raise

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Start an empty ledger, for a holder that has never released anything.

        Raises:
            PrivacyError: If there is a file already, or it cannot be written.
        """
        return cls(create_file(Path(path)), str(path), durable=True)

    @classmethod
    def open(cls, path: str | Path, witness: Witness | None = None) -> Self:
        """Open an existing ledger and verify its chain.

        Args:
            path: Its file.
            witness: Held against the ledger now, and told of each new entry; locked until the
                ledger is closed.

        Raises:
            LedgerBusyError: If it is in use, or another copy of it with this witness is.
            PrivacyError: If it is missing, not a ledger, tampered with, or not what the witness
                remembers.
        """
        return cls(open_file(Path(path)), str(path), durable=True, witness=witness)

    @classmethod
    def in_memory(cls) -> Self:
        """A ledger that ends with the process, for simulations.

        It alone takes events of None: releases without privacy, with which ε is infinite.
        """
        return cls(open_in_memory(), "ledger in memory", durable=False)

    def bind_split(self, salt: str, fraction: float, user: str = "") -> None:
        """Record by what users are split from now on: salt, hold-out fraction, column of user ids.

        A second different split, or a first one after a charge, makes the accounts add up for
        ever. Only the SHA-256 of the texts is kept.
        """
        with self._writing():
            if not self._balance.has_split(salt, fraction, user):
                self._append("split", split_text(salt, fraction, user), "", None, "", b"")

    def note_open_run(self, contract_digest: str) -> None:
        """Record that a run without privacy begins: from then on ε is infinite for ever."""
        with self._writing():
            known = {entry.contract_digest for entry in self._balance.open_runs}
            if contract_digest not in known:
                self._append("open", "null", contract_digest, None, "", b"")

    def check(
        self, account: Account, event: Event | None, budget_epsilon: float | None, delta: float
    ) -> float:
        """Refuse a release that would pass the budget, before anything is computed for it.

        Args:
            account: Whose users take part.
            event: What the release would spend.
            budget_epsilon: The most that may be spent; None without privacy.
            delta: δ of the budget.

        Returns:
            ε after the release.

        Raises:
            BudgetError: Naming ε before and after, and the budget.
            PrivacyError: If noise or a finite budget is missing.
        """
        with self._lock:
            if self._balance.open_runs:
                number = self._balance.open_runs[0].sequence
                raise BudgetError(
                    f"{self._name}: entry {number} is a run without privacy, so that epsilon is "
                    f"infinite for ever"
                )
            spent = self._balance.composed(account)
            if event is None and budget_epsilon is None and not self._durable:
                return math.inf
            if event is None or budget_epsilon is None or not math.isfinite(budget_epsilon):
                raise PrivacyError(f"{self._name}: a release needs noise and a finite budget")
            after = epsilon_of([*spent, event], delta)
            if not after <= budget_epsilon:
                raise BudgetError(
                    f"the privacy budget ends here: account {account!r} has epsilon "
                    f"{epsilon_of(spent, delta):.4f}, this release would make it {after:.4f}, "
                    f"and the budget is {budget_epsilon:g} at delta {delta:g}"
                )
            return after

    def charge(
        self,
        account: Account,
        event: Event | None,
        *,
        contract_digest: str,
        message_id: str,
        request_digest: str,
        reply: bytes,
        budget_epsilon: float | None,
        delta: float,
    ) -> Entry:
        """Enter a release and keep its final bytes; both are on the disk when this returns.

        Raises:
            BudgetError: As in `check`, which is made once more.
            PrivacyError: If the message was charged before, or the ledger cannot be written; it is
                closed then, and must be opened anew.
        """
        if not message_id:
            raise PrivacyError("a charge needs a message id")
        text = canonical(None if event is None else event_to_json(event))
        with self._writing():
            self.check(account, event, budget_epsilon, delta)
            if self._find(message_id) is not None:
                raise PrivacyError(f"message {message_id!r} is charged already: answer from lookup")
            entry = self._append(account, text, contract_digest, message_id, request_digest, reply)
            self._execute("INSERT INTO replies VALUES (?, ?)", message_id, reply)
        return entry

    def lookup(self, message_id: str, request_digest: str) -> bytes | None:
        """The reply that a message was answered with, or None for a message never charged.

        Raises:
            PrivacyError: If another request had this id, or the reply is gone: fresh noise is
                never drawn for a message that was answered.
        """
        with self._lock:
            found = self._find(message_id)
            if found is None:
                return None
            if found.request_digest != request_digest:
                raise PrivacyError(f"message {message_id!r} was charged for another request")
            rows = self._execute("SELECT reply FROM replies WHERE message_id = ?", message_id)
            if not rows:
                raise PrivacyError(f"message {message_id!r} is already answered, its reply is gone")
            reply = bytes(rows[0][0])
            if digest(reply) != found.reply_digest:
                raise self._tampered(found.sequence, "its reply is another one")
            return reply

    def confirm(self, message_id: str, payload: bytes) -> Entry:
        """The entry by which these very bytes were charged for a message.

        Raises:
            PrivacyError: If there is none.
        """
        with self._lock:
            found = self._find(message_id)
        if found is None or found.reply_digest != digest(payload):
            raise PrivacyError(f"{self._name} has no charge for what answers {message_id!r}")
        return found

    def override(self, statement: str, counter: int) -> Entry:
        """Enter that a person signed for entries that were lost.

        Args:
            statement: The signed statement, canonical JSON (see `credit_client.safekeeping`).
            counter: Highest counter that is known of, at least the ledger's own.
        """
        if counter < self._balance.counter or json.loads(statement).get("counter") != counter:
            raise PrivacyError(f"counter = {counter}: must be the statement's, not below the own")
        with self._writing():
            return self._append("override", statement, "", None, "", b"")

    def copy_to(self, path: Path) -> None:
        """Write a copy of the whole ledger, replies included, to a file that is not there yet.

        Raises:
            PrivacyError: If it cannot be written.
        """
        with self._lock:
            self._execute("SELECT 1")  # it is open, and in the process that opened it
            assert self._connection is not None
            copy = create_file(path)
            try:
                self._connection.backup(copy)
            except sqlite3.Error as error:
                raise PrivacyError(f"cannot write {path}: {error}") from None
            finally:
                copy.close()

    def epsilon(self, account: Account, delta: float) -> float:
        """ε that the account's own events have spent, under add/remove of a user."""
        with self._lock:
            return epsilon_of(self._balance.history(account), delta)

    def epsilon_overall(self, delta: float) -> float:
        """ε of any user of the holder, under add/remove of that user."""
        with self._lock:
            return self._balance.epsilon(delta)

    def epsilon_replace_one(self, delta: float) -> float:
        """ε under a change of one user for another, who may be on the other side of the split."""
        with self._lock:
            return self._balance.epsilon_replace_one(delta)

    @property
    def accounts_add(self) -> bool:
        """Whether a user may have been in both accounts."""
        return self._balance.accounts_add

    @property
    def balance(self) -> Balance:
        """What the entries add up to now; not to be changed."""
        return self._balance

    @property
    def head(self) -> tuple[int, str]:
        """Sequence number and hash of the last entry; (0, GENESIS) of an empty ledger.

        Whoever remembers it outside the file can tell an end cut off or an older copy put back.
        """
        with self._lock:
            rows = self._execute(
                "SELECT sequence, hash FROM entries ORDER BY sequence DESC LIMIT 1"
            )
            return rows[0] if rows else (0, GENESIS)

    def entries(self) -> list[Entry]:
        """All entries, in order."""
        with self._lock:
            rows = self._execute("SELECT * FROM entries ORDER BY sequence")
        return [Entry.from_row(row) for row in rows]

    def verify(self) -> None:
        """Walk the chain from its beginning; a reply is held against it by `lookup`.

        Raises:
            PrivacyError: Naming the first entry that was changed, removed or put in. Entries cut
                off at the end cannot be seen here.
        """
        with self._lock:
            number = first_break(self._execute("SELECT * FROM entries ORDER BY sequence"))
        if number is not None:
            raise self._tampered(number, "it does not follow from the entries before it")

    def close(self) -> None:
        """Let go of the file; the ledger cannot be used any more."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None
            if self._held is not None:
                self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(self, sql: str, *values: Any) -> list[Any]:
        if self._connection is None:
            raise PrivacyError(f"{self._name} is closed")
        if self._process != os.getpid():
            raise PrivacyError(f"{self._name} belongs to the process that opened it")
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            # What is on the disk is uncertain now; it is read again when the file is next opened.
            self.close()
            raise PrivacyError(f"{self._name} failed: {error}") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
                self._tell_witness()
            finally:
                if self._connection is not None and self._connection.in_transaction:
                    self._execute("ROLLBACK")

    def _tell_witness(self) -> None:
        if self._witness is None:
            return
        balance = self._balance
        try:
            self._witness.note(balance.counter, self.head[1], balance.signed)
        except PrivacyError:
            self.close()  # a release that no witness knows of must not be answered from here
            raise

    def _append(
        self,
        account: str,
        event: str,
        contract_digest: str,
        message_id: str | None,
        request_digest: str,
        reply: bytes,
    ) -> Entry:
        sequence, previous = self.head
        entry = Entry(
            sequence=sequence + 1,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            account=account,
            event=event,
            contract_digest=contract_digest,
            message_id=message_id,
            request_digest=request_digest,
            reply_digest=digest(reply),
            previous=previous,
        )
        row = entry.to_row()
        self._execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
        self._count(entry)  # before the commit: an interrupt in between may only overstate
        return entry

    def _find(self, message_id: str) -> Entry | None:
        rows = self._execute("SELECT * FROM entries WHERE message_id = ?", message_id)
        return Entry.from_row(rows[0]) if rows else None

    def _count(self, entry: Entry) -> None:
        try:
            self._balance.count(entry)
        except PrivacyError as error:
            raise self._tampered(entry.sequence, str(error)) from None

    def _tampered(self, sequence: int, how: str) -> PrivacyError:
        return PrivacyError(
            f"{self._name} was tampered with or damaged at entry {sequence}: {how}. "
            f"Restore it from its backup"
        )
