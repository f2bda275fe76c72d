"""Trials over their seeds: one row for an arm at one ε on one setting."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, fields

from credit_simulations.results.arms import ascending, order
from credit_simulations.results.trials import Setting, Trial


@dataclass(frozen=True, kw_only=True)
class Row:
    """Means over seeds; the fields are the columns of every table and of JSON.

    Attributes:
        epsilon: The budget; None without DP.
        auc_sd: Sample standard deviation over seeds; None for one seed.
        in_holder_auc_mean: None where no trial has it.
        seeds: How many trials.
        seconds: Wall time of all of them together.
    """

    data: str
    holders: int
    partition: str
    epsilon: float | None
    arm: str
    auc_mean: float
    auc_sd: float | None
    ks_mean: float
    in_holder_auc_mean: float | None
    seeds: int
    seconds: float


COLUMNS = tuple(field.name for field in fields(Row))

Groups = dict[tuple[Setting, str, float | None], list[Trial]]
"""(setting, arm, ε) -> its trials, by seed."""


def groups(trials: Iterable[Trial]) -> Groups:
    """Trials by what their row is of, in the order in which rows are read."""
    found: Groups = {}
    for trial in sorted(trials, key=_key):
        found.setdefault((trial.setting, trial.arm, trial.epsilon), []).append(trial)
    return found


def rows(trials: Iterable[Trial]) -> list[Row]:
    """One row for each arm at each ε on each setting."""
    return [
        Row(
            data=setting.data,
            holders=setting.holders,
            partition=setting.partition,
            epsilon=epsilon,
            arm=arm,
            auc_mean=statistics.fmean(t.auc for t in found),
            auc_sd=statistics.stdev(t.auc for t in found) if len(found) > 1 else None,
            ks_mean=statistics.fmean(t.ks for t in found),
            in_holder_auc_mean=mean_of(t.in_holder_auc for t in found),
            seeds=len(found),
            seconds=math.fsum(t.seconds for t in found),
        )
        for (setting, arm, epsilon), found in groups(trials).items()
    ]


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None without any."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def settings(trials: Iterable[Trial]) -> dict[str, list[Setting]]:
    """Data set -> its settings; natural holders first, then as they are named."""
    found = sorted({trial.setting for trial in trials}, key=_setting_key)
    return {data: [s for s in found if s.data == data] for data in {s.data: None for s in found}}


def _setting_key(setting: Setting) -> tuple[str, bool, str, int]:
    # Of several sizes of one partition, the biggest is the one a page opens with.
    return setting.data, setting.partition != "natural", setting.partition, -setting.holders


def _key(trial: Trial) -> tuple[object, ...]:
    place = (*_setting_key(trial.setting), *order(trial.arm))
    return (*place, ascending(trial.epsilon), trial.seed)
