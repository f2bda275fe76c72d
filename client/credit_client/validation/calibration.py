"""Whether a PD of 10% means one default in ten: as released, and with a holder's calibration.

A calibration is never judged on users that it was fitted on: users are cut into five folds by their
key, and each fold is judged by a calibration that is fitted on the four others. So it is the method
that is judged, Platt's (1999) sigmoid or isotonic regression (Zadrozny and Elkan 2002), and not the
one fit that a file holds, which may have seen these very users.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_client.scoring.calibration import Method, fit
from credit_client.validation.bands import BANDS, band_of
from credit_common.delong import Z95
from credit_common.metrics import brier_exact, log_loss_exact

FOLDS = 5
FITTED_ON = "of the four fifths that it is fitted on"
_EDGE = 1e-6
"""Where PDs are cut before their logit is taken, for slope and intercept alone."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Users of neighbouring PDs: what was said, and what came.

    Attributes:
        users, bads: Users, and defaults among them.
        mean_pd, bad_rate: Said, and observed.
        low, high: Wilson's (1927) interval of .95 of the observed rate.
    """

    users: int
    bads: int
    mean_pd: float
    bad_rate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """How well PDs are calibrated.

    Attributes:
        name: "as released", or the method.
        mean_pd, bad_rate: Of all users.
        brier, log_loss: Mean squared difference, and mean negative log likelihood in nats.
        ece: Expected calibration error: the mean over users of |mean PD - bad rate| of their
            tenth, tenths of equal size (Nixon et al. 2019).
        slope: Of a logistic regression of outcomes on the PDs' logits: 1 is right, below 1 PDs are
            too extreme (Cox 1958). PDs are cut to 1e-6 from 0 and 1 for it.
        intercept: What has to be added to the logits for the mean PD to be right, at slope 1.
        hosmer_lemeshow, p_value: Statistic over the same tenths, against chi-squared with as many
            degrees of freedom, since nothing was fitted on these users (Hosmer and Lemeshow 1980).
        rows: The tenths, by rising PD.
    """

    name: str
    mean_pd: float
    bad_rate: float
    brier: float
    log_loss: float
    ece: float
    slope: float
    intercept: float
    hosmer_lemeshow: float
    p_value: float
    rows: tuple[Reliability, ...]


def calibrated(name: str, pds: NDArray[np.float64], labels: NDArray[np.int64]) -> Calibrated:
    """Judge PDs (users,) by outcomes (users,) of both classes."""
    from scipy.special import gammaincc

    rows = reliability(pds, labels)
    statistic = sum(
        (row.bads - row.users * row.mean_pd) ** 2
        / max(row.users * row.mean_pd * (1 - row.mean_pd), 1e-12)
        for row in rows
    )
    slope, intercept = slope_and_intercept(pds, labels)
    return Calibrated(
        name=name,
        mean_pd=float(pds.mean()),
        bad_rate=float(labels.mean()),
        brier=brier_exact(pds, labels),
        log_loss=log_loss_exact(pds, labels),
        ece=sum(row.users * abs(row.mean_pd - row.bad_rate) for row in rows) / labels.size,
        slope=slope,
        intercept=intercept,
        hosmer_lemeshow=statistic,
        p_value=float(gammaincc(len(rows) / 2, statistic / 2)),
        rows=rows,
    )


def reliability(pds: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[Reliability, ...]:
    """Tenths of the users by rising PD; users of one PD are never split."""
    place = band_of(-pds)
    rows = []
    for number in range(BANDS):
        own = place == number
        if own.any():
            users, bads = int(own.sum()), int(labels[own].sum())
            low, high = wilson(bads, users)
            rows.append(
                Reliability(
                    users=users,
                    bads=bads,
                    mean_pd=float(pds[own].mean()),
                    bad_rate=bads / users,
                    low=low,
                    high=high,
                )
            )
    return tuple(rows)


def wilson(bads: int, users: int) -> tuple[float, float]:
    """Interval of .95 of a rate.

    >>> [round(end, 4) for end in wilson(0, 10)]
    [0.0, 0.2775]
    """
    share, z2 = bads / users, Z95**2
    middle = (share + z2 / (2 * users)) / (1 + z2 / users)
    inside = share * (1 - share) / users + z2 / (4 * users**2)
    half = Z95 * math.sqrt(inside) / (1 + z2 / users)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def slope_and_intercept(pds: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Calibration slope, and calibration-in-the-large; a slope of nan where all PDs are one."""
    from scipy.optimize import brentq
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    told = logit(np.clip(pds, _EDGE, 1 - _EDGE))
    slope = math.nan
    if np.ptp(told) > 0:
        model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
        slope = float(model.fit(told[:, None], labels).coef_[0, 0])
    rate = labels.mean()
    intercept = brentq(lambda more: expit(told + more).mean() - rate, -40, 40)
    return slope, float(intercept)


def folds(keys: Sequence[str]) -> NDArray[np.int64]:
    """Each user's fold from 0, by the end of its key: its beginning decides who is held out."""
    return np.array([int(key[-16:], 16) % FOLDS for key in keys], np.int64)


def cross_fitted(
    method: Method, logits: NDArray[np.float64], labels: NDArray[np.int64], keys: Sequence[str]
) -> NDArray[np.float64]:
    """Calibrated PDs (users,), each by a calibration that has not seen the user's fold.

    Raises:
        ShardError: If the other folds of some user are too few users to fit on, see
            `scoring.calibration.fit`.
    """
    own, pds = folds(keys), np.zeros(labels.size)
    for fold in np.unique(own):
        others = own != fold
        found = fit(method, logits[others], labels[others], release="")
        pds[~others] = found.apply(logits[~others])
    return pds
