"""A release that scores: opened with what the holder adds to it, and warm."""

import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from credit_client.scoring.calibration import Calibration, read_calibration
from credit_client.scoring.engine import Engine
from credit_client.service.settings import Settings
from credit_common.contract import Contract
from credit_common.decision import Decision
from credit_common.errors import ShardError, WireError
from credit_common.release import Release
from credit_common.text import reference_record


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A release, the engine that scores by it, and how its scores are told.

    Attributes:
        release: As it was opened; its digest stands in every answer.
        engine: Of the contract with the release's edges filled in.
        calibration: The holder's own, of this release; None for none.
        decision: The contract's, or the holder's own cut-offs.
    """

    release: Release = field(repr=False)
    engine: Engine = field(repr=False)
    calibration: Calibration | None = field(default=None, repr=False)
    decision: Decision = field(default_factory=Decision)

    @property
    def contract(self) -> Contract:
        """With the release's edges filled in."""
        return self.engine.contract


def open_scorer(release: Release, settings: Settings) -> Opened:
    """Make the engine of a release, and score the reference record once.

    Raises:
        ShardError: If there is no calibration for it where there must be one.
        TrustError, WireError: If it does not fit its BERT or its export, or its scores are no
            numbers.
        BackboneError, FetchError: If its BERT cannot be had.
    """
    contract = release.contract
    asked = settings.calibration or settings.approve_below is not None
    if asked and contract.task.kind != "binary":
        raise ShardError(
            f"task.kind = {contract.task.kind!r}: calibrations and cut-offs are of a binary task"
        )
    calibration = None
    if settings.calibration is not None:
        calibration = read_calibration(_of(settings.calibration, release), release.digest)
    decision = contract.decision
    if settings.approve_below is not None or settings.decline_from is not None:
        approve, decline = settings.approve_below, settings.decline_from
        decision = replace(decision, approve_below=approve, decline_from=decline)
    engine = _engine(release, settings)
    scores = engine.score([reference_record(engine.contract)], filled=False)
    if not np.isfinite(scores).all():
        raise WireError(f"{release.folder}: scores the reference record with what is no number")
    return Opened(release=release, engine=engine, calibration=calibration, decision=decision)


def explains(contract: Contract) -> bool:
    """Whether reasons can be given: of a binary task, where captum is installed."""
    return contract.task.kind == "binary" and importlib.util.find_spec("captum") is not None


def _engine(release: Release, settings: Settings) -> Engine:
    if settings.export is not None:
        from credit_client.scoring.runtime import open_export

        return open_export(release, _of(settings.export, release), settings.threads)
    from credit_client.scoring.reference import open_reference

    return open_reference(release, settings.device)


def _of(path: Path, release: Release) -> Path:
    """A path with the name of the release's folder for {}."""
    return Path(str(path).replace("{}", release.folder.name))
