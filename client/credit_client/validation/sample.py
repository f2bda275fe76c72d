"""The users that a release is judged on: which of a file, with what outcomes, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from credit_client.shard import Example, Shard
from credit_common.contract import Contract
from credit_common.errors import ContractError, ShardError

Users = Literal["holdout", "all"]

FEWEST = 50
"""Users below which nothing is judged."""
FEWEST_OF_A_CLASS = 5
"""Defaults, and others, below which nothing is judged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Scored users with their outcomes, in the file's order.

    Attributes:
        examples: The users.
        labels: (users,), 1 for a default.
        logits: (users,), the release's own.
        pds: (users,), probabilities of default that decisions are made by: the release's, or by
            the holder's calibration, each user's fitted without it.
    """

    examples: tuple[Example, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    logits: NDArray[np.float64] = field(repr=False)
    pds: NDArray[np.float64] = field(repr=False)


def require_binary(contract: Contract) -> None:
    """Refuse a release that predicts no default.

    Raises:
        ContractError: If its task is another.
    """
    kind = contract.task.kind
    if kind != "binary":
        raise ContractError(f"task.kind = {kind!r}: must be 'binary', only defaults are validated")


def chosen(shard: Shard, users: Users) -> tuple[Example, ...]:
    """The hold-out users of a file, or all, in the file's order."""
    examples = shard.holdout if users == "holdout" else (*shard.train, *shard.holdout)
    return tuple(sorted(examples, key=lambda example: example.row))


def outcomes(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Labels (users,) of users that were read with `require_label`."""
    return np.array([example.record.label for example in examples], np.float64).astype(np.int64)


def why_not(labels: ArrayLike) -> str:
    """Why users are too few to be judged; empty where they are enough."""
    found = np.asarray(labels)
    bads = int(found.sum())
    for count, what, least in (
        (found.size, "users", FEWEST),
        (bads, "defaults", FEWEST_OF_A_CLASS),
        (found.size - bads, "users without default", FEWEST_OF_A_CLASS),
    ):
        if count < least:
            return f"{count} {what}, must be at least {least}"
    return ""


def require_enough(labels: ArrayLike, where: str) -> None:
    """Refuse users that are too few, or of one class.

    Args:
        labels: (users,).
        where: Which users, for the error.

    Raises:
        ShardError: Saying how many there are and must be.
    """
    reason = why_not(labels)
    if reason:
        raise ShardError(f"{where}: {reason}")
