"""How a run looks: a live table on stderr, the arms on stdout, TensorBoard where it is wanted."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from credit_common.claim import told_epsilon
from credit_common.contract import Contract
from credit_common.errors import CreditError
from credit_common.extras import install
from credit_common.groups import compared
from credit_simulations.arms import ARMS
from credit_simulations.demo import DemoResult
from credit_simulations.federation import Progress
from credit_simulations.runs import RunResult, Watcher

SHOWN_ROUNDS = 12
"""Lines of the live table; older rounds scroll out."""
MEANING = {
    "federated": "this model, DP at each holder",
    "no_dp": "the same without DP",
    "wide_only": "wide part alone, same ε",
    "frozen_bert": "head and wide part on frozen BERT, same ε",
    "central_logistic": "logistic regression over all holders' data",
    "local_only": "logistic regression at each holder alone",
}


class RunView:
    """A live table of the run; use as a context manager."""

    def __init__(self, contract: Contract, tensorboard: Path | None) -> None:
        self.watcher = Watcher(stage=self._on_stage, note=self._on_note, round=self._on_round)
        self._contract = contract
        self._stage = "starting"
        self._lines: list[tuple[str, Progress]] = []
        self._arm = ""
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._writer = _writer(tensorboard) if tensorboard else None

    def __enter__(self) -> "RunView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if not self._console.is_terminal:
            self._console.line()  # without a terminal, rich leaves the last line open
        if self._writer:
            self._writer.close()

    def _on_stage(self, words: str) -> None:
        self._stage = words
        self._draw()

    def _on_note(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _on_round(self, arm: str, draw: int, progress: Progress) -> None:
        name = f"{arm} draw {draw}" if draw > 1 else arm
        if name != self._arm:
            self._arm, self._lines = name, []
        self._lines.append((name, progress))
        for gaps in progress.groups:
            self._on_note(f"{name}, by {gaps.field}: {compared(gaps)}")
        if self._writer:
            for figure, value in progress.figures.items():
                self._writer.add_scalar(f"{name}/{figure}", value, progress.round)
            if math.isfinite(progress.epsilon):
                self._writer.add_scalar(f"{name}/epsilon", progress.epsilon, progress.round)
        self._draw()

    def _draw(self) -> None:
        rounds = self._contract.training.rounds
        title = f"{self._contract.federation.name}: {self._stage}"
        if not self._lines:
            self._live.update(Text(title))
            return
        table = Table(title=title)
        figures = next((list(line.figures)[:2] for _, line in self._lines if line.figures), [])
        for column in ("arm", "round", "holders", *figures, "ε"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for name, line in self._lines[-SHOWN_ROUNDS:]:
            values = [f"{line.figures[f]:.3f}" if f in line.figures else "" for f in figures]
            spent = told_epsilon(line.epsilon, 2) if math.isfinite(line.epsilon) else "none"
            table.add_row(name, f"{line.round}/{rounds}", str(line.holders), *values, spent)
        self._live.update(table)


def summary(result: RunResult) -> None:
    """Print the arms side by side on stdout, and what their ε means."""
    means = result.means()
    figures = _figures(means)
    table = Table(title=f"{result.contract.federation.name}: {len(result.users)} holders")
    for column in ("arm", "what it is", "ε", *figures, "KiB up", "s"):
        table.add_column(column, justify="left" if column in ("arm", "what it is") else "right")
    for row in means.to_dict("records"):
        table.add_row(
            str(row["arm"]) + (f" x{row['draws']}" if row["draws"] > 1 else ""),
            MEANING[str(row["arm"])],
            "none" if pd.isna(row["epsilon"]) else told_epsilon(row["epsilon"], 2),
            *("" if pd.isna(row[f]) else f"{row[f]:.4f}" for f in figures),
            f"{row['bytes_up'] / 1024:.0f}" if row["bytes_up"] else "",
            f"{row['seconds']:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    privacy = result.contract.privacy
    if privacy.private:
        print(
            f"ε at δ = {privacy.delta:g}, for each user of a holder, add/remove of that user, by "
            "privacy loss distributions (dp-accounting), from the holders' ledgers."
        )
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in result.seconds.items())
    print(f"time: {parts}")


def demo_summary(result: DemoResult) -> None:
    """Print on stdout what the demo found, where everything is, and what to do next."""
    summary(result.run)
    found, home = result.newcomers, _short(result.home)
    # make does not put .venv/bin on the path
    commands = "" if shutil.which("flower-server") else f"{_short(Path(sys.executable).parent)}/"
    print(
        f"\n{len(found.shops)} shops that took no part and spent no ε, on their own hold-out users:"
        f"\nAUC {found.auc:.4f} of this model, {found.auc_local:.4f} of a logistic regression of "
        f"their own (means over shops); {found.gained} of {len(found.shops)} gain"
    )
    for name, reason in found.left_out.items():
        print(f"left out: {name}, {reason}")
    print(f"\nfirst records of {_short(result.shard)}, scored with the released model:")
    columns = (result.run.contract.record.user, "pd", "points")
    for record in ({column: column for column in columns}, *result.scored):
        print("  ".join(f"{record[column]:>14}" for column in columns))
    print(
        f"\nreleased model  {_short(result.live.release)}"
        f"\nledgers         {home}/SHOP/SHOP.ledger"
        f"\nlogs            {home}/coordinator/flower-server.log, {home}/SHOP/credit-client.log"
        f"\nscores          {home}/scores.csv"
        f"\n\nnext:\n  {commands}flower-server status --home {home}/coordinator"
        f"\n  {commands}credit-client score --release {_short(result.live.release)} "
        f"--shard {_short(result.shard)} --out all-scores.csv"
        f"\n  XDG_STATE_HOME={result.home.absolute()}/state {commands}credit-client report "
        f"--home {_short(result.shard.parent)}"
        '\n  on two machines: README, section "Two machines"'
        f"\n\n{result.seconds:.0f} s in all"
    )


def write_demo_json(result: DemoResult) -> None:
    """Print one JSON object on stdout."""
    rows = {row["arm"]: row for row in _records(result.run.table)}
    history, found = result.live.outcome.history, result.newcomers

    def figure(arm: str, column: str) -> Any:
        return rows[arm][column] if arm in rows else None

    shown = {
        "contract": result.run.contract.federation.name,
        "digest": result.run.contract.digest,
        "rounds": history[-1].round,
        "holders": min(line.holders for line in history),
        "auc": figure("federated", "auc"),
        "ks": figure("federated", "ks"),
        "auc_released": figure("federated", "auc_released"),
        "auc_released_low": figure("federated", "auc_released_low"),
        "auc_released_high": figure("federated", "auc_released_high"),
        **{f"auc_{arm}": figure(arm, "auc") for arm in ARMS[1:5]},
        "auc_in_shop": figure("federated", "auc_in_holder"),
        "auc_local_only": figure("local_only", "auc_in_holder"),
        "auc_newcomer": found.auc,
        "auc_newcomer_local": found.auc_local,
        "newcomers": len(found.shops),
        "newcomers_gained": found.gained,
        "newcomers_left_out": dict(found.left_out),
        "epsilon": result.live.outcome.epsilon,
        "delta": result.run.contract.privacy.delta,
        "bytes_up_per_round": result.live.outcome.bytes_up,
        "scored": [dict(record) for record in result.scored],
        "seconds": round(result.seconds, 2),
        "seconds_by_part": {part: round(s, 2) for part, s in result.run.seconds.items()},
        "home": str(result.home),
        "release": str(result.live.release),
    }
    absent = {k: None for k, v in shown.items() if isinstance(v, float) and not math.isfinite(v)}
    print(json.dumps({**shown, **absent}))


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def write_markdown(result: RunResult) -> None:
    """Print the arms as a Markdown table on stdout, for documents."""
    means = result.means()
    figures = _figures(means)
    print("| arm | what it is | ε | " + " | ".join(figures) + " |")
    print("|---|---" + "|---:" * (1 + len(figures)) + "|")
    for row in means.to_dict("records"):
        values = ["" if pd.isna(row[f]) else f"{row[f]:.4f}" for f in figures]
        spent = "none" if pd.isna(row["epsilon"]) else told_epsilon(row["epsilon"], 2)
        print(f"| {' | '.join([str(row['arm']), MEANING[str(row['arm'])], spent, *values])} |")


def _figures(means: pd.DataFrame) -> list[str]:
    others = ("arm", "draws", "epsilon", "bytes_up", "seconds")
    columns = [str(column) for column in means.columns if column not in others]
    return [column for column in columns if not column.endswith(("_low", "_high"))]


def write_json(result: RunResult) -> None:
    """Print one JSON object on stdout: contract, holders, arms (means over draws) and every row."""
    print(
        json.dumps(
            {
                "contract": result.contract.federation.name,
                "digest": result.contract.digest,
                "delta": result.contract.privacy.delta,
                "holders": {
                    name: {"train": train, "holdout": holdout}
                    for name, (train, holdout) in result.users.items()
                },
                "arms": _records(result.means()),
                "rows": _records(result.table),
                "seconds": {part: round(s, 2) for part, s in result.seconds.items()},
            }
        )
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(k): None if pd.isna(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CreditError(f"--tensorboard needs tensorboard: {install('tensorboard')}") from None
    return SummaryWriter(str(folder))
