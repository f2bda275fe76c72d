"""A whole sweep: the trials that are not finished yet, and results.jsonl as they come."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from credit_common.errors import CreditError
from credit_simulations.sweep.plan import WITHOUT_TEXT, Entry, Sweep, Trial
from credit_simulations.sweep.users import data_sha256, entry_contract
from credit_simulations.sweep.workers import Done, Task, by_processes, by_ray, said

RESULTS = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a sweep stands after a trial.

    Attributes:
        trial: That was finished, in words.
        line: Its line; None where the contract has no use for the arm.
        finished, total: Trials, those of earlier runs included.
        left_seconds: An estimate of the wall time that is left; None before there is one.
    """

    trial: str
    line: dict[str, Any] | None
    finished: int
    total: int
    left_seconds: float | None


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    processes: int,
    ray: str | None = None,
    on_trial: Callable[[Progress], None] = lambda progress: None,
) -> list[dict[str, Any]]:
    """Run what is not finished and return every line of the sweep, in the order of its trials.

    Args:
        sweep: What to run.
        folder: Where results.jsonl is, or will be.
        processes: Of this machine, one core each.
        ray: Address of a cluster, which is used instead.
        on_trial: Told after each trial.

    Raises:
        CreditError: If data cannot be had, a trial is refused, or the file cannot be written.
    """
    digests = _digests(sweep.trials())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    lines = read_lines(path)
    left = [trial for trial, digest in digests.items() if digest not in lines]
    tasks = _tasks(left)
    results = by_ray(tasks, ray) if ray else by_processes(tasks, processes)
    clock = _Clock(left, 1 if ray else processes)
    finished = len(digests) - len(left)
    for task, line in _kept(results, path, digests):
        if isinstance(task, Trial):
            lines[digests[task]] = line
            finished += 1
            clock.done(task, line)
            on_trial(
                Progress(
                    trial=said(task),
                    line=None if line.get("unused") else line,
                    finished=finished,
                    total=len(digests),
                    left_seconds=clock.left(),
                )
            )
    return [line for d in digests.values() if not (line := lines[d]).get("unused")]


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of results.jsonl by digest; a last line that a crash cut off is dropped from the file.

    Raises:
        CreditError: If another line is not one of a sweep.
    """
    if not path.exists():
        return {}
    whole = path.read_bytes()
    cut = whole.rfind(b"\n") + 1
    if cut < len(whole):
        os.truncate(path, cut)
    found = {}
    for number, text in enumerate(whole[:cut].splitlines(), 1):
        try:
            line = json.loads(text)
            found[line["digest"]] = line
        except (ValueError, KeyError, TypeError):
            raise CreditError(f"{path}, line {number}: not a result of a sweep") from None
    return found


def _kept(
    results: Iterator[Done], path: Path, digests: dict[Trial, str]
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Results, each once it is on the disk."""
    with path.open("ab") as file:
        for task, line in results:
            if isinstance(task, Trial):
                # An arm without use is a finished trial too, or it would be tried each time.
                line = line or {"digest": digests[task], "arm": task.arm, "unused": True}
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            yield task, line or {}


def _digests(trials: Sequence[Trial]) -> dict[Trial, str]:
    entries = {trial.entry for trial in trials}
    known = {entry: (entry_contract(entry), data_sha256(entry)) for entry in entries}
    return {trial: trial.digest(*known[trial.entry]) for trial in trials}


def _tasks(left: Sequence[Trial]) -> list[Task]:
    """Encoding first, the last data set's before the others': sets come by rising size in a file.

    A trial whose users are not encoded yet waits for it, so that this order is quick and no more.
    """
    texts = [trial.entry for trial in left if trial.arm not in WITHOUT_TEXT]
    entries: list[Entry] = list(dict.fromkeys(texts))
    return [*reversed(entries), *left]


class _Clock:
    """Time left, from the seconds of trials of the same arm."""

    def __init__(self, left: Sequence[Trial], workers: int) -> None:
        self._left = list(left)
        self._workers = workers
        self._took: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def done(self, trial: Trial, line: dict[str, Any]) -> None:
        self._left.remove(trial)
        for key in self._keys(trial):
            self._took[key].append(float(line.get("seconds", 0.0)))

    def left(self) -> float:
        total = 0.0
        for trial in self._left:
            took = next(t for key in self._keys(trial) if (t := self._took[key]))
            total += sum(took) / len(took)
        return total / self._workers

    def _keys(self, trial: Trial) -> list[tuple[str, ...]]:
        return [(trial.entry.name, trial.arm), (trial.arm,), ()]
