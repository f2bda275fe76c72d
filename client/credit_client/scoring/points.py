"""Raw scores -> what a credit officer reads: probabilities, scorecard points, or the target."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_common.contract import Contract
from credit_common.decision import Scorecard
from credit_common.errors import ContractError


def default_probability(contract: Contract, scores: ArrayLike) -> NDArray[np.float64]:
    """Probability of default (PD) of each record, from its logit.

    Args:
        contract: Of a binary task.
        scores: Logits, any shape.

    Returns:
        PD in [0, 1], the same shape.

    Raises:
        ContractError: If the task is another.
    """
    _require(contract, "binary")
    logits = np.asarray(scores, np.float64)
    small = np.exp(-np.abs(logits))  # never overflows, and keeps the digits of a PD near 0
    pd: NDArray[np.float64] = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return pd


def points(scorecard: Scorecard, logits: ArrayLike) -> NDArray[np.float64]:
    """Scorecard points: base_score + pdo / ln 2 * ln(odds / base_odds) (Siddiqi 2006).

    The odds are those of good to bad, exp(-logit): more points, less risk. Points beyond the
    scorecard's ends are moved to them.

    Args:
        scorecard: Base score, base odds, and the points that double the odds.
        logits: Logits of default, any shape.

    Example:
        A PD of .05 has odds of 19, the default base odds; .10 has odds of 9.
        >>> float(points(Scorecard(), np.log(.05 / .95)).round(6))
        600.0
        >>> float(points(Scorecard(), np.log(.10 / .90)).round(1))
        546.1
    """
    log_odds = -np.asarray(logits, np.float64)
    told: NDArray[np.float64] = scorecard.base_score + scorecard.pdo / np.log(2.0) * (
        log_odds - np.log(scorecard.base_odds)
    )
    return np.clip(told, *scorecard.ends)


def class_probabilities(contract: Contract, scores: ArrayLike) -> NDArray[np.float64]:
    """Probability of each of the contract's classes, in its order: the softmax of the scores.

    Args:
        contract: Of a multi-class task.
        scores: (n, classes).

    Returns:
        (n, classes), rows that add up to 1.

    Raises:
        ContractError: If the task is another.
    """
    _require(contract, "multiclass")
    logits = np.asarray(scores, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return shares


def target_value(contract: Contract, scores: ArrayLike) -> NDArray[np.float64]:
    """The predicted target in its own unit: low + score * (high - low).

    A prediction may lie outside the contract's range; it is not cut.

    Args:
        contract: Of a regression.
        scores: Any shape.

    Raises:
        ContractError: If the task is another.
    """
    _require(contract, "regression")
    assert contract.task.range is not None  # Task checks it
    low, high = contract.task.range
    values: NDArray[np.float64] = low + np.asarray(scores, np.float64) * (high - low)
    return values


def _require(contract: Contract, kind: str) -> None:
    if contract.task.kind != kind:
        raise ContractError(f"task.kind = {contract.task.kind!r}: must be {kind!r} for this")
