"""A file to be scored -> its users' records, a block at a time.

What becomes of a user is what `credit_client.shard` says, by the same lines; only the order
differs: users come as their last row does. The file is read twice, so that a user's rows are
together without all of the file in memory: first the ids alone are looked at, of which eight bytes
a row are kept.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from credit_client.layout import Layout, find_layout
from credit_client.mapping import ShardMapping
from credit_client.shard import Example, Reject, read_user
from credit_client.table import Row, open_table
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.record import code_of, is_missing


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A user to be scored.

    Attributes:
        user: The id as it stands in the file.
        example: Row and record.
    """

    user: str
    example: Example = field(repr=False)


@dataclass(kw_only=True)
class Counts:
    """What was read so far; complete when the stream has ended.

    Attributes:
        rows: Data rows read, and `all_rows` those of the file.
        duplicates: Rows that repeat another of the same user.
        rejects: Rows that are not used, in the order in which they were found.
    """

    all_rows: int
    rows: int = 0
    duplicates: int = 0
    rejects: list[Reject] = field(default_factory=list, repr=False)


class Stream:
    """The users of one file.

    Args:
        path: CSV (plain or gzipped) or Parquet.
        contract: As the release has it.
        mapping: Translation from the merchant's columns, codes and units.

    Raises:
        ShardError: If the file cannot be used at all; names file and column, never a value.
    """

    def __init__(self, path: Path, contract: Contract, mapping: ShardMapping) -> None:
        self._path, self._contract, self._mapping = path, contract, mapping
        with open_table(path) as table:
            layout = self._layout(table.columns)
            marks = array("q")
            for _, cells in table.rows:
                marks.append(_mark(layout, cells))
        found, times = np.unique(np.array(marks, np.int64), return_counts=True)
        several = times > 1
        self._trace = _trace(marks)
        self._left = dict(zip(found[several].tolist(), times[several].tolist(), strict=True))
        self.counts = Counts(all_rows=len(marks))

    def blocks(self, size: int) -> Iterator[list[Scored]]:
        """All users, `size` at a time and the rest at the end. Can be read once.

        Raises:
            ShardError: If the file has changed since the stream was made, or cannot be read on.
        """
        block: list[Scored] = []
        for scored in self._users():
            block.append(scored)
            if len(block) == size:
                yield block
                block = []
        if block:
            yield block

    def _users(self) -> Iterator[Scored]:
        """Each user when the last row with the same mark was read."""
        counts, user = self.counts, self._contract.record.user
        pending: dict[int, dict[str, list[tuple[int, Row]]]] = {}
        trace = 0
        with open_table(self._path) as table:
            layout = self._layout(table.columns)
            for number, cells in table.rows:
                counts.rows = number
                mark = _mark(layout, cells)
                trace = _trace([mark], trace)
                self._expect(mark)
                if isinstance(cells, str):
                    counts.rejects.append(Reject(row=number, field="", reason=cells))
                elif is_missing(cells[layout.user]):
                    reason = "user id missing"
                    counts.rejects.append(Reject(row=number, field=user, reason=reason))
                else:
                    own = pending.setdefault(mark, {})
                    own.setdefault(code_of(cells[layout.user]), []).append((number, cells))
                if mark not in self._left:
                    for user_id, rows in pending.pop(mark, {}).items():
                        yield from self._one(layout, user_id, rows)
        if (counts.rows, trace) != (counts.all_rows, self._trace):
            raise ShardError(f"{self._path}: has changed while it was read")

    def _expect(self, mark: int) -> None:
        """One row less of those that share this mark, where there are several."""
        if mark in self._left:
            self._left[mark] -= 1
            if not self._left[mark]:
                del self._left[mark]

    def _one(self, layout: Layout, user_id: str, rows: list[tuple[int, Row]]) -> Iterator[Scored]:
        example, rejects, repeated = read_user(self._contract, layout, user_id, rows, Counter())
        self.counts.rejects += rejects
        self.counts.duplicates += repeated
        if example is not None:
            raw = dict(rows)[example.row][layout.user]
            yield Scored(user=raw if isinstance(raw, str) else user_id, example=example)

    def _layout(self, columns: tuple[str, ...]) -> Layout:
        return find_layout(self._path, columns, self._contract, self._mapping, require_label=False)


def _mark(layout: Layout, cells: Row | str) -> int:
    """64 bits of a user id, equal for equal ids; two ids may share them. -1: no id."""
    if isinstance(cells, str) or is_missing(cells[layout.user]):
        return -1
    return hash(code_of(cells[layout.user]))


def _trace(marks: Iterable[int], trace: int = 0) -> int:
    """64 bits of a sequence of marks, to see that two readings gave the same."""
    for mark in marks:
        trace = (trace * 1_000_003 + mark) % 2**64
    return trace
