"""Score histograms that can be summed over holders, and the credit metrics that are read off them.

A histogram of scores has shape (2, bins): row 0 counts users with label 0 (repaid), row 1 those
with label 1 (default), over equal bins of the score in [0, 1]. One user is in exactly one cell, so
adding or removing a user changes one cell by one. A released histogram carries noise: its counts
are real numbers and may be negative. Metrics are therefore computed from the unclipped counts and
only the result is moved into its range. Every count-based metric is nan where a class has no
(positive) total. The `_exact` functions need the scores themselves, which never leave a holder.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64] | NDArray[np.float64]


def score_histogram(scores: ArrayLike, labels: ArrayLike, bins: int) -> NDArray[np.int64]:
    """Count users by label and score bin.

    Args:
        scores: Shape (users,), predicted probabilities of default in [0, 1]. A caller whose model
            may diverge replaces non-finite scores by a public value first.
        labels: Shape (users,), 0 or 1.
        bins: Number of equal bins; bin i holds i / bins <= score < (i + 1) / bins, 1 is in the
            last one.

    Returns:
        Counts, shape (2, bins).

    Raises:
        ValueError: On NaN or another score outside [0, 1], or on labels other than 0 and 1.
    """
    if bins < 1:
        raise ValueError(f"bins = {bins}: must be at least 1")
    values, events = _scored(scores, labels)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("a score is outside [0, 1]")
    column = np.minimum((values * bins).astype(np.int64), bins - 1)
    flat = np.bincount(events * bins + column, minlength=2 * bins)
    return flat.reshape(2, bins).astype(np.int64)


def auc(counts: Counts) -> float:
    """Area under the ROC curve: P(score of a default > score of a repayer), ties counted half.

    Users in one bin count as ties. Independent zero-mean noise on the cells leaves the numerator
    unbiased, because it only multiplies cells of different rows.
    """
    good, bad = by_label(counts)
    n, p = good.sum(), bad.sum()
    if n <= 0 or p <= 0:
        return float("nan")
    below = np.cumsum(good) - good
    return _unit(float(bad @ (below + good / 2)) / float(n * p))


def gini(counts: Counts) -> float:
    """Gini coefficient (accuracy ratio), 2 AUC - 1, in [-1, 1]."""
    return 2 * auc(counts) - 1


def ks(counts: Counts) -> float:
    """Kolmogorov-Smirnov distance between the two classes' score distributions, in [0, 1].

    Only bin edges are looked at, so that binning can lower it; as a maximum, noise raises it.
    """
    good, bad = by_label(counts)
    if good.sum() <= 0 or bad.sum() <= 0:
        return float("nan")
    gap = np.cumsum(bad) / bad.sum() - np.cumsum(good) / good.sum()
    return _unit(float(np.abs(gap).max()))


def default_rate(counts: Counts) -> float:
    """Share of users with label 1."""
    good, bad = by_label(counts)
    total = good.sum() + bad.sum()
    return _unit(float(bad.sum() / total)) if total > 0 else float("nan")


def brier(counts: Counts, centres: ArrayLike | None = None) -> float:
    """Mean squared difference between score and label, every score put at its bin's centre.

    For equal bins the error of that is at most 1 / bins + 1 / (4 bins^2); for scores that are
    calibrated and spread evenly within their bins the value is too high by 1 / (12 bins^2).

    Args:
        centres: Probability that each bin stands for, (bins,); None for equal bins of [0, 1].
    """
    good, bad = by_label(counts)
    total = good.sum() + bad.sum()
    if total <= 0:
        return float("nan")
    at = _places(centres, (np.arange(good.size) + 0.5) / good.size)
    return _unit(float((bad @ (1 - at) ** 2 + good @ at**2) / total))


def mean(counts: Counts) -> float:
    """Mean of a value in [0, 1] that is binned, whatever the row, each put at its bin's centre."""
    users = np.sum(by_label(counts), axis=0)
    if users.sum() <= 0:
        return float("nan")
    return _unit(float(users @ ((np.arange(users.size) + 0.5) / users.size) / users.sum()))


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """One row of a calibration table.

    Attributes:
        low, high: Bounds of the score bin.
        users: Number of users, a real and perhaps negative number where the counts are noised.
        observed: Share of defaults among them, to be compared with [low, high); nan where `users`
            is not positive.
    """

    low: float
    high: float
    users: float
    observed: float


