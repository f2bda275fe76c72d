"""AUCs of the same users with their standard errors, by DeLong, DeLong and Clarke-Pearson (1988).

With an AUC as a mean over events of the share of others that score below, and over others of the
share of events that score above, its variance is the sum of these means' variances. All shares come
from sorted scores, so that 100,000 users take a moment.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_common.intervals import Interval

Z95 = 1.959963984540054
"""The normal quantile of a two-sided interval of .95."""


def auc_error(scores: ArrayLike, labels: ArrayLike) -> float:
    """Standard error of an AUC.

    Args:
        scores: (users,), higher for likelier events.
        labels: (users,), 1 for an event, else 0; at least two of each.
    """
    return _error(_placements(scores, labels))


def auc_interval(scores: ArrayLike, labels: ArrayLike) -> Interval:
    """Interval of .95 of an AUC on the logit scale, so that it stays inside [0, 1] (Pepe 2003).

    An AUC of 0 or 1 has no error that DeLong's formula could see: its interval is itself.
    """
    events = np.asarray(labels) > 0.5
    value = float(_placements(scores, labels)[0].mean()) if events.any() else math.nan
    if not 0 < value < 1:
        return value, value
    half = Z95 * auc_error(scores, labels) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    return 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))


def paired_error(one: ArrayLike, other: ArrayLike, labels: ArrayLike) -> float:
    """Standard error of the difference of two AUCs on the same users.

    Args:
        one, other: (users,), scores of the same users in the same order.
        labels: (users,), 1 for an event, else 0; at least two of each.
    """
    first, second = _placements(one, labels), _placements(other, labels)
    return _error((first[0] - second[0], first[1] - second[1]))


def _placements(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each event the share of others below it; of each other the share of events below it."""
    values, events = np.asarray(scores), np.asarray(labels) > 0.5
    bad, good = values[events], values[~events]
    return _below(bad, good), _below(good, bad)


def _error(parts: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
    return float(np.sqrt(sum(np.var(part, ddof=1) / part.size for part in parts)))


def _below(scores: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of `others` below each score, ties half."""
    order = np.sort(others)
    low, high = np.searchsorted(order, scores, "left"), np.searchsorted(order, scores, "right")
    share: NDArray[np.float64] = (low + high) / (2 * len(order))
    return share
