"""What an evaluation counts for each kind of task, and what is read from the counts.

One user is in one cell of a (2, bins) table, whatever the task, so that one histogram with an L2
sensitivity of 1 serves all of them:

    task         row                         column
    binary       label                       bin of the relative score
    multiclass   prediction wrong or right   bin of the predicted class' probability
    regression   predicted too low or high   bin of the absolute error, in units of the range
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_common import intervals, metrics, stability
from credit_common.contract import Contract

GROUPS = 10
"""Rows of a calibration table and groups of a stability index: the industry's habit."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its interval.

    Attributes:
        value: As read from the counts; nan where they say nothing.
        low, high: Ends of the .95 interval of what the counts without their noise say (see
            `credit_common.intervals`).
    """

    value: float
    low: float
    high: float


def relative_score(logits: ArrayLike, base_rate: float) -> NDArray[np.float64]:
    """Default odds against the contract's base rate, as odds / (1 + odds) in (0, 1).

    Equal bins of it are public, and lie where the scores of a credit model lie: around its base
    rate, which stands at 0.5. A score that is not finite counts as the base rate.
    """
    centred = np.asarray(logits, np.float64) - np.log(base_rate / (1 - base_rate))
    centred = np.where(np.isfinite(centred), np.clip(centred, -30.0, 30.0), 0.0)
    relative: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-centred))
    return relative


def count_users(
    contract: Contract, scores: NDArray[np.float32], labels: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Users by cell.

    Args:
        scores: (users, outputs), the model's raw scores.
        labels: (users,), as in `Record.label`.

    Returns:
        Counts, shape (2, contract.evaluation.bins).
    """
    task, bins = contract.task, contract.evaluation.bins
    if task.kind == "binary":
        return metrics.score_histogram(relative_score(scores[:, 0], task.base_rate), labels, bins)
    if task.kind == "multiclass":
        shares = _softmax(scores)
        right = shares.argmax(1) == labels
        return metrics.score_histogram(shares.max(1), right.astype(np.int64), bins)
    error = np.nan_to_num(scores[:, 0], nan=0.5, posinf=1.0, neginf=0.0) - labels
    return metrics.score_histogram(np.minimum(np.abs(error), 1.0), (error > 0).astype(int), bins)


def probability(relative: ArrayLike, base_rate: float) -> NDArray[np.float64]:
    """The inverse of `relative_score`, as a probability of default."""
    x = np.asarray(relative, np.float64)
    chance: NDArray[np.float64] = x * base_rate / (x * base_rate + (1 - x) * (1 - base_rate))
    return chance


def bin_edges(contract: Contract) -> NDArray[np.float64]:
    """Probabilities of default at the edges of a binary task's bins, (bins + 1,), from 0 to 1."""
    bins = contract.evaluation.bins
    return probability(np.arange(bins + 1) / bins, contract.task.base_rate)


def bin_probabilities(contract: Contract) -> NDArray[np.float64]:
    """Probability of default that each bin of a binary task stands for, (bins,)."""
    bins = contract.evaluation.bins
    return probability((np.arange(bins) + 0.5) / bins, contract.task.base_rate)


def read_counts(contract: Contract, counts: NDArray[np.float64]) -> dict[str, float]:
    """Figures from exact or noised counts, the main one first.

    auc, ks, gini, brier and default_rate; accuracy; or mae (target's own unit).
    """
    if contract.task.kind == "binary":
        return {
            "auc": metrics.auc(counts),
            "ks": metrics.ks(counts),
            "gini": metrics.gini(counts),
            "brier": metrics.brier(counts, bin_probabilities(contract)),
            "default_rate": metrics.default_rate(counts),
        }
    if contract.task.kind == "multiclass":
        return {"accuracy": metrics.default_rate(counts)}  # the share of row 1: right
    return {"mae": metrics.mean(counts) * _span(contract)}