def calibration(counts: Counts, edges: ArrayLike | None = None) -> tuple[CalibrationBin, ...]:
    """Observed default rate by score bin.

    Args:
        edges: Probabilities at the bins' edges, (bins + 1,); None for equal bins of [0, 1].
    """
    good, bad = by_label(counts)
    at = _places(edges, np.arange(good.size + 1) / good.size)
    return tuple(
        CalibrationBin(
            low=float(at[i]),
            high=float(at[i + 1]),
            users=float(good[i] + bad[i]),
            observed=default_rate(np.stack([good[i : i + 1], bad[i : i + 1]])),
        )
        for i in range(good.size)
    )


def merged(counts: Counts, groups: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A histogram of at most `groups` groups of neighbouring bins, equal but for rounding.

    Returns:
        Counts, shape (2, groups), and the places (groups + 1,) of their edges among the old ones.
    """
    table = np.stack(by_label(counts))
    bins = table.shape[1]
    edges = np.arange(min(groups, bins) + 1, dtype=np.int64) * bins // min(groups, bins)
    return np.add.reduceat(table, edges[:-1], axis=1), edges


def auc_exact(scores: ArrayLike, labels: ArrayLike) -> float:
    """AUC by the Mann-Whitney statistic, ties counted half."""
    return auc(_distinct(scores, labels))


def ks_exact(scores: ArrayLike, labels: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance over all distinct scores."""
    return ks(_distinct(scores, labels))


def brier_exact(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared difference between score and label."""
    values, events = _scored(scores, labels)
    return float(np.mean((values - events) ** 2)) if values.size else float("nan")


def log_loss_exact(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log likelihood in nats; scores are kept 2.2e-16 away from 0 and 1."""
    values, events = _scored(scores, labels)
    if not values.size:
        return float("nan")
    tiny = np.finfo(np.float64).eps
    said = np.clip(values, tiny, 1 - tiny)
    return float(-np.mean(np.where(events == 1, np.log(said), np.log1p(-said))))


def average_precision_exact(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall steps, Σ precision x gain in recall (PR-AUC)."""
    good, bad = by_label(_distinct(scores, labels))
    if bad.sum() <= 0:
        return float("nan")
    hits, flagged = np.cumsum(bad[::-1]), np.cumsum((good + bad)[::-1])
    return float(np.sum(hits / flagged * bad[::-1]) / bad.sum())


def rmse(predicted: ArrayLike, actual: ArrayLike) -> float:
    """Root mean squared error, in the target's unit."""
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("predictions and outcomes must be finite and of one shape")
    return float(np.sqrt(np.mean((a - b) ** 2))) if a.size else float("nan")


def accuracy(predicted: ArrayLike, actual: ArrayLike) -> float:
    """Share of class indices that agree."""
    a, b = np.asarray(predicted), np.asarray(actual)
    if a.shape != b.shape or a.dtype.kind not in "iub" or b.dtype.kind not in "iub":
        raise ValueError("predicted and actual classes must be integers of one shape")
    return float(np.mean(a == b)) if a.size else float("nan")


def _scored(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values, events = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != events.shape:
        raise ValueError(
            f"scores and labels of shapes {values.shape}, {events.shape}: not (users,)"
        )
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite")
    if not np.isin(events, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    return values, events.astype(np.int64)


def _distinct(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """A histogram with one bin for each distinct score."""
    values, events = _scored(scores, labels)
    unique, column = np.unique(values, return_inverse=True)
    flat = np.bincount(events * unique.size + column, minlength=2 * unique.size)
    return flat.reshape(2, unique.size).astype(np.int64)


def by_label(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rows of a table of counts, label 0 and label 1, as float64.

    Raises:
        ValueError: If it is not (2, bins), or not finite.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != 2 or not np.isfinite(table).all():
        raise ValueError(f"counts of shape {table.shape}: must be (2, bins) and finite")
    return table[0], table[1]


def _places(given: ArrayLike | None, equal: NDArray[np.float64]) -> NDArray[np.float64]:
    places = equal if given is None else np.asarray(given, np.float64)
    if places.shape != equal.shape:
        raise ValueError(f"{places.size} centres or edges are given, must be {equal.size}")
    return places


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
