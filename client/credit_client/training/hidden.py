"""The frozen layers' output of a holder's texts: kept within the cache's limit, run anew past it.

Which rows are kept follows their order alone: the first ones, as long as they fit. Those past the
limit keep their tokens, and the frozen layers run for them at each use, in the same fixed shapes as
for the others. A row's output does not depend on the rows beside it, so that what is kept, and
where, changes no number, only the time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from credit_client.cache import Cache, CacheFile, Section
from credit_common.errors import CacheError

Tokens = list[NDArray[np.int64]]
Run = Callable[[Tokens, int], Iterator[Tensor]]
"""Texts and their padded length -> half-precision output (rows, length, hidden), part by part."""


class Rows(Protocol):
    """Kept rows of one padded length, half precision, on the CPU."""

    def put(self, start: int, rows: Tensor) -> None:
        """Keep rows from place `start` on; each place is filled once, in order."""

    def take(self, places: NDArray[np.intp]) -> Tensor:
        """The rows at some places."""


class Store:
    """Room for the kept rows of one holder; its training and hold-out users share the limit.

    Args:
        cache: Memory without a limit where it is left out.

    Attributes:
        kept, late, bytes: How many rows are kept, how many are run anew, and what the kept take.
        damage: What was wrong with the file when it was read, from then on.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache or Cache()
        self.kept = self.late = self.bytes = 0
        self.damage: CacheError | None = None
        self._file: CacheFile | None = None

    def admit(self, values: NDArray[np.int64]) -> int:
        """Take room for the first rows, as many as fit.

        Args:
            values: Half-precision numbers of each row.

        Returns:
            How many fit.
        """
        ends = np.cumsum([self.cache.row_bytes(int(n)) for n in values], dtype=np.int64)
        fit = len(values)
        if self.cache.limit is not None:
            fit = int(np.searchsorted(ends, self.cache.limit - self.bytes, side="right"))
        self.kept += fit
        self.late += len(values) - fit
        self.bytes += int(ends[fit - 1]) if fit else 0
        return fit

    def rows(self, n: int, shape: tuple[int, int]) -> Rows:
        """A place for n rows of one shape, which were admitted.

        Raises:
            CacheError: If the file cannot be made, or the disk has no room.
        """
        if self.cache.kind == "memory" or n == 0:
            return _InMemory(torch.empty(n, *shape, dtype=torch.half))
        if self._file is None:
            assert self.cache.folder is not None
            self._file = CacheFile(self.cache.folder)
        return _InFile(self, self._file, n, shape)

    def summary(self) -> str:
        """How many rows are kept where, for the holder's own eyes."""
        where = "in memory" if self._file is None else f"in {self._file.path}, encrypted"
        return (
            f"frozen layers' output of {self.kept} users kept {where} ({self.bytes:,} bytes), "
            f"of {self.late} users run anew at each use"
        )

    def close(self) -> None:
        """Delete the file, if there is one; its rows cannot be read any more."""
        if self._file is not None:
            self._file.close()

    def check(self) -> None:
        """Raise the damage that was found, if any."""
        if self.damage is not None:
            raise self.damage

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _InMemory:
    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def put(self, start: int, rows: Tensor) -> None:
        self._rows[start : start + len(rows)] = rows

    def take(self, places: NDArray[np.intp]) -> Tensor:
        return self._rows[torch.from_numpy(places)]


