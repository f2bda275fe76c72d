"""How attacks look: a table a federation, JSON rows, or Markdown, on stdout."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from credit_simulations.attack.run import Row

MEANING = (
    "AUC of the released model over all hold-out users with so many liars, and what they changed "
    "(in brackets, against the same aggregation, split and ε without them); the mean over seeds. "
    "broken: a model without numbers, or a run that ended early. stock: Flower's FedAvg as it "
    "comes, with no quarantine, server momentum or running average."
)


def attack_summary(rows: Sequence[Row]) -> None:
    """Print one table a federation."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    for title, heads, lines in _grids(rows):
        table = Table(title=title)
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    print(MEANING)


def write_markdown(rows: Sequence[Row]) -> None:
    """Print the same for documents."""
    for title, heads, lines in _grids(rows):
        print(f"**{title}**\n")
        print(f"| {' | '.join(heads)} |")
        print("|---" + "|---:" * (len(heads) - 1) + "|")
        for line in lines:
            print(f"| {' | '.join(line)} |")
        print()
    print(MEANING)


def write_json(rows: Sequence[Row]) -> None:
    """Print one JSON object: `rows`, one for each run with liars."""
    print(json.dumps({"rows": [asdict(row) for row in rows]}))


def shown(auc: float | None) -> str:
    """An AUC, or what stands for one that is not there."""
    return "broken" if auc is None else f"{auc:.4f}"


def _grids(rows: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and lines of each federation."""
    grids = []
    for holders, liars, epsilon in dict.fromkeys((r.holders, r.attackers, r.epsilon) for r in rows):
        own = [r for r in rows if (r.holders, r.attackers) == (holders, liars)]
        aggregators = list(dict.fromkeys(r.aggregator for r in own))
        lines = [["none", *(_clean([r for r in own if r.aggregator == a]) for a in aggregators)]]
        for attack in dict.fromkeys(r.attack for r in own):
            cells = [
                _cell([r for r in own if (r.attack, r.aggregator) == (attack, a)])
                for a in aggregators
            ]
            lines.append([attack, *cells])
        budget = "no DP" if epsilon is None else f"ε {epsilon:g}"
        title = f"{holders} holders, {liars} of whom lie{'s' if liars == 1 else ''}, {budget}"
        grids.append((title, ["attack", *aggregators], lines))
    return grids


def _clean(rows: Sequence[Row]) -> str:
    by_seed = {row.seed: row.auc_clean for row in rows}
    return shown(_mean(list(by_seed.values())))


def _cell(rows: Sequence[Row]) -> str:
    auc = _mean([row.auc for row in rows])
    clean = _mean([row.auc_clean for row in rows])
    if auc is None or clean is None:
        return shown(auc)
    return f"{auc:.4f} ({auc - clean:+.4f})"


def _mean(found: Sequence[float | None]) -> float | None:
    """The mean; None where one is not there."""
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
