"""What customers did: purchases, page visits with dwell times, and returns, as lists of events.

Purchases imitate real baskets (`completejourney`): how many, how unlike from customer to customer,
when in the week and the day, how much and with which trends. Visits imitate no data: that dwell
times are about log-normal is a common assumption about web pages, and their figures are made up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_simulations.simulated import completejourney as real
from credit_simulations.simulated.draws import Floats, Ints

HISTORY_DAYS = 182
"""Purchases and returns are kept for half a year."""
VISIT_DAYS = 56
"""Page visits are kept for eight weeks."""
DWELL_SPREAD = 0.9
"""Standard deviation of the log of dwell times within a customer."""
FOLLOW_ON = 0.07
"""Share of baskets that follow another one of the same trip; chance brings the measured share of
short gaps, `completejourney.FOLLOW_ON`, about."""
TRIP_MINUTES = 25.0
"""Mean minutes from a basket to the next one of the same trip."""
RETURN_DAYS = 6.0
"""Mean days from a purchase to its return."""
DAY = 1440  # minutes
NIGHT_HOURS = (0, 1, 2, 3, 4, 23)

Minutes = NDArray[np.int64]
"""Minutes since 1970, local time."""


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of all rows, by row and then by time; each of shape (events,).

    Attributes:
        row: Index of the row that an event belongs to.
        time: Minute of the event, before the row's application.
        value: USD of purchases and returns, seconds of dwell of visits.
    """

    row: Ints
    time: Minutes
    value: Floats


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What shapes each row's events; each of shape (rows,).

    Attributes:
        rate: Baskets a week.
        log_value, log_spread: Mean and standard deviation of the log of basket values in USD.
        value_trend, rate_trend: Slope of log value and of log rate over half a year.
        sessions: Page visits a basket.
        log_dwell: Mean log of dwell seconds.
        dwell_trend: Slope of log dwell over the eight weeks.
        night: Share of visits that come at night whatever the shop's usual hours.
        returning: Probability that a purchase is sent back.
    """

    rate: Floats
    log_value: Floats
    log_spread: Floats
    value_trend: Floats
    rate_trend: Floats
    sessions: Floats
    log_dwell: Floats
    dwell_trend: Floats
    night: Floats
    returning: Floats


def draw_purchases(
    random: np.random.Generator, habits: Habits, applied: Minutes, days: Floats
) -> Events:
    """Baskets in the last `days` (at most `HISTORY_DAYS`) before each application."""
    trips = random.poisson(habits.rate * (1 - FOLLOW_ON) * days / 7)
    row = np.repeat(np.arange(len(trips)), trips)
    ago = _days_ago(random, habits.rate_trend, days, row)
    time = _at_shop_hours(random, applied[row], ago)
    more = random.random(len(row)) < FOLLOW_ON / (1 - FOLLOW_ON)
    later = 1 + np.floor(random.exponential(TRIP_MINUTES, more.sum())).astype(np.int64)
    row, time = np.concatenate([row, row[more]]), np.concatenate([time, time[more] + later])
    row, time = _inside(row, time, applied, days)
    along = 0.5 - (applied[row] - time) / (HISTORY_DAYS * DAY)
    logs = habits.log_value[row] + habits.value_trend[row] * along
    logs += habits.log_spread[row] * random.standard_normal(len(row))
    return _ordered(row, time, np.clip(np.round(np.exp(logs), 2), 0.05, 5000.0))


def draw_visits(
    random: np.random.Generator, habits: Habits, applied: Minutes, days: Floats
) -> Events:
    """Page visits in the last `days` (at most `VISIT_DAYS`) before each application."""
    visits = random.poisson(habits.rate * habits.sessions * days / 7)
    row = np.repeat(np.arange(len(visits)), visits)
    ago = _days_ago(random, habits.rate_trend, days, row)
    time = _at_shop_hours(random, applied[row], ago)
    awake = random.random(len(row)) < habits.night[row]
    hour = random.choice(NIGHT_HOURS, len(row))
    late = time - time % DAY + 60 * hour + time % 60
    time = np.where(awake, late - DAY * (late >= applied[row]), time)
    row, time = _inside(row, time, applied, days)
    along = 0.5 - (applied[row] - time) / (VISIT_DAYS * DAY)
    logs = habits.log_dwell[row] + habits.dwell_trend[row] * along
    logs += DWELL_SPREAD * random.standard_normal(len(row))
    return _ordered(row, time, np.clip(np.round(np.exp(logs)), 1.0, 3600.0))


def draw_returns(
    random: np.random.Generator, habits: Habits, applied: Minutes, purchases: Events
) -> Events:
    """Purchases that were sent back before the application, at their value."""
    back = random.random(len(purchases.row)) < habits.returning[purchases.row]
    row = purchases.row[back]
    wait = DAY * (0.5 + random.exponential(RETURN_DAYS, len(row)))
    time = purchases.time[back] + wait.astype(np.int64)
    kept = time < applied[row]
    return _ordered(row[kept], time[kept], purchases.value[back][kept])


def as_json(events: Events, rows: int) -> list[str]:
    """Each row's events as the contract reads them: a JSON array of {"time", "value"}."""
    times = np.datetime_as_string(events.time.astype("datetime64[m]")).tolist()
    values = events.value.tolist()
    said = [
        f'{{"time":"{time}","value":{value:.12g}}}'
        for time, value in zip(times, values, strict=True)
    ]
    ends = np.cumsum(np.bincount(events.row, minlength=rows)).tolist()
    starts = [0, *ends[:-1]]
    return ["[" + ",".join(said[a:b]) + "]" for a, b in zip(starts, ends, strict=True)]