class _InFile:
    def __init__(self, store: Store, file: CacheFile, n: int, shape: tuple[int, int]) -> None:
        self._store, self._file, self._shape = store, file, shape
        self._section: Section = file.section(n, 2 * shape[0] * shape[1])

    def put(self, start: int, rows: Tensor) -> None:
        for place, row in enumerate(rows.numpy(), start):
            self._file.write(self._section, place, row.tobytes())

    def take(self, places: NDArray[np.intp]) -> Tensor:
        out = np.empty((len(places), *self._shape), np.float16)
        read: dict[int, int] = {}  # filling repeats a row
        for row, place in enumerate(places.tolist()):
            if place in read:
                out[row] = out[read[place]]
                continue
            try:
                self._file.read(self._section, place, memoryview(out[row]).cast("B"))
            except CacheError as error:
                self._store.damage = self._store.damage or error
                raise
            read[place] = row
        return torch.from_numpy(out)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The frozen layers' output of texts as it is handed on, in simulations.

    Attributes:
        counts: Tokens of each text, (n,) int64.
        rows: Padded length -> output (texts of that length, length or 1, hidden) half precision, on
            the CPU, in the texts' order.
    """

    counts: NDArray[np.int64]
    rows: Mapping[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Texts of one padded length, in order: the kept ones first, tokens of the others after."""

    counts: Tensor  # (n,), tokens of each text
    n: int
    kept: Rows
    late: Tokens


class Hidden:
    """The frozen layers' output of texts, by padded length and place.

    Args:
        tokens: Of each text, in order.
        lengths: Padded length of each text.
        width: Numbers of a token's output.
        cls_only: Whether a row is the first token's output alone, as where no layer is trained.
        run: The frozen layers. A row it gives must not depend on the others.
        store: Where rows are kept.
    """

    def __init__(
        self,
        tokens: Tokens,
        lengths: NDArray[np.int64],
        *,
        width: int,
        cls_only: bool,
        run: Run,
        store: Store,
    ) -> None:
        self._run = run
        self._buckets: dict[int, _Bucket] = {}
        before = store.bytes
        fit = store.admit(np.ones_like(lengths) * width if cls_only else lengths * width)
        self.bytes = store.bytes - before
        """What is kept of them."""
        kept: dict[int, Tokens] = {}
        for length in sorted(set(lengths.tolist())):
            members = np.flatnonzero(lengths == length)
            own = [tokens[i] for i in members]
            n = int((members < fit).sum())
            kept[length] = own[:n]
            self._buckets[length] = _Bucket(
                counts=torch.tensor([len(text) for text in own]),
                n=n,
                kept=store.rows(n, (1 if cls_only else length, width)),
                late=own[n:],
            )
        for length, own in kept.items():  # all room is taken before the long work
            start = 0
            for part in run(own, length):
                self._buckets[length].kept.put(start, part)
                start += len(part)

    @classmethod
    def of(cls, frozen: "Frozen", lengths: NDArray[np.int64]) -> "Hidden":
        """Texts whose output is known: it stays where it is, and nothing runs.

        Args:
            frozen: The output.
            lengths: Padded length of each text.
        """
        other = object.__new__(cls)
        other.bytes = sum(2 * rows.numel() for rows in frozen.rows.values())
        other._buckets = {
            length: _Bucket(
                counts=torch.from_numpy(frozen.counts[lengths == length]),
                n=len(rows),
                kept=_InMemory(rows),
                late=[],
            )
            for length, rows in frozen.rows.items()
        }
        return other

    def rows(self, length: int, places: NDArray[np.intp]) -> Tensor:
        """Output (n, length, hidden) half precision, on the CPU, of the texts at some places.

        Raises:
            CacheError: If the cache's file was damaged.
        """
        bucket = self._buckets[length]
        late = places >= bucket.n
        if not late.any():
            return bucket.kept.take(places)
        wanted = np.unique(places[late])
        fresh = torch.cat(list(self._run([bucket.late[i - bucket.n] for i in wanted], length)))
        out = torch.empty(len(places), *fresh.shape[1:], dtype=fresh.dtype)
        out[torch.from_numpy(late)] = fresh[np.searchsorted(wanted, places[late])]
        if not late.all():
            out[torch.from_numpy(~late)] = bucket.kept.take(places[~late])
        return out

    def masks(self, length: int, places: NDArray[np.intp]) -> Tensor:
        """(n, length) bool, False at padding."""
        counts = self._buckets[length].counts[torch.from_numpy(places)]
        return torch.arange(length) < counts[:, None]
