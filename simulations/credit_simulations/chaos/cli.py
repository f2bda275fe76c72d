"""`credit-sim chaos`: its command line and what it shows."""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from credit_common.command import FORMATS
from credit_common.errors import ContractError

if TYPE_CHECKING:
    from credit_simulations.chaos.campaign import Row
    from credit_simulations.chaos.kills import Killed

POINTS = 20


def add_chaos(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    chaos = commands.add_parser(
        "chaos",
        help="runs of real processes that are killed, over lines that fail, with a liar",
        description="Six holders over mutual TLS, ten rounds: holders and coordinator are killed "
        "and started again, lines drop, delay and truncate, one holder lies. Odd runs are private "
        "and their ledgers are checked; even ones are open and their AUC is held against a calm "
        "run. Exit code 1 if a round is lost or counted twice, a ledger is below the truth, or the "
        "AUC is further away than .01.",
    )
    chaos.add_argument("--runs", type=int, default=10, metavar="N", help="how many runs (10)")
    chaos.add_argument(
        "--kills",
        type=int,
        nargs="?",
        const=POINTS,
        metavar="N",
        help=f"instead: N random kill points of the coordinator, N of a holder ({POINTS})",
    )
    chaos.add_argument(
        "--seed", type=int, default=0, help="of the faults (0), never of the mechanism"
    )
    chaos.add_argument("--lies", nargs="+", metavar="KIND", help="what the liar tells")
    chaos.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs' folders there")
    chaos.add_argument("--format", default="table", choices=FORMATS)
    chaos.set_defaults(command=_chaos)


def _chaos(options: argparse.Namespace) -> int:
    for name in ("runs", "kills"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ContractError(f"--{name} {value}: must be at least 1")
    from credit_simulations.processes import ended_by_signals

    with ended_by_signals():
        failures = _killed(options) if options.kills else _weathered(options)
    for failure in failures:
        _say(f"credit-sim: {failure}")
    return 1 if failures else 0


def _weathered(options: argparse.Namespace) -> list[str]:
    import torch

    from credit_simulations.chaos.campaign import LIES, Campaign, run_chaos
    from credit_simulations.chaos.liar import LIES as KNOWN

    unknown = sorted(set(options.lies or ()) - set(KNOWN))
    if unknown:
        raise ContractError(f"--lies {unknown[0]}: must be among {', '.join(KNOWN)}")
    torch.set_num_threads(1)
    plan = Campaign(
        runs=options.runs, seed=options.seed, lies=options.lies or LIES, keep=options.keep
    )
    rows = run_chaos(
        plan,
        stage=lambda words: _say(f"chaos: {words}"),
        on_row=lambda row: _say(f"chaos: {_line(row)}"),
    )
    shown = summary(rows)
    if options.format == "json":
        print(json.dumps(shown))
    else:
        print("\n".join(_line(row) for row in rows))
        for name, value in shown.items():
            if name != "rows":
                print(f"{name:24} {'none' if value is None else value}")
    return [f"run {row.number}: {what}" for row in rows for what in row.failures]


def _killed(options: argparse.Namespace) -> list[str]:
    from credit_simulations.chaos.kills import run_kills

    home = options.keep or Path(tempfile.mkdtemp(prefix="credit-kills-"))
    result = run_kills(
        home / "kills",
        options.kills,
        seed=options.seed,
        on_event=lambda e: _say(f"chaos: {e.who} is killed") if e.what == "killed" else None,
    )
    shown = kills_summary(result)
    if options.format == "json":
        print(json.dumps(shown))
    else:
        for name, value in shown.items():
            print(f"{name:24} {value}")
    if result.failures:
        _say(f"chaos: what failed is kept in {home}")
    elif options.keep is None:
        shutil.rmtree(home)
    return result.failures


def summary(rows: "Sequence[Row]") -> dict[str, Any]:
    """One object for all runs: counts added up, the largest difference of AUC, and the rows."""
    from credit_simulations.chaos.checks import Findings

    found = sum((row.found for row in rows), Findings())
    differences = [r.auc_difference for r in rows if math.isfinite(r.auc_difference)]
    return {
        "runs": len(rows),
        "ended": sum(row.ended for row in rows),
        **vars(found),
        "releases_differing": sum(row.releases_differing for row in rows),
        "auc_difference_max": round(max(differences), 6) if differences else None,
        "wall_seconds": round(sum(row.trace.wall for row in rows), 1),
        "cpu_seconds": round(sum(row.trace.cpu for row in rows), 1),
        "rows": [
            {
                "run": row.number,
                "private": row.private,
                "ended": row.ended,
                "reason": row.reason,
                **vars(row.found),
                "releases_differing": row.releases_differing,
                "auc": _finite(row.auc),
                "auc_difference": _finite(row.auc_difference),
                "struck": dict(sorted(row.trace.struck.items())),
                "left_out": row.trace.left_out,
                "wall_seconds": round(row.trace.wall, 1),
                "cpu_seconds": round(row.trace.cpu, 1),
            }
            for row in rows
        ],
    }


def kills_summary(result: "Killed") -> dict[str, Any]:
    """One object for a run with kill points."""
    return {
        "runs": 1,
        "ended": int(result.trace.ended),
        "reason": result.reason,
        "points": result.points,
        **vars(result.found),
        "wall_seconds": round(result.trace.wall, 1),
        "cpu_seconds": round(result.trace.cpu, 1),
    }


def _line(row: "Row") -> str:
    kind = "private" if row.private else "open"
    struck = ", ".join(f"{n} {kind}" for kind, n in sorted(row.trace.struck.items()))
    auc = f"AUC {row.auc:.4f}, {row.auc_difference:.4f} from calm; " if row.auc > 0 else ""
    state = "; ".join(row.failures) or "nothing lost"
    return (
        f"run {row.number:>3} {kind:7}  {struck}; {auc}{state}; {row.trace.wall:.0f} s, of CPU "
        f"{row.trace.cpu:.0f} s"
    )


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
