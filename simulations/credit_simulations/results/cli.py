"""`credit-sim report`: a results file as tables on stdout, and as one page with its figures."""

import argparse
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from credit_common.errors import CreditError
from credit_common.extras import install

if TYPE_CHECKING:
    from credit_simulations.results.trials import Trials

STYLES = ("table", "json", "markdown", "csv", "latex")


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the report to the command line."""
    report = commands.add_parser(
        "report",
        help="a sweep's results as tables, figures and one page",
        description="Read the trials that credit-sim sweep has finished, print a row for each arm "
        "at each ε with means over seeds, and write a page that says what a merchant gains over "
        "training alone and what ε costs. It may be run while the sweep goes on.",
    )
    report.add_argument("results", type=Path, metavar="RESULTS.jsonl", help="of credit-sim sweep")
    report.add_argument(
        "--out", type=Path, metavar="DIR", help="write index.html and its figures (PNG) there"
    )
    report.add_argument("--format", default="table", choices=STYLES)
    report.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from credit_simulations.results.explained import file_told
    from credit_simulations.results.trials import read_trials

    if options.out is not None and find_spec("matplotlib") is None:
        raise CreditError(f"--out needs matplotlib: {install('report')}")
    read = read_trials(options.results)
    print(f"{options.results}: {' '.join(file_told(read))}", file=sys.stderr)
    if options.out is not None:
        page = _write(read, options.out, options.results)
        print(f"wrote {page}", file=sys.stderr)
    show(read, options.format)
    return 0


def show(read: "Trials", style: str) -> None:
    """Print the rows of trials on stdout, in one of `STYLES`."""
    from credit_simulations.results import tables
    from credit_simulations.results.rows import rows

    found = rows(read.trials)
    if style == "table":
        _table(read)
        return
    write: dict[str, Callable[[], str]] = {
        "json": lambda: tables.as_json(found),
        "csv": lambda: tables.as_csv(found),
        "markdown": lambda: tables.as_markdown(read.trials),
        "latex": lambda: tables.as_latex(read.trials),
    }
    print(write[style]().rstrip("\n"))


def _write(read: "Trials", folder: Path, results: Path) -> Path:
    from credit_simulations.results.page import as_html
    from credit_simulations.results.plots import plots, write_plots

    drawn = plots(read.trials)
    write_plots(drawn, folder)
    command = shlex.join(["credit-sim", "report", str(results), "--out", str(folder)])
    page = folder / "index.html"
    try:
        page.write_text(as_html(read, drawn, command), encoding="utf-8")
    except OSError as error:
        raise CreditError(f"{page}: {error.strerror or 'cannot be written'}") from None
    return page


def _table(read: "Trials") -> None:
    """The rows, published figures and both answers, for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from credit_simulations.results.sentences import answers_told, shown
    from credit_simulations.results.tables import grids

    console = Console(width=None if sys.stdout.isatty() else 140)
    for grid in grids(read.trials):
        table = Table(title=grid.title)
        for number, head in enumerate(grid.heads):
            table.add_column(head, justify="left" if number < grid.left else "right")
        for line in grid.cells:
            table.add_row(*(Text(shown(cell)) for cell in line))
        console.print(table)
    for told in answers_told(read.trials):
        print(told)
