"""Scores into a file, CSV or Parquet by its name's ending; it appears when it is complete."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from credit_client.complete import draft_of

Kinds = Mapping[str, type]
"""Column -> int, float or str, in order."""

DECIMALS = {"points": 1}
"""Decimals in a CSV; six for other numbers."""


class Sink(Protocol):
    """Takes lines."""

    def write(self, lines: Sequence[Sequence[object]]) -> None:
        """Append lines, each with a cell for every column; None is empty."""


def is_parquet(path: Path) -> bool:
    """Whether a file of this name is to be Parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


@contextmanager
def open_sink(path: Path, kinds: Kinds) -> Iterator[Sink]:
    """A file beside `path` that takes its place when the block ends without an error.

    It is for its owner's eyes alone.

    Raises:
        ShardError: If it cannot be written.
    """
    with draft_of(path, "the scores") as draft:
        if is_parquet(path):
            with _Parquet(draft, kinds) as parquet:
                yield parquet
        else:
            with draft.open("w", encoding="utf-8", newline="") as file:
                yield _Csv(file, kinds)


class _Csv:
    def __init__(self, file: Any, kinds: Kinds) -> None:
        self._writer = csv.writer(file)
        self._forms = [
            f".{DECIMALS.get(name, 6)}f" if kind is float else "" for name, kind in kinds.items()
        ]
        self._writer.writerow(list(kinds))

    def write(self, lines: Sequence[Sequence[object]]) -> None:
        for line in lines:
            self._writer.writerow(
                ["" if c is None else format(c, f) for c, f in zip(line, self._forms, strict=True)]
            )


class _Parquet:
    def __init__(self, path: Path, kinds: Kinds) -> None:
        types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
        self._schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, lines: Sequence[Sequence[object]]) -> None:
        columns = [
            pa.array([line[place] for line in lines], field.type)
            for place, field in enumerate(self._schema)
        ]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