def read_released(
    contract: Contract, counts: NDArray[np.float64], holders: int
) -> dict[str, Figure]:
    """The figures of `read_counts` with their intervals.

    Args:
        counts: Sum of the released histograms, (2, bins); columns after these are of groups, see
            `credit_common.groups`.
        holders: How many were summed; each has the contract's noise.
    """
    counts = counts[:, : contract.evaluation.bins]
    noise = released_noise(contract, holders)
    if contract.task.kind == "binary":
        ends = {
            "auc": intervals.auc(counts, noise),
            "ks": intervals.ks(counts, noise),
            "gini": intervals.gini(counts, noise),
            "brier": intervals.brier(counts, noise, edges=bin_edges(contract)),
            "default_rate": intervals.default_rate(counts, noise),
        }
    elif contract.task.kind == "multiclass":
        ends = {"accuracy": intervals.default_rate(counts, noise)}
    else:
        low, high = intervals.mean(counts, noise)
        ends = {"mae": (low * _span(contract), high * _span(contract))}
    return {
        name: Figure(value=value, low=ends[name][0], high=ends[name][1])
        for name, value in read_counts(contract, counts).items()
    }


def read_calibration(
    contract: Contract, counts: NDArray[np.float64], holders: int
) -> tuple[tuple[metrics.CalibrationBin, intervals.Interval], ...]:
    """Observed default rates of a binary task in ten groups of bins, with their intervals.

    Args:
        counts: As for `read_released`.
        holders: How many were summed.
    """
    counts = counts[:, : contract.evaluation.bins]
    table, at = metrics.merged(counts, GROUPS)
    ends = intervals.calibration(counts, released_noise(contract, holders), GROUPS)
    return tuple(zip(metrics.calibration(table, bin_edges(contract)[at]), ends, strict=True))


def read_psi(
    contract: Contract,
    expected: tuple[NDArray[np.float64], int],
    actual: tuple[NDArray[np.float64], int],
) -> Figure:
    """Population stability index between two evaluations, in ten groups of bins.

    Args:
        expected, actual: Sum of the released histograms, as for `read_released`, and how many were
            summed.
    """
    bins = contract.evaluation.bins
    (first, at), (second, _) = (
        metrics.merged(counts[:, :bins], GROUPS) for counts, _ in (expected, actual)
    )
    widths = np.sqrt(np.diff(at))
    noises = [released_noise(contract, holders) * widths for _, holders in (expected, actual)]
    low, high = stability.psi_interval(first, second, noises[0], noises[1])
    return Figure(value=stability.psi(first, second), low=low, high=high)


def figures_to_json(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """`figures` and `intervals` by name, as plain JSON to six decimals; null where nothing is said.

    Rounded, so that two machines whose sums differ in the last bit tell the same.
    """

    def told(value: float) -> float | None:
        return round(value, 6) if math.isfinite(value) else None

    return {
        "figures": {name: told(figure.value) for name, figure in figures.items()},
        "intervals": {n: [told(figure.low), told(figure.high)] for n, figure in figures.items()},
    }


def rows_of(counts: NDArray[np.float64] | None) -> tuple[tuple[float, ...], ...] | None:
    """Counts (2, columns) as a release's facts keep it; None stays None."""
    return None if counts is None else tuple(tuple(row) for row in counts.tolist())


def is_rows(rows: object) -> bool:
    """Whether something is what `rows_of` makes: two rows of as many counts, up to 1e12."""
    if not isinstance(rows, tuple) or len(rows) != 2:
        return False
    if not all(isinstance(row, tuple) and len(row) == len(rows[0]) > 0 for row in rows):
        return False
    return all(type(x) is float and abs(x) <= 1e12 for row in rows for x in row)  # nan is not


def released_noise(contract: Contract, holders: int) -> float:
    """Standard deviation of a cell's noise in the sum of the holders' histograms, in users."""
    return contract.evaluation.noise_multiplier * math.sqrt(holders)


def exact_figures(
    contract: Contract, scores: NDArray[np.float32], labels: NDArray[np.float32]
) -> dict[str, float]:
    """The first figures from scores and labels; only a simulation sees them pooled."""
    if contract.task.kind == "binary":
        return {
            "auc": metrics.auc_exact(scores[:, 0], labels),
            "ks": metrics.ks_exact(scores[:, 0], labels),
        }
    if contract.task.kind == "multiclass":
        return {"accuracy": float(np.mean(scores.argmax(1) == labels))}
    return {"mae": float(np.mean(np.abs(scores[:, 0] - labels))) * _span(contract)}


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    finite = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=1e3, neginf=-1e3)
    shifted = np.exp(finite - finite.max(1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
    return shares


def _span(contract: Contract) -> float:
    assert contract.task.range is not None  # Task checks it
    low, high = contract.task.range
    return high - low
