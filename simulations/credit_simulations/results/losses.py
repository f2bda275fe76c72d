"""What ε costs in AUC, beside what the same noise cost a linear model."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from credit_simulations.results.arms import ascending, label, level
from credit_simulations.results.grid import Grid
from credit_simulations.results.rows import groups
from credit_simulations.results.trials import Trial

WITHOUT_DP = {"central_dp": "central"}
"""Arm -> the arm that is the same training without DP; other arms are their own."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Losses of a logistic regression, measured once before this system was built.

    It is trained by noised gradient descent on binned numbers and, with text, on frozen [CLS], at
    natural holders.

    Attributes:
        what: Its inputs, and where the noise is added.
        losses: ε -> AUC without DP less AUC at ε.
    """

    data: str
    what: str
    losses: Mapping[float, float]


_ONCE, _EACH = "noise once", "noise at each holder"
LINEAR = (
    Linear(data="pakdd2009", what=f"wide, {_ONCE}", losses={8: 0.000, 3: 0.000, 1: 0.001}),
    Linear(data="pakdd2009", what=f"wide, {_EACH}", losses={8: 0.003, 3: 0.010, 1: 0.024}),
    Linear(data="lendingclub", what=f"wide, {_ONCE}", losses={8: 0.000, 3: -0.001, 1: 0.004}),
    Linear(data="lendingclub", what=f"wide, {_EACH}", losses={8: 0.005, 3: 0.008, 1: 0.020}),
    Linear(data="lendingclub", what=f"with text, {_ONCE}", losses={8: 0.002, 3: 0.005, 1: 0.017}),
    Linear(data="lendingclub", what=f"with text, {_EACH}", losses={8: 0.010, 3: 0.022, 1: 0.052}),
)


def loss_grid(trials: Iterable[Trial]) -> Grid:
    """AUC without DP less AUC at ε, mean over the seeds of both; a linear model's losses below."""
    grouped = groups(trials)
    epsilons = sorted({e for _, _, e in grouped if e is not None}, key=ascending)
    lines: dict[tuple[str, str, str, str], dict[float, float]] = {}
    for (setting, arm, epsilon), found in grouped.items():
        without = grouped.get((setting, WITHOUT_DP.get(arm, arm), None), [])
        auc = {trial.seed: trial.auc for trial in without}
        lost = [auc[trial.seed] - trial.auc for trial in found if trial.seed in auc]
        if epsilon is not None and lost:
            where = (setting.data, setting.partition, str(setting.holders), label(arm))
            lines.setdefault(where, {})[epsilon] = statistics.fmean(lost)
    for linear in LINEAR:
        if any(data == linear.data and partition == "natural" for data, partition, *_ in lines):
            lines[linear.data, "natural", "", f"linear model: {linear.what}"] = dict(linear.losses)
    known = {data: place for place, data in enumerate(dict.fromkeys(key[0] for key in lines))}
    ordered = sorted(lines.items(), key=lambda item: known[item[0][0]])  # stable: linear ones last
    return Grid(
        title="AUC lost to DP, beside a linear model under the same noise",
        heads=("data", "partition", "holders", "arm", *(f"ε = {level(e)}" for e in epsilons)),
        cells=[
            (*where, *("" if e not in lost else f"{lost[e]:+.3f}" for e in epsilons))
            for where, lost in ordered
        ],
        left=4,
    )
