"""A holder's file -> columns and rows, as they stand: CSV, gzipped CSV or Parquet.

The kind is told by the content, not by the name's ending. Errors name file and column; a cell's
content stands neither in them nor in their causes.
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from credit_common.errors import ShardError

Row = tuple[object, ...]
DELIMITERS = (",", ";", "\t")
LARGEST_CELL = 1 << 26  # characters; a list of events is one cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file as it stands.

    Attributes:
        columns: Names of the header, without surrounding blanks.
        rows: (number, cells) of each well-formed row; numbers count data rows from 1.
        malformed: (number, reason) of the other rows.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int, Row], ...]
    malformed: tuple[tuple[int, str], ...] = ()

    @property
    def repeated(self) -> tuple[str, ...]:
        """Column names that stand more than once in the header."""
        return tuple(name for name, n in Counter(self.columns).items() if n > 1 and name)


def read_table(path: Path) -> Table:
    """Read a whole file; every cell of a CSV is text, cells of Parquet have Python types.

    Raises:
        ShardError: If the file cannot be read, is damaged, not UTF-8, or has no data row.
    """
    if path.is_dir():
        raise ShardError(f"{path} is a directory, not a shard file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            table = _parquet(path) if magic == b"PAR1" else _text(path, file, magic)
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise ShardError(f"{path}: {_reason(error)}") from None
    if not table.rows and not table.malformed:
        raise ShardError(f"{path}: has a header but no data row")
    return table


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return "is a damaged or truncated gzip file"
    assert isinstance(error, OSError)
    return f"cannot be read: {error.strerror or 'input/output error'}"


def _text(path: Path, file: BinaryIO, magic: bytes) -> Table:
    plain = gzip.GzipFile(fileobj=file) if magic[:2] == b"\x1f\x8b" else file
    old = csv.field_size_limit(LARGEST_CELL)
    try:
        with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            if not first.strip():
                raise ShardError(f"{path}: is empty, or its first line is")
            return _csv(path, chain([first], text), max(DELIMITERS, key=first.count))
    finally:
        csv.field_size_limit(old)


def _csv(path: Path, lines: Iterator[str], delimiter: str) -> Table:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = tuple(name.strip() for name in next(reader))
    except csv.Error:
        raise ShardError(f"{path}: a quote in the header is never closed") from None
    rows: list[tuple[int, Row]] = []
    malformed: list[tuple[int, str]] = []
    number = 0
    while True:
        line = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return Table(columns=columns, rows=tuple(rows), malformed=tuple(malformed))
        except csv.Error:
            number += 1
            if reader.line_num > line + 1:  # an open quote swallowed other rows
                raise ShardError(f"{path}: data row {number} has an unclosed quote") from None
            malformed.append((number, "a quote in the row is never closed or misplaced"))
            continue
        if not cells:
            continue  # a blank line is no row
        number += 1
        if len(cells) == len(columns):
            rows.append((number, tuple(cells)))
        else:
            reason = f"row has {len(cells)} cells, header has {len(columns)}"
            malformed.append((number, reason))


def _parquet(path: Path) -> Table:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError, ValueError):
        raise ShardError(f"{path}: is a damaged Parquet file") from None
    names = tuple(name.strip() for name in table.schema.names)
    columns = []
    for name, column in zip(names, table.columns, strict=True):
        try:
            if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
                column = column.cast(pa.large_string())  # text of writers without a logical type
            columns.append(column.to_pylist())
        except (pa.ArrowException, ValueError, OverflowError):
            raise ShardError(f"{path}: column {name!r} has cells that cannot be read") from None
    return Table(columns=names, rows=tuple(enumerate(zip(*columns, strict=True), start=1)))
