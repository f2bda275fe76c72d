"""What each cut-off of the PD would approve and cost, and what the cut-offs in force do.

Expected loss is PD x LGD x EAD (Basel Committee on Banking Supervision 2006, International
Convergence of Capital Measurement and Capital Standards, par. 375 and 376): here for each approved
user, in units of the exposure. The loss given default that stands for one nobody knows, .45, is
that of senior unsecured claims under the foundation IRB approach (the same, par. 287); banks that
use IRB for retail estimate their own, and so should a merchant who knows what is recovered.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.decision import Decision
from credit_common.errors import ContractError

LGD, EXPOSURE = 0.45, 1.0
APPROVE, DECLINE = "approve below", "decline from"
"""Names of the cut-offs in force."""
STEPS = 20
"""Cut-offs of the grid, each approving a twentieth of the users more."""


@dataclass(frozen=True, kw_only=True)
class Stakes:
    """What a default costs.

    Attributes:
        lgd: Loss given default, the share of the exposure that is lost, in [0, 1].
        exposure: Exposure at default of a user, positive, in any unit of money.
    """

    lgd: float = LGD
    exposure: float = EXPOSURE

    def __post_init__(self) -> None:
        if not 0 <= self.lgd <= 1:
            raise ContractError(f"lgd = {self.lgd:g}: must be between 0 and 1")
        if not 0 < self.exposure < float("inf"):
            raise ContractError(f"exposure = {self.exposure:g}: must be positive")


@dataclass(frozen=True, kw_only=True)
class CutOff:
    """What comes of approving whoever has a PD below a cut-off.

    Attributes:
        pd: The cut-off.
        mark: What it is in force for; empty for one of the grid.
        approved: Users below it.
        approval_rate: Their share.
        bads: Defaults among them.
        bad_rate_approved, bad_rate_declined: None where there is nobody.
        expected_loss: For each approved user, by what the model says; None where there is nobody.
        observed_loss: The same by what came.
    """

    pd: float
    mark: str
    approved: int
    approval_rate: float
    bads: int
    bad_rate_approved: float | None
    bad_rate_declined: float | None
    expected_loss: float | None
    observed_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Users that a decision or a band has.

    Attributes:
        name: Of the decision or band.
        users, bads: Users, and defaults among them.
        share: Of all users.
        bad_rate, mean_pd: None where there is nobody.
    """

    name: str
    users: int
    bads: int
    share: float
    bad_rate: float | None
    mean_pd: float | None


def marked(contract: Contract, decision: Decision) -> tuple[tuple[str, float], ...]:
    """The cut-offs that groups and models are compared at, with their names.

    Where nobody has said any, the contract's public base rate stands for one: a user is taken whose
    PD is below that of the average one.
    """
    if decision.approve_below is None or decision.decline_from is None:
        return (("base rate", contract.task.base_rate),)
    if decision.approve_below == decision.decline_from:
        return ((APPROVE, decision.approve_below),)
    return ((APPROVE, decision.approve_below), (DECLINE, decision.decline_from))


def cut_off_table(
    pds: NDArray[np.float64],
    labels: NDArray[np.int64],
    marks: tuple[tuple[str, float], ...],
    stakes: Stakes,
) -> tuple[CutOff, ...]:
    """Cut-offs by rising PD: those of a grid over the users, and those that are in force.

    A cut-off of the grid is the PD of the first user who is not approved; users of one PD are never
    split. The last one is 1.
    """
    order = np.sort(pds)
    ranks = np.arange(1, STEPS) * pds.size // STEPS
    grid = {float(order[rank]) for rank in ranks} | {1.0}
    cuts = [(pd, mark) for mark, pd in marks]
    cuts += [(pd, "") for pd in grid - {pd for pd, _ in cuts}]
    return tuple(_cut_off(pds, labels, pd, mark, stakes) for pd, mark in sorted(cuts))


def _cut_off(
    pds: NDArray[np.float64], labels: NDArray[np.int64], pd: float, mark: str, stakes: Stakes
) -> CutOff:
    own = pds < pd
    rate = _mean(labels[own])
    loss, said = stakes.lgd * stakes.exposure, _mean(pds[own])
    return CutOff(
        pd=pd,
        mark=mark,
        approved=int(own.sum()),
        approval_rate=float(own.mean()),
        bads=int(labels[own].sum()),
        bad_rate_approved=rate,
        bad_rate_declined=_mean(labels[~own]),
        expected_loss=None if said is None else loss * said,
        observed_loss=None if rate is None else loss * rate,
    )


def decided(
    pds: NDArray[np.float64], labels: NDArray[np.int64], decision: Decision
) -> tuple[Outcome, ...]:
    """Who is approved, goes to a person, is declined; nothing where there are no cut-offs."""
    if decision.approve_below is None or decision.decline_from is None:
        return ()
    approve, decline = pds < decision.approve_below, pds >= decision.decline_from
    return (
        outcome_of("approve", approve, pds, labels),
        outcome_of("refer", ~approve & ~decline, pds, labels),
        outcome_of("decline", decline, pds, labels),
    )


def banded(
    pds: NDArray[np.float64], labels: NDArray[np.int64], decision: Decision
) -> tuple[Outcome, ...]:
    """Who is in each of the decision's bands, from the best on; a PD of 1 is in the last one."""
    ends = [end for _, end in decision.bands]
    place = np.minimum(np.searchsorted(ends, pds, "right"), len(ends) - 1)
    return tuple(
        outcome_of(name, place == number, pds, labels)
        for number, (name, _) in enumerate(decision.bands)
    )


def outcome_of(
    name: str, own: NDArray[np.bool_], pds: NDArray[np.float64], labels: NDArray[np.int64]
) -> Outcome:
    """What became of the users of a mask (users,)."""
    return Outcome(
        name=name,
        users=int(own.sum()),
        bads=int(labels[own].sum()),
        share=float(own.mean()),
        bad_rate=_mean(labels[own]),
        mean_pd=_mean(pds[own]),
    )


def _mean(values: NDArray[np.float64] | NDArray[np.int64]) -> float | None:
    return float(values.mean()) if values.size else None
