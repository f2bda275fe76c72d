"""A release that scores: opened, checked and warm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from credit_client.scoring.batch import open_model, score_records
from credit_common.contract import Contract
from credit_common.errors import WireError
from credit_common.model import CreditModel
from credit_common.record import Record
from credit_common.release import Release
from credit_common.text import reference_record


class Engine(Protocol):
    """What turns records into raw scores (n, outputs)."""

    contract: Contract

    def score(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """Raw scores of records, each by itself alone."""
        ...


class Share(Protocol):
    """What a field has added to a record's logit."""

    field: str
    share: float


Explain = Callable[[Engine, Sequence[Record], int], list[list[Share]]]
"""(engine, records, most) -> the fields that raise each record's risk most, the largest first."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A release and the engine that scores by it.

    Attributes:
        release: As it was opened; its digest stands in every answer.
        contract: With the release's edges filled in.
        kind: The engine's name.
        explain: Gives reasons; None where nothing does.
    """

    release: Release = field(repr=False)
    engine: Engine = field(repr=False)
    kind: str = "torch"
    explain: Explain | None = field(default=None, repr=False)

    @property
    def contract(self) -> Contract:
        """With the release's edges filled in."""
        return self.engine.contract


@dataclass(frozen=True)
class _Torch:
    """The reference: the model as it was trained."""

    contract: Contract
    model: CreditModel

    def score(self, records: Sequence[Record]) -> NDArray[np.float32]:
        return score_records(self.model, records)


def open_scorer(release: Release, device: str = "cpu") -> Opened:
    """Make the engine of a release, and score the reference record once.

    Raises:
        TrustError, WireError: If it does not fit its BERT, or its scores are no numbers.
        BackboneError, FetchError: If its BERT cannot be had.
    """
    # The only place that knows an engine: see credit_client.scoring.
    engine = _Torch(release.resolved, open_model(release, device))
    scores = engine.score([reference_record(engine.contract)])
    if not np.isfinite(scores).all():
        raise WireError(f"{release.folder}: scores the reference record with what is no number")
    return Opened(release=release, engine=engine)
