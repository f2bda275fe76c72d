"""What an evaluation counts for each kind of task, and what is read from the counts.

One user is in one cell of a (2, bins) table, whatever the task, so that one histogram with an L2
sensitivity of 1 serves all of them:

    task         row                         column
    binary       label                       bin of the relative score
    multiclass   prediction wrong or right   bin of the predicted class' probability
    regression   predicted too low or high   bin of the absolute error, in units of the range
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_common import metrics
from credit_common.contract import Contract


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


def read_counts(contract: Contract, counts: NDArray[np.float64]) -> dict[str, float]:
    """Figures from exact or noised counts: auc and ks, accuracy, or mae (target's own unit)."""
    if contract.task.kind == "binary":
        return {"auc": metrics.auc(counts), "ks": metrics.ks(counts)}
    if contract.task.kind == "multiclass":
        return {"accuracy": metrics.default_rate(counts)}  # the share of row 1: right
    bins = counts.shape[1]
    centres = (np.arange(bins) + 0.5) / bins
    total = counts.sum()
    mae = float(counts.sum(0) @ centres / total) if total > 0 else float("nan")
    return {"mae": min(max(mae, 0.0), 1.0) * _span(contract)}


def exact_figures(
    contract: Contract, scores: NDArray[np.float32], labels: NDArray[np.float32]
) -> dict[str, float]:
    """The same figures from scores and labels; only a simulation sees them pooled."""
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
