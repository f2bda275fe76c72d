"""What a benchmark returns, and how it looks: a table, one JSON object, or Markdown, on stdout."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

Value = float | int | str | bool | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One benchmark's result.

    Attributes:
        title: What was measured, in a line.
        command: The command that measures it again.
        figures: The ratios that the benchmark is read by; None where one could not be measured.
        rows: One an arm, all with the same keys; figures of one column share a unit, which its key
            names.
        notes: What a reader has to know: machine, versions, what was left out and why.
    """

    title: str
    command: str
    figures: Mapping[str, Value]
    rows: Sequence[Mapping[str, Value]]
    notes: Sequence[str] = field(default_factory=tuple)


def show(measured: Measured, style: str) -> None:
    """Print it on stdout.

    Args:
        measured: What to print.
        style: "table", "json" (one object: the figures, "rows", "notes", "command") or "markdown".
    """
    if style == "json":
        rest = {"command": measured.command, "notes": list(measured.notes)}
        print(json.dumps({**measured.figures, "rows": [dict(r) for r in measured.rows], **rest}))
    elif style == "markdown":
        _markdown(measured)
    else:
        _table(measured)


def _markdown(measured: Measured) -> None:
    columns = _columns(measured)
    print(f"| {' | '.join(columns)} |")
    print("|" + "|".join("---" if _is_text(measured, c) else "---:" for c in columns) + "|")
    for row in measured.rows:
        print(f"| {' | '.join(_cell(row[c]) for c in columns)} |")
    found = {name: value for name, value in measured.figures.items() if value is not None}
    print(f"\n{'; '.join(f'{name} {_cell(value)}' for name, value in found.items())}")
    print(f"\n{' '.join(measured.notes)}\n\n`{measured.command}`")


def _table(measured: Measured) -> None:
    table = Table(title=measured.title)
    columns = _columns(measured)
    for column in columns:
        table.add_column(column, justify="left" if _is_text(measured, column) else "right")
    for row in measured.rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for name, value in measured.figures.items():
        print(f"{name:24} {_cell(value) or 'not measured'}")
    for note in measured.notes:
        print(note)
    print(measured.command)


def _columns(measured: Measured) -> list[str]:
    """The columns in which anything was measured."""
    every = list(measured.rows[0]) if measured.rows else []
    return [name for name in every if any(row[name] is not None for row in measured.rows)]


def _is_text(measured: Measured, column: str) -> bool:
    return any(isinstance(row[column], str) for row in measured.rows)


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
