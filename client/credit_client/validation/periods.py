"""Out of time: the same release on users before a day and from that day on."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from credit_client.validation.bands import BANDS, band_of
from credit_client.validation.figures import Figures, figures
from credit_client.validation.sample import FEWEST, Sample, why_not
from credit_common.errors import ShardError
from credit_common.stability import psi, psi_band

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Period:
    """Users of one period.

    Attributes:
        first, last: Days of the first and last of them, ISO 8601.
        users: Their number.
        figures: None where they are too few to be judged.
        why_not: What there are too few of.
    """

    first: str
    last: str
    users: int
    figures: Figures | None
    why_not: str


@dataclass(frozen=True, kw_only=True)
class OutOfTime:
    """Two periods, and how far scores have moved from one to the other.

    Attributes:
        since: The day from which users are in the second one, ISO 8601.
        before, after: The periods.
        untimed: Users without a time, who are in neither.
        psi: Population stability index over tenths of the first period's scores; None where a
            period has fewer than 50 users.
        psi_band: As `stability.psi_band` names it.
        psi_by_chance: What it is on average on so many users where nothing has moved, to first
            order: (bands - 1)(1 / users before + 1 / users after).
    """

    since: str
    before: Period
    after: Period
    untimed: int
    psi: float | None
    psi_band: str | None
    psi_by_chance: float | None


def out_of_time(sample: Sample, since: date) -> OutOfTime:
    """Split users by the time of their record.

    Raises:
        ShardError: If nobody is in one of the periods.
    """
    times = np.array([np.nan if e.time is None else e.time for e in sample.examples], np.float64)
    start = float((since - _EPOCH).days)
    early, late = times < start, times >= start
    for own, words in ((early, f"before {since}"), (late, f"from {since} on")):
        if not own.any():
            raise ShardError(f"--from {since}: no user has a time {words}")
    enough = min(early.sum(), late.sum()) >= FEWEST
    moved = chance = None
    if enough:
        moved = score_psi(sample.logits[early], sample.logits[late])
        bands = np.unique(band_of(sample.logits[early])).size
        chance = float((bands - 1) * (1 / early.sum() + 1 / late.sum()))
    return OutOfTime(
        since=since.isoformat(),
        before=_period(sample, times, early),
        after=_period(sample, times, late),
        untimed=int(np.isnan(times).sum()),
        psi=moved,
        psi_band=None if moved is None else psi_band(moved),
        psi_by_chance=chance,
    )


def score_psi(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """PSI of scores (users,) over tenths of the expected ones; users of one score stay together."""
    place = band_of(expected)
    starts = np.sort([expected[place == band].min() for band in np.unique(place)])[1:]
    counts = [
        np.bincount(np.searchsorted(starts, scores, "right"), minlength=min(BANDS, starts.size + 1))
        for scores in (expected, actual)
    ]
    return psi(*counts)


def _period(sample: Sample, times: NDArray[np.float64], own: NDArray[np.bool_]) -> Period:
    labels, days = sample.labels[own], times[own]
    reason = why_not(labels)
    return Period(
        first=_day(days.min()),
        last=_day(days.max()),
        users=labels.size,
        figures=None if reason else figures(sample.logits[own], sample.pds[own], labels),
        why_not=reason,
    )


def _day(days: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=float(days))
    return moment.date().isoformat()
