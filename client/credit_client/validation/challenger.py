"""Champion and challenger: two releases on the same users.

The swap set is drawn at the same number of approvals: the challenger approves as many of its best
users as the champion does at its cut-off, or as few less as ties ask for. What is left is the
question that matters: who is let in instead of whom, and who of them pays back.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_client.validation.cutoffs import Outcome, outcome_of
from credit_client.validation.figures import Figures, figures
from credit_common.delong import Z95, paired_error


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """Two models on the same users.

    Attributes:
        users: Users that both files' contracts read from the same row.
        left_out: Users of the champion that the challenger does not judge: it reads another row
            of them or none, or holds them for training.
        champion, challenger: The figures of each.
        auc_difference, low, high: AUC of the challenger less that of the champion, with its
            interval of .95 by DeLong, paired.
        p_value: Of no difference, two-sided; None where the two order all users alike.
        mark, champion_pd, challenger_pd: The champion's cut-off, and the challenger's at which it
            approves as many.
        swaps: Approved by both, swapped in (by the challenger alone), swapped out (by the champion
            alone), declined by both; mean PDs are the champion's.
    """

    users: int
    left_out: int
    champion: Figures
    challenger: Figures
    auc_difference: float
    low: float
    high: float
    p_value: float | None
    mark: str
    champion_pd: float
    challenger_pd: float
    swaps: tuple[Outcome, ...]


def challenge(
    labels: NDArray[np.int64],
    champion: tuple[NDArray[np.float64], NDArray[np.float64]],
    challenger: tuple[NDArray[np.float64], NDArray[np.float64]],
    mark: tuple[str, float],
    left_out: int = 0,
) -> Challenge:
    """Set two models against each other.

    Args:
        labels: (users,), 1 for a default; both classes.
        champion, challenger: Logits (users,) and PDs (users,) of each, of the same users.
        mark: Name and PD of the champion's cut-off.
        left_out: See `Challenge`.
    """
    from scipy.special import ndtr

    one, other = figures(*champion, labels), figures(*challenger, labels)
    gap, error = other.auc - one.auc, paired_error(challenger[0], champion[0], labels)
    approved = champion[1] < mark[1]
    cut = _as_many(challenger[1], int(approved.sum()))
    instead = challenger[1] < cut
    return Challenge(
        users=labels.size,
        left_out=left_out,
        champion=one,
        challenger=other,
        auc_difference=gap,
        low=gap - Z95 * error,
        high=gap + Z95 * error,
        p_value=float(2 * ndtr(-abs(gap) / error)) if error > 0 else None,
        mark=mark[0],
        champion_pd=mark[1],
        challenger_pd=cut,
        swaps=tuple(
            outcome_of(name, own, champion[1], labels)
            for name, own in (
                ("approved by both", approved & instead),
                ("swapped in", ~approved & instead),
                ("swapped out", approved & ~instead),
                ("declined by both", ~approved & ~instead),
            )
        ),
    )


def _as_many(pds: NDArray[np.float64], count: int) -> float:
    """The cut-off below which are at most `count` users, and as many as ties allow."""
    return float(np.sort(pds)[count]) if count < pds.size else 1.0
