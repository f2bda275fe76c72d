"""Seconds and memory that rounds of trivial holders take over LoopGrid and over its peers."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from credit_common.errors import CreditError
from credit_common.extras import install
from credit_simulations.bench.child import run_child
from credit_simulations.bench.measured import Measured, Value
from credit_simulations.bench.peers import SYSTEMS, installed

LOOP, RAY, PFL = "loop", "ray", "pfl"
GATES = tuple(name for name in SYSTEMS if name not in (LOOP, RAY, PFL))
BUDGETED = 13
"""Timed rounds at most with gates: the contract's budget is for 15."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a system in a process of its own.

    Attributes:
        start_s: From the start of the process to the end of the first round.
        seconds: Of each round after the first; the last one, which evaluates, is left out.
        peak_mib: Sum of the processes' peaks of resident memory.
    """

    start_s: float
    seconds: tuple[float, ...]
    peak_mib: float


def measure_rounds(holders: Sequence[int], repeats: int, *, rounds: int | None = None) -> Measured:
    """Run all systems that are installed, taking turns, at each number of holders.

    Args:
        holders: How many holders; ratios are at the fewest, growth is up to the most.
        repeats: Runs of each system at each number.
        rounds: Timed rounds a run; None takes 600 holders' worth, within 3 and 30.

    Raises:
        CreditError: If there is no holder or run to measure, or a run fails or takes too long.
    """
    if not holders or min(*holders, repeats) < 1:
        raise CreditError("--holders and --repeats must be at least 1")
    holders = sorted(set(holders))
    systems = [name for name in SYSTEMS if installed(name)]
    cells = [(n, name) for n in holders for name in systems if name not in GATES or n == holders[0]]
    runs: dict[tuple[int, str], list[Run]] = {cell: [] for cell in cells}
    for _ in range(repeats):
        for n, name in cells:
            timed = rounds or min(max(600 // n, 3), 30)
            runs[n, name].append(_run(name, n, min(timed, BUDGETED) if name in GATES else timed))
    told = " ".join(map(str, holders))
    return Measured(
        title="rounds of trivial holders",
        command=f"credit-sim bench rounds --holders {told} --repeats {repeats}",
        figures=_figures(runs, holders),
        rows=[_row(n, name, runs[n, name]) for n, name in cells],
        notes=_notes(),
    )


def _run(system: str, holders: int, timed: int) -> Run:
    call = f"main({system!r}, {holders}, {timed + 2})"
    code = f"from credit_simulations.bench.peers import main; {call}"
    started = time.time()
    # One thread for each process, as in all measurements; Ray starts a worker a CPU.
    said = run_child(
        f"{system} with {holders} holders", code, environment={"PYTHONWARNINGS": "ignore"}
    )
    facts = json.loads(said.splitlines()[-1])
    seen = facts["rounds"]
    return Run(
        start_s=seen[0][0] - started,
        seconds=tuple(seen[i][0] - seen[i - 1][1] for i in range(1, len(seen) - 1)),
        peak_mib=facts["peak_mib"],
    )


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(seconds for run in runs for seconds in run.seconds)


def _row(holders: int, system: str, runs: Sequence[Run]) -> dict[str, Value]:
    seconds = _median(runs)
    return {
        "system": system,
        "holders": holders,
        "seconds_per_round": round(seconds, 5),
        "ms_per_holder": round(1e3 * seconds / holders, 4),
        "peak_mib": round(max(run.peak_mib for run in runs), 1),
        "start_s": round(statistics.median(run.start_s for run in runs), 2),
    }


def _figures(
    runs: Mapping[tuple[int, str], Sequence[Run]], holders: Sequence[int]
) -> dict[str, Value]:
    few, many = holders[0], holders[-1]

    def over_loop(system: str, n: int) -> float | None:
        if (n, system) not in runs:
            return None
        pairs = zip(runs[n, system], runs[n, LOOP], strict=True)
        return round(statistics.median(_median([a]) / _median([b]) for a, b in pairs), 3)

    small, large = runs[few, LOOP], runs[many, LOOP]
    return {
        "ray_over_loop": over_loop(RAY, few),
        "pfl_over_loop": over_loop(PFL, few),
        "pfl_over_loop_most_holders": over_loop(PFL, many),
        "growth": round((_median(large) / many) / (_median(small) / few), 3),
        "memory_growth_mib": round(
            max(run.peak_mib for run in large) - max(run.peak_mib for run in small), 1
        ),
    }


def _notes() -> list[str]:
    notes = [
        "seconds_per_round: median over rounds after the first, of a process of its own a run; "
        "start_s: from the start of the process to the end of the first round; peak_mib: sum of "
        "the peaks of all its processes, torch included.",
        "ray_over_loop, pfl_over_loop: their seconds a round over LoopGrid's with as many holders; "
        "growth: LoopGrid's time a holder with most holders over that with fewest.",
    ]
    missing = [name for name in (RAY, PFL) if not installed(name)]
    if missing:
        notes.append(
            f"Not measured, since not installed: {', '.join(missing)} ({install('peers')})."
        )
    return notes
