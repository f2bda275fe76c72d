"""`credit-sim sweep`: its command line and its progress."""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from credit_common.errors import ContractError, CreditError
from credit_common.extras import install
from credit_simulations.results.cli import STYLES, show

if TYPE_CHECKING:
    from credit_simulations.sweep.plan import Sweep
    from credit_simulations.sweep.run import Progress

PACKAGED = Path(__file__).parent.parent / "sweeps"
"""Sweep files that come with the project."""


def add_sweep(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    sweep = commands.add_parser(
        "sweep",
        help="AUC and KS against ε over data sets, holders and seeds, with all baselines",
        description="Run a sweep file: data sets x partitions x holders x arms x ε x seeds. "
        "Finished trials are kept in FOLDER/results.jsonl and never run again; the table goes to "
        "stdout. Without a file: four data sets, natural holders, ε 1, 3, 8 and none, five seeds.",
    )
    sweep.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="a sweep file (TOML), or the name of a packaged one: "
        + ", ".join(sorted(path.stem for path in PACKAGED.glob("*.toml"))),
    )
    size = sweep.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two data sets, three ε, two seeds")
    size.add_argument("--full", action="store_true", help="more ε, partitions and holders")
    sweep.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: credit-sweeps/NAME of the sweep"
    )
    sweep.add_argument("--data", nargs="+", metavar="NAME", help="only these of its data sets")
    sweep.add_argument("--arms", nargs="+", metavar="ARM", help="only these of its arms")
    sweep.add_argument("--folds", type=int, metavar="K", help="K-fold cross-validation, no seeds")
    sweep.add_argument(
        "--leave-one-out",
        action="store_true",
        help="newcomers are each holder in turn, by a federation of all others",
    )
    where = sweep.add_mutually_exclusive_group()
    where.add_argument(
        "--processes", type=int, metavar="N", help="on this machine (its number of cores)"
    )
    where.add_argument("--ray", metavar="ADDRESS", help="on a Ray cluster: auto, or HOST:PORT")
    sweep.add_argument("--format", default="table", choices=STYLES)
    sweep.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from credit_simulations.processes import ended_by_signals
    from credit_simulations.results.trials import read_trials
    from credit_simulations.sweep.plan import BASELINES
    from credit_simulations.sweep.run import RESULTS, run_sweep

    sweep = _asked(options)
    if set(sweep.arms) & set(BASELINES) and find_spec("sklearn") is None:
        raise CreditError(
            f"arms {', '.join(BASELINES)} need scikit-learn: {install('bench')}, "
            "or name others by --arms"
        )
    folder = options.out or Path("credit-sweeps") / sweep.name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if options.processes is not None and options.processes < 1:
        raise ContractError(f"--processes = {options.processes}: must be at least 1")
    with ended_by_signals():
        lines = run_sweep(
            sweep,
            folder,
            processes=options.processes or cores or 1,
            ray=options.ray,
            on_trial=_tell,
        )
    # Other options leave theirs in the same file.
    show(read_trials(folder / RESULTS, {line["digest"] for line in lines}), options.format)
    sys.stderr.write(f"sweep: {len(lines)} trials in {folder / RESULTS}\n")
    return 0


def _asked(options: argparse.Namespace) -> "Sweep":
    from credit_simulations.sweep.plan import load_sweep

    named = "quick" if options.quick else "full" if options.full else "results"
    if options.file is not None and (options.quick or options.full):
        raise ContractError("a sweep file is given, and --quick or --full too: one of them")
    asked = options.file or Path(named)
    packaged = PACKAGED / f"{asked}.toml"
    sweep = load_sweep(packaged if packaged.is_file() else asked)
    changes: dict[str, object] = {}
    if options.data:
        known = {entry.name for entry in sweep.data}
        odd = sorted(set(options.data) - known)
        if odd:
            raise ContractError(f"--data {odd[0]}: the sweep has {', '.join(sorted(known))}")
        changes["data"] = tuple(e for e in sweep.data if e.name in options.data)
    if options.arms:
        changes["arms"] = tuple(options.arms)
    if options.folds is not None:
        changes["folds"] = options.folds
    if options.leave_one_out:
        changes["leave_one_out"] = True
    return _changed(sweep, changes)


def _changed(sweep: "Sweep", changes: Mapping[str, object]) -> "Sweep":
    return replace(sweep, **changes)  # type: ignore[arg-type]  # names and types are checked above


def _tell(progress: "Progress") -> None:
    line = progress.line
    shown = "no use for it" if line is None else f"auc {line['auc']:.4f}, {line['seconds']:.0f} s"
    left = progress.left_seconds
    rest = "" if left is None else f"; about {_minutes(left)} left"
    sys.stderr.write(
        f"sweep: {progress.finished}/{progress.total} {progress.trial}: {shown}{rest}\n"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