def per_row(events: Events, rows: int, values: Floats | None = None) -> Floats:
    """Sum of `values` (default: of 1 each, a count) over each row's events, shape (rows,)."""
    return np.asarray(np.bincount(events.row, weights=values, minlength=rows), np.float64)


def _days_ago(random: np.random.Generator, trend: Floats, days: Floats, row: Ints) -> Floats:
    # An event's place in (0, 1) has density exp(k x); its distribution function is inverted.
    k = trend[row] * days[row] / HISTORY_DAYS
    k = np.where(np.abs(k) < 1e-6, 1e-6, k)
    place = np.log1p(random.random(len(row)) * np.expm1(k)) / k
    return np.asarray((1 - place) * days[row], np.float64)


def _at_shop_hours(random: np.random.Generator, applied: Minutes, ago: Floats) -> Minutes:
    """Times about `ago` days before: the day moves by one at most, the hour is drawn anew."""
    day = np.floor(applied / DAY - ago).astype(np.int64)
    near = day[:, None] + np.arange(-1, 2)
    share = _PULL[(near + 3) % 7]  # 1970-01-01 was a Thursday
    up = np.cumsum(share, axis=1)
    move = (up < random.random(len(up))[:, None] * up[:, -1:]).sum(axis=1)
    hour = np.searchsorted(np.cumsum(real.HOURS), random.random(len(day)) * sum(real.HOURS))
    time = DAY * (day - 1 + move) + 60 * hour + random.integers(0, 60, len(day))
    late = np.maximum(time - applied + 1, 0)
    return np.asarray(time - DAY * -(-late // DAY), np.int64)


def _inside(row: Ints, time: Minutes, applied: Minutes, days: Floats) -> tuple[Ints, Minutes]:
    """Events that the move of the day left inside the watched days before the application."""
    ago = (applied[row] - time) / DAY
    kept = (ago > 0) & (ago < days[row])
    return row[kept], time[kept]


def weekday_pull(shares: Sequence[float]) -> Floats:
    """Weights of the weekdays that turn equal shares into the given ones, shape (7,).

    An event of each day goes to that day or a neighbour in proportion to their weights.

    Example:
        >>> weekday_pull([1 / 7] * 7).round(6).tolist() == [round(1 / 7, 6)] * 7
        True
    """
    wanted = np.array(shares) / sum(shares)
    pull = wanted.copy()
    for _ in range(200):
        around = pull + np.roll(pull, 1) + np.roll(pull, -1)
        leaving = 1 / around
        got = pull * (leaving + np.roll(leaving, 1) + np.roll(leaving, -1)) / 7
        pull = np.maximum(pull * wanted / got, 1e-3)
    return np.asarray(pull / pull.sum(), np.float64)


def _ordered(row: Ints, time: Minutes, value: Floats) -> Events:
    order = np.lexsort((time, row))
    return Events(row=row[order], time=time[order], value=value[order])


_PULL = weekday_pull(real.WEEKDAYS)
