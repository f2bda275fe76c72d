"""Raw scores -> the answers of the service, by the contract's task."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from credit_client.scoring.points import class_probabilities, target_value
from credit_client.scoring.reasons import Attribution, words
from credit_client.scoring.told import tell
from credit_client.service.opened import Opened
from credit_client.service.refusals import Problem
from credit_common.contract import Contract

Language = Literal["en", "zh"]


class ReasonGiven(BaseModel):
    """A field that raises the risk of default, the one that raises it most first."""

    field: str
    share: float = Field(
        description="what it adds to the logit, against the contract's reference applicant"
    )
    text: str = Field(description="what the applicant is told of it")


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


def answers(opened: Opened, scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """What each row (n, outputs) is told, but for its reasons."""
    contract = opened.contract
    if contract.task.kind == "multiclass":
        shares = class_probabilities(contract, scores)
        classes = contract.task.classes
        return [{"probabilities": dict(zip(classes, row, strict=True))} for row in shares.tolist()]
    if contract.task.kind == "regression":
        return [{"value": value} for value in target_value(contract, scores[:, 0]).tolist()]
    told = tell(contract, scores[:, 0], opened.calibration, opened.decision)
    return [dict(vars(one)) for one in told]


def reasons_given(
    contract: Contract, adverse: Sequence[Attribution], language: Language
) -> list[ReasonGiven]:
    """Fields and shares with the contract's words in a language."""
    return [
        ReasonGiven(field=one.field, share=one.share, text=words(contract, one.field, language))
        for one in adverse
    ]
