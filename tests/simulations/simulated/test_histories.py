import json

import numpy as np
import pytest

from credit_simulations.simulated import completejourney as real
from credit_simulations.simulated.histories import (
    DAY,
    HISTORY_DAYS,
    VISIT_DAYS,
    Events,
    Habits,
    as_json,
    draw_purchases,
    draw_returns,
    draw_visits,
    per_row,
    weekday_pull,
)

ROWS = 4000
APPLIED = np.random.default_rng(8).integers(29_000_000, 29_500_000, ROWS)  # 2025
WHOLE = np.full(ROWS, float(HISTORY_DAYS))


def habits(**changed):
    plain = {
        "rate": 2.0, "log_value": 3.0, "log_spread": 0.5, "value_trend": 0.0, "rate_trend": 0.0,
        "sessions": 2.0, "log_dwell": 4.0, "dwell_trend": 0.0, "night": 0.0, "returning": 0.1,
    }  # fmt: skip
    return Habits(**{name: np.full(ROWS, value) for name, value in {**plain, **changed}.items()})


def halves(events, days):
    """Events in the older and in the newer half of the days before the application."""
    ago = (APPLIED[events.row] - events.time) / DAY
    return ago >= days / 2, ago < days / 2


def close(found, shares, events):
    """Frequencies of at least `events` independent draws; 6 standard errors, and .001 of shape."""
    shares = np.array(shares) / sum(shares)
    return (np.abs(found - shares) < 6 * np.sqrt(shares / events) + 1e-3).all()


def test_purchases_keep_the_real_hours_and_weekdays():
    bought = draw_purchases(np.random.default_rng(0), habits(), APPLIED, WHOLE)
    hours = np.bincount(bought.time % DAY // 60, minlength=24) / len(bought.row)
    days = np.bincount((bought.time // DAY + 3) % 7, minlength=7) / len(bought.row)
    assert close(hours, real.HOURS, ROWS * 40)
    assert close(days, real.WEEKDAYS, ROWS * 40)
    assert not close(days, np.roll(real.WEEKDAYS, 1), ROWS * 40)  # the check can fail


def test_events_lie_in_the_watched_days_before_the_application_and_in_order():
    days = np.random.default_rng(1).uniform(14, VISIT_DAYS, ROWS)
    draw = np.random.default_rng(2)
    bought = draw_purchases(draw, habits(), APPLIED, days)
    viewed = draw_visits(draw, habits(night=0.3), APPLIED, days)
    sent_back = draw_returns(draw, habits(), APPLIED, bought)
    for events in (bought, viewed, sent_back):
        assert len(events.row) > 1000
        ago = (APPLIED[events.row] - events.time) / DAY
        assert ago.min() > 0
        assert (ago < days[events.row]).all()
        order = np.lexsort((events.time, events.row))
        assert (order == np.arange(len(order))).all()


@pytest.mark.parametrize("trend", [-1.5, 0.0, 1.5])
def test_trends_move_rate_value_and_dwell_and_not_the_number_of_baskets(trend):
    moved = habits(rate_trend=trend, value_trend=trend, dwell_trend=trend)
    bought = draw_purchases(np.random.default_rng(3), moved, APPLIED, WHOLE)
    viewed = draw_visits(np.random.default_rng(3), moved, APPLIED, np.full(ROWS, VISIT_DAYS * 1.0))
    assert per_row(bought, ROWS).mean() == pytest.approx(2.0 * 26, rel=0.02)
    for events, days, rate_trend in (
        (bought, HISTORY_DAYS, trend),
        (viewed, VISIT_DAYS, trend * VISIT_DAYS / HISTORY_DAYS),
    ):
        older, newer = halves(events, days)
        assert np.log(newer.sum() / older.sum()) == pytest.approx(rate_trend / 2, abs=0.06)
        logs = np.log(events.value)
        x = 0.5 - (APPLIED[events.row] - events.time) / DAY / days
        slope = np.polyfit(x, logs, 1)[0]
        assert slope == pytest.approx(trend, abs=0.06)


def test_short_gaps_are_about_as_common_as_real_ones():
    bought = draw_purchases(np.random.default_rng(4), habits(rate=1.2), APPLIED, WHOLE)
    gap = np.diff(bought.time)[np.diff(bought.row) == 0] / DAY
    assert (gap < real.FOLLOW_ON_DAYS).mean() == pytest.approx(real.FOLLOW_ON, abs=0.025)


def test_returns_are_purchases_at_their_value_and_later():
    bought = draw_purchases(np.random.default_rng(5), habits(), APPLIED, WHOLE)
    sent_back = draw_returns(np.random.default_rng(5), habits(), APPLIED, bought)
    share = len(sent_back.row) / len(bought.row)
    assert 0.08 < share < 0.1  # the latest ones do not come back before the application
    values = set(zip(bought.row.tolist(), bought.value.tolist(), strict=True))
    assert set(zip(sent_back.row.tolist(), sent_back.value.tolist(), strict=True)) <= values


def test_json_holds_each_rows_own_events():
    events = Events(
        row=np.array([0, 0, 2]),
        time=np.array([0, 61, 29_000_000]),
        value=np.array([1.5, 2.0, 0.07]),
    )
    first, second, third = (json.loads(text) for text in as_json(events, 3))
    assert first == [
        {"time": "1970-01-01T00:00", "value": 1.5},
        {"time": "1970-01-01T01:01", "value": 2},
    ]
    assert second == []
    assert third == [{"time": "2025-02-19T21:20", "value": 0.07}]


def test_weekday_pull_gives_back_the_shares_it_was_made_for():
    shares = np.array(real.WEEKDAYS) / sum(real.WEEKDAYS)
    pull = weekday_pull(real.WEEKDAYS)
    got = np.zeros(7)
    for day in range(7):
        near = [(day - 1) % 7, day, (day + 1) % 7]
        got[near] += pull[near] / pull[near].sum() / 7
    assert np.allclose(got, shares, atol=1e-6)
