"""Raw scores -> the answers of the service, by the contract's task."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from credit_client.scoring.points import (
    class_probabilities,
    default_probability,
    points,
    target_value,
)
from credit_client.service.opened import Share
from credit_client.service.refusals import Problem
from credit_common.contract import Contract
from credit_common.decision import Decision

Language = Literal["en", "zh"]


class ReasonGiven(BaseModel):
    """A field that weighs on the score, the heaviest first."""

    field: str
    share: float = Field(description="what it adds to the logit")
    text: str | None = Field(description="what the contract says of it to the applicant")


class Answer(BaseModel):
    """What is told of one record."""


class BinaryAnswer(Answer):
    """Risk of default, and what follows from it."""

    logit: float
    pd: float = Field(description="probability of default")
    calibrated_pd: float | None = Field(description="as the holder has calibrated it")
    points: float = Field(description="scorecard points; more points, less risk")
    band: str | None
    decision: Literal["approve", "refer", "decline"] | None
    reasons: list[ReasonGiven]


class ClassAnswer(Answer):
    """A probability of each class."""

    probabilities: dict[str, float]
    reasons: list[ReasonGiven]


class ValueAnswer(Answer):
    """The predicted target in its own unit."""

    value: float
    reasons: list[ReasonGiven]


class Stamp(BaseModel):
    """Which release has answered, and whom."""

    release: str = Field(description="SHA-256 of the release")
    request_id: str


class Rejected(Problem):
    """A row of a batch that is refused; the others are scored."""

    index: int


ANSWERS: dict[str, type[Answer]] = {
    "binary": BinaryAnswer,
    "multiclass": ClassAnswer,
    "regression": ValueAnswer,
}


def tell(contract: Contract, scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """What each row (n, outputs) is told, but for its reasons.

    The PD of bands and cut-offs is the calibrated one where there is one.
    """
    if contract.task.kind == "multiclass":
        shares = class_probabilities(contract, scores)
        classes = contract.task.classes
        return [{"probabilities": dict(zip(classes, row, strict=True))} for row in shares.tolist()]
    if contract.task.kind == "regression":
        return [{"value": value} for value in target_value(contract, scores[:, 0]).tolist()]
    logits = scores[:, 0].astype(np.float64)
    columns = (logits, default_probability(contract, logits), points(contract.scorecard, logits))
    return [
        {
            "logit": logit,
            "pd": pd,
            "calibrated_pd": None,
            "points": told,
            "band": _band(contract.decision, pd),
            "decision": _decision(contract.decision, pd),
        }
        for logit, pd, told in zip(*(column.tolist() for column in columns), strict=True)
    ]


def reasons_given(
    contract: Contract, shares: Sequence[Share], language: Language
) -> list[ReasonGiven]:
    """Fields and shares with the contract's words in a language."""
    words = dict(contract.reasons)
    return [
        ReasonGiven(
            field=own.field,
            share=own.share,
            text=getattr(words[own.field], language) if own.field in words else None,
        )
        for own in shares
    ]


def _band(decision: Decision, pd: float) -> str | None:
    return next((name for name, end in decision.bands if pd < end or end == 1), None)


def _decision(decision: Decision, pd: float) -> str | None:
    approve, decline = decision.approve_below, decision.decline_from
    if approve is None or decline is None:
        return None
    if pd < approve:
        return "approve"
    return "decline" if pd >= decline else "refer"
