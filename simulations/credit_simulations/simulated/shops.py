"""One row for each SIMULATED user and merchant, as the merchants' own files would hold them.

A user who shops at several merchants has the same `client_id` and the same default at each, and
histories of its own at each. The unit of privacy is a user of one holder, so what the merchants
spend on such a user composes: at most the sum of their ε, and of their δ.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from credit_common.errors import CreditError
from credit_simulations.simulated import completejourney as real
from credit_simulations.simulated.draws import (
    Floats,
    Ints,
    blend,
    from_quantiles,
    pick,
    sigmoid,
    stream,
)
from credit_simulations.simulated.histories import (
    DAY,
    HISTORY_DAYS,
    NIGHT_HOURS,
    VISIT_DAYS,
    Events,
    Habits,
    as_json,
    draw_purchases,
    draw_returns,
    draw_visits,
    per_row,
)
from credit_simulations.simulated.links import Account, draw_late, draw_links, linked_customers
from credit_simulations.simulated.merchants import draw_merchants
from credit_simulations.simulated.shoppers import (
    Shoppers,
    draw_defaults,
    draw_shoppers,
    draw_visitors,
    logit_parts,
    true_pd,
)
from credit_simulations.simulated.words import DEPARTMENT_NAMES, draw_reviews, draw_titles

SEED, USERS, MERCHANTS = 1, 10_000, 10
"""Of the packaged data set: 12,000 rows, since .15 of 10,000 users shop at two or three shops."""
FIRST_DAY = np.datetime64("2025-01-01", "m").astype(np.int64)
"""Applications fall into the year from here; the calendar is as made up as the rest."""
DEVICES = ("phone", "app", "tablet", "desktop")
PAYMENTS = ("card", "wallet", "invoice", "instalments", "prepaid")
AGE_BANDS = ((25, "18-24"), (35, "25-34"), (45, "35-44"), (55, "45-54"), (65, "55-64"))
OLDEST = "65+"


def simulate_shops(seed: int, users: int, merchants: int) -> pd.DataFrame:
    """Simulate users of several merchants; the same arguments give the same frame.

    Args:
        seed: Public; it shapes made-up data and has no part in any privacy mechanism.
        users: People, at least 10; there are some 1.2 rows for each.
        merchants: At least 1.

    Returns:
        One row for each user and merchant, by `client_id` and then `holder`, with the columns that
        the contract simulated-shops declares, `default` (0 or 1, the same in all rows of a user)
        and `true_pd`, the probability that it was drawn with.

    Raises:
        CreditError: If a number is out of its range.
    """
    if users < 10 or merchants < 1:
        raise CreditError(f"users = {users}, merchants = {merchants}: at least 10 and 1")
    shops = draw_merchants(seed, merchants)
    people = draw_shoppers(seed, users, shops)
    person, shop = draw_visitors(seed, people, shops)
    rows = len(person)
    accounts = _accounts(seed, people, person, shop)
    late, late_at = draw_late(seed, people, accounts)
    linked, linked_late = linked_customers(draw_links(seed, people), accounts, late_at)
    habits = _habits(seed, people, person, np.array([m.price for m in shops])[shop])
    applied, age = accounts.applied, (accounts.applied - accounts.opened) / DAY
    watched = np.minimum(age, HISTORY_DAYS)
    bought = draw_purchases(stream(seed, "purchases"), habits, applied, watched)
    viewed = draw_visits(stream(seed, "visits"), habits, applied, np.minimum(age, VISIT_DAYS))
    sent_back = draw_returns(stream(seed, "returns"), habits, applied, bought)
    mix = np.array([m.mix for m in shops])[shop]
    words = stream(seed, "words")
    department = pick(mix, words)
    probability = true_pd(people)
    ids = _client_ids(seed, users)
    frame = pd.DataFrame(
        {
            "client_id": [ids[n] for n in person.tolist()],
            "holder": [shops[n].name for n in shop.tolist()],
            "applied_at": np.datetime_as_string(applied.astype("datetime64[m]")).tolist(),
            "account_age_days": age.astype(np.int64),
            "late_payments_26w": late.astype(np.int64),
            "linked_customers": linked.astype(np.int64),
            "linked_late_share": linked_late.round(4),
            **_basket_columns(bought, sent_back, rows),
            "discount_share": _discounts(seed, people, person),
            **_visit_columns(viewed, rows),
            **_category_columns(seed, people, person),
            "main_department": [DEPARTMENT_NAMES[n] for n in department.tolist()],
            "basket_titles": draw_titles(words, people.stretch[person], department, mix),
            "last_review": draw_reviews(
                words, people.worry[person], [shops[n].style for n in shop.tolist()]
            ),
            "purchases": as_json(bought, rows),
            "visits": as_json(viewed, rows),
            "returns": as_json(sent_back, rows),
            "age_band": [_band(years) for years in people.age[person].tolist()],
            "sex": np.where(people.female[person] == 1, "f", "m").tolist(),
            "default": draw_defaults(seed, probability)[person].astype(np.int64),
            "true_pd": probability[person],
        }
    )
    return frame.sort_values(["client_id", "holder"], ignore_index=True)


def simulate_parts(seed: int, users: int, merchants: int) -> pd.DataFrame:
    """What the true PD of the same people is made of, to see which part a model misses.

    Returns:
        One row for each user, by `client_id`, with each of `shoppers.PARTS` in units of the logit.
    """
    people = draw_shoppers(seed, users, draw_merchants(seed, merchants))
    frame = pd.DataFrame({"client_id": _client_ids(seed, users), **logit_parts(people)})
    return frame.sort_values("client_id", ignore_index=True)


def simulated_shops() -> pd.DataFrame:
    """The packaged data set: 12,000 rows of 10,000 users at 10 merchants."""
    return simulate_shops(SEED, USERS, MERCHANTS)


def _client_ids(seed: int, users: int) -> list[str]:
    # People of a circle have neighbouring indices, and an id must not tell of that.
    numbers = 1 + stream(seed, "ids").permutation(users)
    return [f"simulated-{number:06d}" for number in numbers.tolist()]


def _accounts(seed: int, people: Shoppers, person: Ints, shop: Ints) -> Account:
    random, rows = stream(seed, "accounts"), len(person)
    applied = FIRST_DAY + random.integers(0, 365 * DAY, rows)
    days = np.exp(6.2 + 0.9 * blend(0.5, people.planning[person], random))
    opened = applied - (DAY * np.clip(days, 14, 4000)).astype(np.int64)
    return Account(person=person, shop=shop, opened=opened, applied=applied)


def _habits(seed: int, people: Shoppers, person: Ints, price: Floats) -> Habits:
    random = stream(seed, "habits")
    planning, means, strain = people.planning[person], people.means[person], people.strain[person]
    # A person is about as busy a shopper everywhere, and spends less and less often under strain.
    busy = np.asarray(random.standard_normal(len(people.home)), np.float64)[person]
    spread = real.LOG_VALUE_WITHIN + real.LOG_VALUE_WITHIN_SD * random.standard_normal(len(person))
    spending = blend(0.8, means, random)
    return Habits(
        rate=from_quantiles(blend(0.5, busy, random), real.BASKETS_A_WEEK),
        log_value=real.LOG_VALUE_MEAN + real.LOG_VALUE_BETWEEN * spending + price,
        log_spread=np.clip(spread, 0.3, 1.8),
        value_trend=real.VALUE_TREND * blend(-0.95, strain, random),
        rate_trend=real.RATE_TREND * blend(-0.95, strain, random),
        sessions=np.exp(1.1 + 0.4 * random.standard_normal(len(person))),
        log_dwell=np.log(45.0) + 0.4 * blend(0.85, planning, random),
        dwell_trend=-1.2 * blend(0.95, strain, random),
        night=sigmoid(-2.5 - 1.0 * blend(0.85, planning, random)),
        returning=sigmoid(-3.0 - 0.7 * blend(0.7, planning, random)),
    )


def _discounts(seed: int, people: Shoppers, person: Ints) -> Floats:
    thrift = blend(-0.75, people.means[person], stream(seed, "discounts"))
    return np.clip(real.DISCOUNT_MEAN + real.DISCOUNT_SD * thrift, 0.0, 0.6).round(4)


def _basket_columns(bought: Events, sent_back: Events, rows: int) -> dict[str, NDArray[Any]]:
    number, spent = per_row(bought, rows), per_row(bought, rows, bought.value)
    largest = np.zeros(rows)
    np.maximum.at(largest, bought.row, bought.value)
    some = np.maximum(number, 1)
    return {
        "baskets_26w": number.astype(np.int64),
        "mean_basket": np.where(number > 0, spent / some, np.nan).round(2),
        "largest_basket": np.where(number > 0, largest, np.nan),
        "return_share": np.where(number > 0, per_row(sent_back, rows) / some, np.nan).round(4),
    }


def _visit_columns(viewed: Events, rows: int) -> dict[str, NDArray[Any]]:
    number, some = per_row(viewed, rows), np.maximum(per_row(viewed, rows), 1)
    night = np.isin(viewed.time % DAY // 60, NIGHT_HOURS).astype(np.float64)
    return {
        "sessions_8w": number.astype(np.int64),
        "mean_dwell_seconds": np.where(
            number > 0, per_row(viewed, rows, viewed.value) / some, np.nan
        ).round(1),
        "night_share": np.where(number > 0, per_row(viewed, rows, night) / some, np.nan).round(4),
    }


def _category_columns(seed: int, people: Shoppers, person: Ints) -> dict[str, list[str]]:
    random = stream(seed, "categories")
    young = (42 - people.age[person]) / 14
    woman = people.female[person] - 0.5
    planning, means = people.planning[person], people.means[person]
    none = np.zeros(len(person))
    device = np.stack([0.8 + 0.3 * young, 0.2 + 0.5 * young, -0.8 + 0.6 * woman, 0.4 * means], 1)
    paying = [0.9 + 0.2 * means, 0.2 + 0.3 * young, none, -0.4 - 0.8 * planning, -1.2 - 0.9 * means]
    payment = np.stack(paying, axis=1)
    return {
        "device": [DEVICES[i] for i in pick(np.exp(device), random).tolist()],
        "payment_method": [PAYMENTS[i] for i in pick(np.exp(payment), random).tolist()],
    }


def _band(years: float) -> str:
    return next((name for below, name in AGE_BANDS if years < below), OLDEST)
