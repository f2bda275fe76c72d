"""A holder's shard: rows of a file -> one checked record per user, in train and hold-out parts.

Every step reads the rows of one user only (privacy specification, row 4): what becomes of a user
never depends on who else is in the file. User ids end here; what goes on is a keyed hash of them.
The order of users is that of their hashes, so it says nothing about the file's order.
"""

import csv
import hmac
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from credit_client.layout import Layout, find_layout
from credit_client.mapping import ShardMapping
from credit_client.table import Row, read_table
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.fields import EventsField
from credit_common.record import (
    Record,
    RejectedValueError,
    Value,
    code_of,
    is_missing,
    make_record,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One user, the unit of privacy.

    Attributes:
        key: HMAC-SHA256 of the user id under the contract's salt, in hex. The salt is known to the
            federation, so a key hides an id from a glance and not from a guess: it stays here too.
        row: Data row of the file (from 1) that gave the record.
        record: The checked values.
        time: Of that row, in days since 1970 (UTC), by the contract's `record.time`; None where it
            has none.
    """

    key: str
    row: int
    record: Record = field(repr=False)
    time: float | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that is not used: its number in the file (from 1), the field and why; no value."""

    row: int
    field: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a file holds in the contract's terms. Its repr shows counts, no record.

    Attributes:
        train, holdout: Users by part, each in the order of their keys.
        rejects: Rows that are not used, in the file's order.
        rows: Data rows of the file.
        users: Users with a record.
        duplicates: Rows removed because the same user has an identical one.
        ignored_columns: Columns of the file that the contract does not read.
        missing: Field that is read -> users without a value in it, or without an event.
    """

    train: tuple[Example, ...] = field(repr=False)
    holdout: tuple[Example, ...] = field(repr=False)
    rejects: tuple[Reject, ...] = field(repr=False)
    rows: int
    users: int
    duplicates: int
    ignored_columns: tuple[str, ...] = ()
    missing: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One line of counts for the holder's own eyes."""
        parts = [
            f"{self.rows} rows, {self.users} users",
            f"{len(self.train)} train, {len(self.holdout)} hold-out",
            f"{self.duplicates} duplicate and {len(self.rejects)} rejected rows",
            f"{len(self.ignored_columns)} columns ignored",
        ]
        return "; ".join(parts)


def user_key(salt: str, user_id: str) -> str:
    """HMAC-SHA256 of a user id under the salt, in hex (64 characters)."""
    return hmac.digest(salt.encode(), user_id.encode(), "sha256").hex()


def is_holdout(salt: str, fraction: float, user_id: str) -> bool:
    """Whether a user is held out: the first 64 bits of the key, as a fraction of 2**64.

    Depends on nothing else, so a user stays where they are when rows, users or contracts change.

    Example:
        >>> is_holdout("a public salt", 0.0, "anybody")
        False
    """
    return _held_out(user_key(salt, user_id), fraction)


def read_shard(
    path: str | Path,
    contract: Contract,
    *,
    mapping: ShardMapping | None = None,
    require_label: bool = True,
) -> Shard:
    """Read a CSV (plain or gzipped) or Parquet file as the contract says.

    Rows that cannot be used are counted and listed, never fatal; other rows of the same user still
    count. Exact duplicates within a user are removed before anything else. Then one row of each
    user gives the record (`contract.record.several_rows`), with the event lists of all of them.

    Args:
        path: The holder's file.
        contract: The federation's contract.
        mapping: Translation from the merchant's columns, codes and units.
        require_label: Whether rows without a usable label are rejected. Without it (scoring), such
            a record's label is None, and the column may be absent.

    Raises:
        ShardError: If the file cannot be used at all; names file and column, never a value.
    """
    mapping = mapping or ShardMapping()
    table = read_table(Path(path))
    layout = find_layout(Path(path), table.columns, contract, mapping, require_label=require_label)
    rejects = [Reject(row=number, field="", reason=why) for number, why in table.malformed]
    rows_of: dict[str, list[tuple[int, Row]]] = {}
    for number, cells in table.rows:
        raw = cells[layout.user]
        if is_missing(raw):
            reject = Reject(row=number, field=contract.record.user, reason="user id missing")
            rejects.append(reject)
        else:
            rows_of.setdefault(code_of(raw), []).append((number, cells))
    examples: list[Example] = []
    missing: Counter[str] = Counter()
    duplicates = 0
    for user_id, rows in rows_of.items():
        example, refused, repeated = read_user(contract, layout, user_id, rows, missing)
        duplicates += repeated
        rejects += refused
        if example is not None:
            examples.append(example)
    examples.sort(key=lambda example: example.key)
    held_out = [_held_out(example.key, contract.split.holdout) for example in examples]
    return Shard(
        train=tuple(e for e, out in zip(examples, held_out, strict=True) if not out),
        holdout=tuple(e for e, out in zip(examples, held_out, strict=True) if out),
        rejects=tuple(sorted(rejects, key=lambda reject: reject.row)),
        rows=len(table.rows) + len(table.malformed),
        users=len(examples),
        duplicates=duplicates,
        ignored_columns=layout.ignored,
        missing={name: missing[name] for name, _ in layout.readers},
    )


def read_user(
    contract: Contract,
    layout: Layout,
    user_id: str,
    rows: Sequence[tuple[int, Row]],
    missing: Counter[str],
) -> tuple[Example | None, list[Reject], int]:
    """One user's rows -> their example, where there is one.

    Args:
        contract: The federation's.
        layout: How the file's rows are read.
        user_id: As `code_of` gives it.
        rows: (number, cells) of all rows of the user, in the file's order.
        missing: Counts, by field, users without a value in it; this one is added.

    Returns:
        The example, the rows that are not used, and how many were repetitions.
    """
    different = _without_duplicates(rows)
    repeated = len(rows) - len(different)
    good: list[tuple[int, dict[str, Value], float | None]] = []
    rejects: list[Reject] = []
    for number, cells in different:
        try:
            values = {name: read(cells) for name, read in layout.readers}
            good.append((number, values, layout.label(cells)))
        except RejectedValueError as bad:
            rejects.append(Reject(row=number, field=bad.field, reason=bad.reason))
    if len(good) > 1 and contract.record.several_rows == "reject":
        several = "the user has several rows"
        rejects += [Reject(row=n, field=contract.record.user, reason=several) for n, _, _ in good]
        return None, rejects, repeated
    if not good:
        return None, rejects, repeated
    number, values, label = _chosen(contract, good)
    if len(good) > 1:
        for declared in contract.fields:
            if isinstance(declared, EventsField):
                values = {**values, declared.name: _joined(declared.name, good)}
    missing.update(name for name, value in values.items() if value is None or value == ())
    record = make_record(contract, values, label)
    key = user_key(contract.split.salt, user_id)
    time = values.get(contract.record.time)
    when = time if isinstance(time, float) else None
    return Example(key=key, row=number, record=record, time=when), rejects, repeated


def write_rejects(path: str | Path, rejects: Iterable[Reject]) -> None:
    """Write the rejected rows to a CSV (row, field, reason) that only its owner can read.

    Raises:
        ShardError: If the file cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            Path(path).chmod(0o600)  # of a file that was there before
            writer = csv.writer(file)
            writer.writerow(["row", "field", "reason"])
            writer.writerows((r.row, r.field, r.reason) for r in rejects)
    except OSError as error:
        raise ShardError(f"cannot write the rejects to {path}: {error.strerror}") from None


def _without_duplicates(rows: Sequence[tuple[int, Row]]) -> Sequence[tuple[int, Row]]:
    """One user's rows without exact repetitions (every cell the same); the first one stays."""
    if len(rows) == 1:
        return rows
    first: dict[str, tuple[int, Row]] = {}
    for number, cells in rows:
        first.setdefault(repr(cells), (number, cells))  # cells of Parquet can be lists
    return list(first.values())


def _chosen(
    contract: Contract, rows: Sequence[tuple[int, dict[str, Value], float | None]]
) -> tuple[int, dict[str, Value], float | None]:
    """The last or first row by time; one without a time only where no row has one."""
    times = [row[1].get(contract.record.time) for row in rows]
    timed = [row for row, time in zip(rows, times, strict=True) if isinstance(time, float)]

    def order(row: tuple[int, dict[str, Value], float | None]) -> tuple[float, int]:
        time = row[1].get(contract.record.time)
        return (time if isinstance(time, float) else 0.0, row[0])

    pick = max if contract.record.several_rows == "last" else min
    return pick(timed or rows, key=order)


def _joined(
    name: str, rows: Sequence[tuple[int, dict[str, Value], float | None]]
) -> tuple[tuple[float, float], ...] | None:
    lists = [values[name] for _, values, _ in rows if isinstance(values[name], tuple)]
    return tuple(event for events in lists if isinstance(events, tuple) for event in events)


def _held_out(key: str, fraction: float) -> bool:
    return int(key[:16], 16) / 2**64 < fraction
