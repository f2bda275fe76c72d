"""Rows as Markdown, CSV, LaTeX and JSON, with AUC against ε, losses and published figures."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from credit_simulations.results.arms import ascending, label, level
from credit_simulations.results.claims import best_possible
from credit_simulations.results.grid import Grid
from credit_simulations.results.losses import loss_grid
from credit_simulations.results.published import Published, published
from credit_simulations.results.rows import COLUMNS, Row, groups
from credit_simulations.results.rows import rows as rows_of
from credit_simulations.results.sentences import answers_told
from credit_simulations.results.spoilt import spoilt_grid
from credit_simulations.results.trials import Setting, Trial


def rows_grid(rows: Sequence[Row]) -> Grid:
    """The rows themselves, numbers rounded for reading; all of them are in CSV and JSON."""
    cells = [
        (
            row.data,
            str(row.holders),
            row.partition,
            "none" if row.epsilon is None else level(row.epsilon),
            row.arm,
            *(
                _rounded(value)
                for value in (row.auc_mean, row.auc_sd, row.ks_mean, row.in_holder_auc_mean)
            ),
            str(row.seeds),
            f"{row.seconds:.1f}",
        )
        for row in rows
    ]
    return Grid(title="Means over seeds", heads=COLUMNS, cells=cells, left=5)


def pivot_grid(trials: Sequence[Trial]) -> Grid:
    """AUC against ε: a line for each arm on each setting, a column for each ε, mean ± sd.

    Below the arms of a setting of simulated data stands the best AUC that there can be.
    """
    grouped = groups(trials)
    lines: dict[tuple[Setting, str], dict[float | None, str]] = {}
    for row, (setting, arm, epsilon) in zip(rows_of(trials), grouped, strict=True):
        sd = "" if row.auc_sd is None else f" ± {row.auc_sd:.3f}"
        lines.setdefault((setting, label(arm)), {})[epsilon] = f"{row.auc_mean:.3f}{sd}"
    order = list(dict.fromkeys(setting for setting, _ in lines))
    for setting in order:
        best = best_possible(grouped, setting)
        if best is not None:
            lines[setting, "best possible"] = {None: f"{best:.3f}"}
    columns = sorted({epsilon for found in lines.values() for epsilon in found}, key=ascending)
    cells = [
        (s.data, s.partition, str(s.holders), name, *(found.get(c, "") for c in columns))
        for (s, name), found in sorted(lines.items(), key=lambda item: order.index(item[0][0]))
    ]
    heads = ("data", "partition", "holders", "arm", *(_head(column) for column in columns))
    return Grid(title="AUC against ε, mean ± sd over seeds", heads=heads, cells=cells, left=4)


def published_grid(rows: Iterable[Row]) -> Grid:
    """Published figures of the rows' data sets."""
    found = [figure for data in {row.data: None for row in rows} for figure in published(data)]
    return Grid(
        title="Published AUC, not of this sweep",
        heads=("data", "what", "source", "ε", "AUC"),
        cells=[_cited(figure) for figure in found],
        left=3,
    )


def as_json(rows: Iterable[Row]) -> str:
    """A list of objects with the columns of `COLUMNS`."""
    return json.dumps([asdict(row) for row in rows])


def as_csv(rows: Iterable[Row]) -> str:
    """All digits; a cell is empty where there is no figure, or no DP."""
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return written.getvalue()


def grids(trials: Sequence[Trial]) -> list[Grid]:
    """Tables that have a line: rows, pivot, what DP costs, spoilt records, published figures."""
    rows = rows_of(trials)
    every = (
        rows_grid(rows),
        pivot_grid(trials),
        loss_grid(trials),
        spoilt_grid(trials),
        published_grid(rows),
    )
    return [grid for grid in every if grid.cells]


def as_markdown(trials: Sequence[Trial]) -> str:
    """Both answers for each setting, and all tables."""
    told = "".join(f"- {_markdown(line)}\n" for line in answers_told(trials))
    return "\n".join(filter(None, [told, *map(grid_markdown, grids(trials))]))


def as_latex(trials: Sequence[Trial]) -> str:
    """The same for LaTeX, with booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(grid_latex, grids(trials)))


def grid_markdown(grid: Grid) -> str:
    """One table of Markdown under its title."""
    rules = ["---" if i < grid.left else "---:" for i in range(len(grid.heads))]
    lines = [
        f"| {' | '.join(_markdown(cell) for cell in line)} |" for line in (grid.heads, *grid.cells)
    ]
    lines.insert(1, f"|{'|'.join(rules)}|")
    return f"**{grid.title}**\n\n" + "\n".join(lines) + "\n"


def grid_latex(grid: Grid) -> str:
    """One tabular with its title as caption."""
    sides = "l" * grid.left + "r" * (len(grid.heads) - grid.left)
    head, *lines = [
        " & ".join(_latex(cell) for cell in line) + r" \\" for line in (grid.heads, *grid.cells)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(grid.title)}}}",
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _cited(figure: Published) -> tuple[str, ...]:
    spent = "none" if figure.epsilon is None else level(figure.epsilon)
    return figure.data, figure.what, figure.source, spent, f"{figure.auc:.3f}"


def _head(epsilon: float | None) -> str:
    return "no DP" if epsilon is None else f"ε = {level(epsilon)}"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _markdown(text: str) -> str:
    """One cell: nothing in it ends the cell or the line, or is markup."""
    flat = " ".join(text.split())
    # Between letters an underscore is one, and names stay readable where Markdown is not rendered.
    return re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<>|~$&]", lambda found: f"\\{found[0]}", flat)


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "ε": r"$\varepsilon$",
    "∞": r"$\infty$",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _latex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))
