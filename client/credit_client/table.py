"""A holder's file -> columns and rows, as they stand: CSV, gzipped CSV or Parquet.

The kind is told by the content, not by the name's ending. Errors name file and column; a cell's
content stands neither in them nor in their causes.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
BATCH = 4096  # rows of a Parquet file that are in memory at a time


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


@dataclass(frozen=True, kw_only=True)
class OpenTable:
    """A file that is read row by row.

    Attributes:
        columns: Names of the header, without surrounding blanks.
        rows: (number, cells) of each data row, from 1; of one that is not well-formed, the reason
            in place of its cells. Raises ShardError where the file cannot be read on.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[int, Row | str]]


def read_table(path: Path) -> Table:
    """Read a whole file; every cell of a CSV is text, cells of Parquet have Python types.

    Raises:
        ShardError: If the file cannot be read, is damaged, not UTF-8, or has no data row.
    """
    rows: list[tuple[int, Row]] = []
    malformed: list[tuple[int, str]] = []
    with open_table(path) as table:
        for number, cells in table.rows:
            if isinstance(cells, str):
                malformed.append((number, cells))
            else:
                rows.append((number, cells))
    return Table(columns=table.columns, rows=tuple(rows), malformed=tuple(malformed))


@contextmanager
def open_table(path: Path) -> Iterator[OpenTable]:
    """A file to be read row by row, of which little is in memory at a time.

    Raises:
        ShardError: As `read_table`; what is wrong further down, while its rows are read.
    """
    if path.is_dir():
        raise ShardError(f"{path} is a directory, not a shard file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ShardError(f"{path}: {_reason(error)}") from None
    with file:
        lines = _told(path, _lines(path, file))
        columns = next(lines)[1]
        assert not isinstance(columns, str)
        yield OpenTable(columns=tuple(map(str, columns)), rows=_some(path, lines))


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    """The header as number 0, then the data rows."""
    magic = file.read(4)
    file.seek(0)
    return _parquet(path, file) if magic == b"PAR1" else _text(path, file, magic)


def _told(path: Path, lines: Iterator[tuple[int, Row | str]]) -> Iterator[tuple[int, Row | str]]:
    """The same lines; what stops them is told in one line."""
    try:
        yield from lines
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise ShardError(f"{path}: {_reason(error)}") from None


def _some(path: Path, lines: Iterator[tuple[int, Row | str]]) -> Iterator[tuple[int, Row | str]]:
    """The same lines, at least one."""
    first = next(lines, None)
    if first is None:
        raise ShardError(f"{path}: has a header but no data row")
    yield first
    yield from lines


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return "is a damaged or truncated gzip file"
    assert isinstance(error, OSError)
    return f"cannot be read: {error.strerror or 'input/output error'}"


def _text(path: Path, file: BinaryIO, magic: bytes) -> Iterator[tuple[int, Row | str]]:
    plain = gzip.GzipFile(fileobj=file) if magic[:2] == b"\x1f\x8b" else file
    old = csv.field_size_limit(LARGEST_CELL)
    try:
        with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            if not first.strip():
                raise ShardError(f"{path}: is empty, or its first line is")
            yield from _csv(path, chain([first], text), max(DELIMITERS, key=first.count))
    finally:
        csv.field_size_limit(old)


def _csv(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, Row | str]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = tuple(name.strip() for name in next(reader))
    except csv.Error:
        raise ShardError(f"{path}: a quote in the header is never closed") from None
    yield 0, columns
    number = 0
    unclosed = "has an unclosed quote: lines below it would be lost"
    while True:
        line = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            number += 1
            if reader.line_num > line + 1:  # an open quote swallowed other rows
                raise ShardError(f"{path}: data row {number} {unclosed}") from None
            yield number, "a quote in the row is never closed or misplaced"
            continue
        if not cells:
            continue  # a blank line is no row
        number += 1
        if reader.line_num > line + 1 and _swallows(cells, len(columns), delimiter):
            raise ShardError(
                f"{path}: data row {number} {unclosed}, or a cell of several lines that could be "
                f"rows: take line breaks out of cells, or give Parquet"
            )
        if len(cells) == len(columns):
            yield number, tuple(cells)
        else:
            yield number, f"row has {len(cells)} cells, header has {len(columns)}"


def _swallows(cells: list[str], columns: int, delimiter: str) -> bool:
    """Whether a row of several lines may hold rows of others.

    In an export that does not quote, a cell that begins with a quote runs on to the next cell that
    ends with one; the rows in between are gone with nothing to show for it. Every user's row has
    `columns` cells: such a row has the delimiters of two rows or more, and a line that it took in
    has those of one. A text of several lines with as many is refused too, since nothing tells the
    two apart and a guess would let one user's cell remove other users; so is a row of several
    lines with another number of cells.

    Delimiters inside a cell of one line are the cell's own; before the first cell of several lines
    they count all the same, lest two quotes there hide some.
    """
    found, several = [0], False
    for place, cell in enumerate(cells):
        first, *others = re.split("\r\n|\r|\n", cell)
        several = several or bool(others)
        found[-1] += (place > 0) + (0 if several and not others else first.count(delimiter))
        found += [line.count(delimiter) for line in others]
    row = max(columns - 1, 1)
    return len(cells) != columns or (sum(found) >= 2 * row and max(found[1:]) >= row)


def _parquet(path: Path, file: BinaryIO) -> Iterator[tuple[int, Row | str]]:
    try:
        opened = pq.ParquetFile(file)
        names = tuple(name.strip() for name in opened.schema_arrow.names)
        batches = opened.iter_batches(BATCH)
    except (pa.ArrowException, OSError, ValueError):
        raise ShardError(f"{path}: is a damaged Parquet file") from None
    yield 0, names
    number = 1
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError):
            raise ShardError(f"{path}: is a damaged Parquet file") from None
        if batch is None:
            return
        columns = [
            _cells(path, name, column) for name, column in zip(names, batch.columns, strict=True)
        ]
        yield from enumerate(zip(*columns, strict=True), start=number)
        number += batch.num_rows


def _cells(path: Path, name: str, column: pa.Array) -> list[object]:
    try:
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            column = column.cast(pa.large_string())  # text of writers without a logical type
        cells: list[object] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        raise ShardError(f"{path}: column {name!r} has cells that cannot be read") from None
    return cells
