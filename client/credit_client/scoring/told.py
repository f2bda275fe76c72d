"""Logits -> what is told of an applicant: PD, points, band and decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from credit_client.scoring.calibration import Calibration
from credit_client.scoring.points import default_probability, points
from credit_common.contract import Contract
from credit_common.decision import Decision

Verdict = Literal["approve", "refer", "decline"]
"""What becomes of an application; "refer" is to a person."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a binary task's score says of one record.

    Attributes:
        logit: The model's own.
        pd: Probability of default by the model.
        calibrated_pd: By the holder's calibration; None without one.
        points: Of the PD that decides: the calibrated one where there is one.
        band: Of the same PD; None where there are no bands.
        decision: Of the same PD; None where there are no cut-offs.
    """

    logit: float
    pd: float
    calibrated_pd: float | None
    points: float
    band: str | None
    decision: Verdict | None

    @property
    def deciding(self) -> float:
        """The PD that decides."""
        return self.pd if self.calibrated_pd is None else self.calibrated_pd


def tell(
    contract: Contract,
    logits: ArrayLike,
    calibration: Calibration | None = None,
    decision: Decision | None = None,
) -> list[Told]:
    """What is told of each record.

    Args:
        contract: Of a binary task.
        logits: (n,).
        calibration: The holder's, where it has one.
        decision: The holder's cut-offs and bands; None for the contract's.

    Raises:
        ContractError: If the task is another.
    """
    raw = np.asarray(logits, np.float64)
    rules = contract.decision if decision is None else decision
    pds = default_probability(contract, raw)
    if calibration is None:
        deciding, scale = pds, raw
    else:
        deciding = calibration.apply(raw)
        scale = np.log(deciding) - np.log1p(-deciding)
    card = points(contract.scorecard, scale)
    return [
        Told(
            logit=float(logit),
            pd=float(pd),
            calibrated_pd=None if calibration is None else float(own),
            points=float(point),
            band=_band(rules.bands, float(own)),
            decision=_verdict(rules, float(own)),
        )
        for logit, pd, own, point in zip(raw, pds, deciding, card, strict=True)
    ]


def _band(bands: Sequence[tuple[str, float]], pd: float) -> str | None:
    for name, end in bands:
        if pd < end:
            return name
    return bands[-1][0] if bands else None  # a PD of 1 is in the last one


def _verdict(rules: Decision, pd: float) -> Verdict | None:
    if rules.approve_below is None or rules.decline_from is None:
        return None
    if pd < rules.approve_below:
        return "approve"
    return "decline" if pd >= rules.decline_from else "refer"
