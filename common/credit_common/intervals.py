"""Confidence intervals of the figures that are read from noised histograms.

An interval covers, with the given probability, the figure that the same histogram has without its
noise. The noise is all that it allows for, since all that is known exactly is the noise: another
sample of users would move the figure too, and that is not in it. The functions bear the names of
those in `credit_common.metrics` and take the same counts, shape (2, bins), and `noise`, the
standard deviation of each cell: σ sqrt(H) for the sum over H holders. All is post-processing of
released counts and costs no privacy.

Shares of counts and the AUC are ratios of noised sums, whose denominators may come close to zero:
their intervals are those values that a test does not reject (Fieller 1954), which stay honest
there. Where the noise swamps the counts, an interval is the figure's whole range.

Binning. What cannot be seen in a histogram is where in its bin a score lies. The intervals of Brier
score and mean allow for it wherever that is, and so hold for the figure over the scores themselves
too. That of the AUC does so where densities are straight within bins, or bins are so coarse that it
spans all that they could hide. That of KS is of the bins' edges, as the figure is.
"""

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_common import metrics
from credit_common.metrics import Counts

LEVEL = 0.95
Interval = tuple[float, float]
_WHOLE: Interval = (0.0, 1.0)
_TIED = 0.2


def normal(level: float) -> float:
    """Quantile z with P(|N(0, 1)| <= z) = level."""
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must be inside (0, 1)")
    return NormalDist().inv_cdf((1 + level) / 2)


def auc(counts: Counts, noise: float, level: float = LEVEL) -> Interval:
    """Interval of the AUC, in [0, 1].

    With g and b the counts of the two rows and K_ij = 1[j < i] + [i = j] / 2, the true AUC a makes
    b' (K - a 11') g zero but for the noise, whose variance is known up to two sums of squares that
    the counts estimate without bias. The values that pass as zero are the interval.

    Binning: where densities are straight within bins and across neighbours, the order inside the
    bins adds Σ (g_i b_i+1 - g_i+1 b_i) / 12 to the numerator, and by chance a variance of
    Σ g_i b_i (g_i + b_i + 1) / 12 (Mann and Whitney 1947). The interval spans no such addition and
    twice of it, since the scores of a bin may all be one, or lie at its ends. So it holds for the
    AUC over the scores themselves only where densities are that straight: where one label's scores
    gather below the other's inside bins, that AUC is off by up to half the share of pairs that have
    a bin in common, and nothing in the counts shows it. Where more than a
    fifth of all pairs share a bin, neighbours say nothing: then it spans all of them lost and won.
    """
    good, bad = _rows(counts, noise)
    pairs = float(good.sum() * bad.sum())
    if good.sum() <= 0 or bad.sum() <= 0:
        return _WHOLE
    coarse = float(good @ bad) > _TIED * pairs
    ends = [
        _auc(good, bad, tie, slope, noise, level)
        for tie, slope in (((0.0, 0.0), (1.0, 0.0)) if coarse else ((0.5, 0.0), (0.5, 2.0)))
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)


def gini(counts: Counts, noise: float, level: float = LEVEL) -> Interval:
    """Interval of the Gini coefficient, in [-1, 1], from that of the AUC."""
    low, high = auc(counts, noise, level)
    return 2 * low - 1, 2 * high - 1


def ks(counts: Counts, noise: float, level: float = LEVEL) -> Interval:
    """Interval of the KS distance over the bins' edges, in [0, 1].

    A band around the gap of the two distributions at all inner edges at once (Bonferroni), so that
    the interval is wider than its level asks for. With S the sum of a row's noise up to an edge and
    T of all of it, the error of a share F at that edge is (S - F T) / (noised total).
    """
    good, bad = _rows(counts, noise)
    bins = good.size
    totals = good.sum(), bad.sum()
    if min(totals) <= normal(level) * noise * math.sqrt(bins):
        return _WHOLE
    if bins == 1:
        return 0.0, 0.0
    before = np.arange(1, bins)
    gap, variance = np.zeros(bins - 1), np.zeros(bins - 1)
    for row, total, sign in ((bad, totals[1], 1), (good, totals[0], -1)):
        share = np.cumsum(row)[:-1] / total
        kept = np.clip(share, 0, 1)
        gap += sign * share
        variance += (before * (1 - kept) ** 2 + (bins - before) * kept**2) / total**2
    margin = normal(1 - (1 - level) / (bins - 1)) * noise * np.sqrt(variance)
    return _kept((np.abs(gap) - margin).max(), (np.abs(gap) + margin).max())


def default_rate(counts: Counts, noise: float, level: float = LEVEL) -> Interval:
    """Interval of the share of users with label 1, in [0, 1]."""
    good, bad = _rows(counts, noise)
    weight = np.stack([np.zeros(good.size), np.ones(bad.size)])
    return share(np.stack([good, bad]), weight, noise, level)


def share(cells: ArrayLike, chosen: ArrayLike, noise: float, level: float = LEVEL) -> Interval:
    """Interval of the share of users that are in chosen cells, in [0, 1].

    Args:
        cells: Counts, of any shape.
        chosen: The same shape, 1 for a chosen cell and 0 for another.
    """
    users, weight = np.asarray(cells, np.float64), np.asarray(chosen, np.float64)
    if users.shape != weight.shape or not np.isfinite(users).all():
        raise ValueError(f"cells of shape {users.shape}: must be finite, of shape {weight.shape}")
    return _mean(users, weight, weight, noise, level)


