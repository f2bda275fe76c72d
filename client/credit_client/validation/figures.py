"""The figures that a model is known by, exact over the users at hand."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_common.delong import auc_interval
from credit_common.metrics import (
    auc_exact,
    average_precision_exact,
    brier_exact,
    ks_exact,
    log_loss_exact,
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a model does on users.

    Attributes:
        users, bads: Users, and defaults among them.
        bad_rate, mean_pd: What came, and what was said, on average.
        auc, auc_low, auc_high: With its interval of .95 by DeLong.
        gini: 2 AUC - 1.
        ks, ks_pd: Largest distance of the two classes' distributions, and the PD where it is: the
            users from that PD on are set against the others.
        average_precision: Area under the precision-recall steps.
        brier, log_loss: Mean squared difference, and mean negative log likelihood in nats.
    """

    users: int
    bads: int
    bad_rate: float
    mean_pd: float
    auc: float
    auc_low: float
    auc_high: float
    gini: float
    ks: float
    ks_pd: float
    average_precision: float
    brier: float
    log_loss: float


def figures(
    logits: NDArray[np.float64], pds: NDArray[np.float64], labels: NDArray[np.int64]
) -> Figures:
    """Figures of users of both classes, at least two of each.

    Args:
        logits: (users,), which order them.
        pds: (users,), which are held against outcomes.
        labels: (users,), 1 for a default.
    """
    auc = auc_exact(logits, labels)
    low, high = auc_interval(logits, labels)
    return Figures(
        users=labels.size,
        bads=int(labels.sum()),
        bad_rate=float(labels.mean()),
        mean_pd=float(pds.mean()),
        auc=auc,
        auc_low=low,
        auc_high=high,
        gini=2 * auc - 1,
        ks=ks_exact(logits, labels),
        ks_pd=_ks_place(logits, pds, labels),
        average_precision=average_precision_exact(logits, labels),
        brier=brier_exact(pds, labels),
        log_loss=log_loss_exact(pds, labels),
    )


def _ks_place(
    logits: NDArray[np.float64], pds: NDArray[np.float64], labels: NDArray[np.int64]
) -> float:
    """The least PD among the users above the largest gap."""
    cuts, bad, good = shares_below(logits, labels)
    place = int(np.argmax(np.abs(good - bad)))
    return float(pds[logits >= cuts[place]].min())


def shares_below(
    logits: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Distinct logits, rising, and the share of defaults and of others below each."""
    cuts, place = np.unique(logits, return_inverse=True)
    told = []
    for label in (1, 0):
        counts = np.bincount(place[labels == label], minlength=cuts.size)
        told.append((np.cumsum(counts) - counts) / counts.sum())
    return cuts, told[0], told[1]
