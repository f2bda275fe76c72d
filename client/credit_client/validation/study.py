"""All that is found about a release on a merchant's users, and its plain form."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_client.validation.bands import Band
from credit_client.validation.calibration import Calibrated
from credit_client.validation.challenger import Challenge
from credit_client.validation.cutoffs import CutOff, Outcome, Stakes
from credit_client.validation.evidence import FieldEvidence
from credit_client.validation.fairness import Fairness
from credit_client.validation.figures import Figures
from credit_client.validation.periods import OutOfTime
from credit_client.validation.sample import Sample, Users
from credit_common.decision import Decision
from credit_common.points_table import PointsTable


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was judged on what.

    Attributes:
        federation, contract_digest, release_digest, created: Of the release.
        file: Name of the merchant's file.
        rows, rejected: Data rows of it, and those that could not be used.
        file_users: Users in it.
        users: Which of them are judged.
        calibration: Method of the holder's calibration; None where decisions are by the PDs as
            released.
        own_cut_offs: Whether cut-offs are the holder's own.
    """

    federation: str
    contract_digest: str
    release_digest: str
    created: str
    file: str
    rows: int
    rejected: int
    file_users: int
    users: Users
    calibration: str | None
    own_cut_offs: bool


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """How much of the scores is not in the points table.

    Attributes:
        share: Variance over these users of the logit's part that BERT reads, over the sum of both
            parts' variances.
        auc_wide: AUC of the points table alone.
    """

    share: float
    auc_wide: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """All tables of a release on a merchant's users. The modules beside this one say what is what.

    Attributes:
        judged: What was judged on what.
        decision: Cut-offs and bands in force.
        stakes: What a default costs.
        marks: Cut-offs (name, PD) that groups and models are compared at.
        figures, bands, cut_offs, decided, banded, evidence, fairness, calibration: See there.
        not_calibrated: Methods that are not judged, and why.
        points: None where the release has no wide part.
        text: None where one of the two parts is missing.
        challenge, periods: None where not asked for.
        sample: The users themselves, for plots.
        told_points: (users,), their scorecard points, for plots.
    """

    judged: Judged
    decision: Decision
    stakes: Stakes
    marks: tuple[tuple[str, float], ...]
    figures: Figures
    bands: tuple[Band, ...]
    cut_offs: tuple[CutOff, ...]
    decided: tuple[Outcome, ...]
    banded: tuple[Outcome, ...]
    calibration: tuple[Calibrated, ...]
    not_calibrated: tuple[tuple[str, str], ...]
    fairness: tuple[Fairness, ...]
    evidence: tuple[FieldEvidence, ...]
    points: PointsTable | None
    text: TextPart | None
    challenge: Challenge | None
    periods: OutOfTime | None
    sample: Sample = field(repr=False)
    told_points: NDArray[np.float64] = field(repr=False)


_USERS = ("sample", "told_points")


def as_json(told: Study) -> dict[str, Any]:
    """All tables as plain JSON: no user but in counts, and null where a number does not exist."""
    parts = {
        f.name: getattr(told, f.name) for f in dataclasses.fields(told) if f.name not in _USERS
    }
    plain: dict[str, Any] = _plain(parts)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