def brier(
    counts: Counts, noise: float, level: float = LEVEL, edges: ArrayLike | None = None
) -> Interval:
    """Interval of the Brier score, in [0, 1], wherever in its bin each score lies.

    Args:
        edges: Probabilities at the bins' edges, (bins + 1,); None for equal bins of [0, 1].
    """
    at = _edges(counts, edges)
    best = np.stack([at[:-1] ** 2, (1 - at[1:]) ** 2])
    worst = np.stack([at[1:] ** 2, (1 - at[:-1]) ** 2])
    return _mean(np.stack(_rows(counts, noise)), best, worst, noise, level)


def mean(counts: Counts, noise: float, level: float = LEVEL) -> Interval:
    """Interval of the mean of a value in [0, 1] that is binned, whatever the row."""
    at = _edges(counts, None)
    low, high = np.stack([at[:-1]] * 2), np.stack([at[1:]] * 2)
    return _mean(np.stack(_rows(counts, noise)), low, high, noise, level)


def calibration(
    counts: Counts, noise: float, groups: int, level: float = LEVEL
) -> tuple[Interval, ...]:
    """Intervals of the shares of `metrics.calibration` on `metrics.merged` counts.

    Each row's own: of ten rows at .95, one in two tables misses somewhere.

    Args:
        counts: Before they are merged into `groups`.
    """
    cells = np.stack(_rows(counts, noise))
    at = metrics.merged(counts, groups)[1]
    return tuple(default_rate(cells[:, i:j], noise, level) for i, j in pairwise(at))


def _auc(
    good: NDArray[np.float64],
    bad: NDArray[np.float64],
    tie: float,
    slope: float,
    noise: float,
    level: float,
) -> Interval:
    """Fieller's interval of b' K g / (b' 11' g); K has `tie` on its diagonal.

    Beside the diagonal, slope / 12 is added below it and taken off above it.
    """
    n, p, bins = float(good.sum()), float(bad.sum()), good.size
    beside = slope / 12
    kg = np.cumsum(good) + (tie - 1) * good
    kg[1:] += beside * good[:-1]
    kg[:-1] -= beside * good[1:]
    kb = p - np.cumsum(bad) + tie * bad
    kb[:-1] += beside * bad[1:]
    kb[1:] -= beside * bad[:-1]
    a = float(bad @ kg) / (n * p)
    # Moments of M = K - a 11': its rows on g, its columns on b, and its own, as polynomials in the
    # distance x from a; the slopes cancel in the sum over K.
    mg, mb = kg - a * n, kb - a * p
    square = bins * (bins - 1) / 2 + bins * tie**2 + (bins - 1) * 2 * (beside + beside**2)
    total = bins * (bins - 1) / 2 + bins * tie
    own = np.array([square - 2 * a * total + a**2 * bins**2, -2 * (total - a * bins**2), bins**2])
    there, across = mg @ mg + mb @ mb, n * mg.sum() + p * mb.sum()
    seen = np.array([there, -2 * across, bins * (n**2 + p**2)])
    z = normal(level)
    # E |M g|² is |M g0|² + s² |M|²; the product of the two noises adds s⁴ |M|².
    unbiased = noise**2 * seen - noise**4 * own
    product = noise**4 * own
    if 0 < tie < 1:
        g, b = np.maximum(good, 0), np.maximum(bad, 0)
        chance = np.array([float(g * b @ (g + b + 1)) / 12, 0, 0])
        unbiased, product = unbiased + chance, product + chance
    found = [_passing(a, (n * p) ** 2, variance, z) for variance in (unbiased, product)]
    if None in found:
        return _WHOLE
    ends = [end for interval in found if interval for end in interval]
    return _kept(min(ends), max(ends))


def _mean(
    cells: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    noise: float,
    level: float,
) -> Interval:
    """Interval of the users' mean weight, between `low` and `high` in each cell."""
    _check_noise(noise)
    total = float(cells.sum())
    if total <= 0:
        return _WHOLE
    ends: list[float] = []
    for weight in (low, high):
        value = float((cells * weight).sum()) / total
        off = weight - value
        variance = noise**2 * np.array([(off**2).sum(), -2 * off.sum(), cells.size])
        found = _passing(value, total**2, variance, normal(level))
        if found is None:
            return _WHOLE
        ends += found
    return _kept(min(ends), max(ends))


def _passing(
    value: float, squared: float, variance: NDArray[np.float64], z: float
) -> Interval | None:
    """The x + value with squared x² <= z² (v0 + v1 x + v2 x²); None where they have no bounds."""
    c, b, a = z**2 * variance
    a = squared - a
    if a <= 0:
        return None
    spread = math.sqrt(max(b**2 + 4 * a * c, 0.0))
    return value + (b - spread) / (2 * a), value + (b + spread) / (2 * a)


def _kept(low: float, high: float) -> Interval:
    """The part in [0, 1]; where there is none, counts and noise disagree, and nothing is known."""
    if high < 0 or low > 1:
        return _WHOLE
    return max(float(low), 0.0), min(float(high), 1.0)


def _rows(counts: Counts, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _check_noise(noise)
    return metrics.by_label(counts)


def _check_noise(noise: float) -> None:
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise = {noise}: must be a standard deviation, at least 0")


def _edges(counts: Counts, edges: ArrayLike | None) -> NDArray[np.float64]:
    bins = metrics.by_label(counts)[0].size
    at = np.arange(bins + 1) / bins if edges is None else np.asarray(edges, np.float64)
    if at.shape != (bins + 1,):
        raise ValueError(f"edges of shape {at.shape}: {bins} bins have {bins + 1}")
    return at
