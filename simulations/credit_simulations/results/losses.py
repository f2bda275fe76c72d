"""What ε costs in AUC, beside what the same noise cost a linear model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from credit_simulations.results.arms import ascending, label, level
from credit_simulations.results.grid import Grid
from credit_simulations.results.rows import Row

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


def loss_grid(rows: Iterable[Row]) -> Grid:
    """AUC without DP less AUC at ε, by means over seeds; a linear model's losses below."""
    told = {(r.data, r.partition, r.holders, r.arm, r.epsilon): r.auc_mean for r in rows}
    epsilons = sorted({key[-1] for key in told if key[-1] is not None}, key=ascending)
    lines: dict[tuple[str, str, str, str], dict[float, float]] = {}
    for (data, partition, holders, arm, epsilon), auc in told.items():
        open_ = told.get((data, partition, holders, WITHOUT_DP.get(arm, arm), None))
        if epsilon is not None and open_ is not None:
            line = lines.setdefault((data, partition, str(holders), label(arm)), {})
            line[epsilon] = open_ - auc
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
