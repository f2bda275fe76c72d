"""Who knows whom, and what one merchant sees of it.

People of a circle share its trouble and some planning, so linked people are alike in risk. A
merchant knows a link, by a referral or a shared address, only between its own customers, and late
payments only those made to itself: no column of a merchant depends on another merchant's records.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_simulations.simulated.draws import Floats, Ints, stream
from credit_simulations.simulated.shoppers import Shoppers, logit_parts

KNOWN_IN_CIRCLE = 0.8
"""Share of a circle's pairs that leave a link."""
CHANCE_LINKS = 0.15
"""Links a person between people of no common circle: the graph is not the circles."""
LATE_BASE, LATE_SLOPE = 0.16, 1.5
"""Late payments in half a year at mean risk, and their log's slope in it."""
LATE_DAYS = 182


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a merchant knows of its customers' standing, each of shape (rows,).

    Attributes:
        person, shop: Indices of person and merchant.
        opened, applied: Minutes since 1970 of the account's opening and of the application.
    """

    person: Ints
    shop: Ints
    opened: NDArray[np.int64]
    applied: NDArray[np.int64]


def draw_links(seed: int, shoppers: Shoppers) -> Ints:
    """Pairs of people who know each other, shape (links, 2), each pair once, smaller index first.

    Made of traits and chance alone; nobody is linked to themselves.
    """
    random, circle = stream(seed, "links"), shoppers.circle
    users, pairs = len(circle), []
    for step in range(1, int(np.bincount(circle).max(initial=1))):
        left = np.flatnonzero(circle[:-step] == circle[step:])
        left = left[random.random(len(left)) < KNOWN_IN_CIRCLE]
        pairs.append(np.column_stack([left, left + step]))
    met = random.integers(0, users, size=(round(CHANCE_LINKS * users), 2))
    pairs.append(np.sort(met[met[:, 0] != met[:, 1]], axis=1))
    return np.asarray(np.unique(np.concatenate(pairs), axis=0), np.intp)


def draw_late(seed: int, shoppers: Shoppers, accounts: Account) -> tuple[Ints, NDArray[np.int64]]:
    """Late payments at each account in the half-year before its application.

    They come of planning, means and the circle's trouble; the parts of the logit that only events
    or words tell leave no mark on them.

    Returns:
        Their number, shape (rows,), and the minute of the first one, or the largest integer.
    """
    random, parts = stream(seed, "late"), logit_parts(shoppers)
    risk = (parts["numbers"] + parts["links"])[accounts.person]
    number = random.poisson(LATE_BASE * np.exp(LATE_SLOPE * risk))
    span = np.minimum(accounts.applied - accounts.opened, LATE_DAYS * 1440)
    first = accounts.applied - (span * random.random(len(risk))).astype(np.int64)
    return np.asarray(number, np.intp), np.where(number > 0, first, np.iinfo(np.int64).max)


def linked_customers(
    links: Ints, accounts: Account, late_at: NDArray[np.int64]
) -> tuple[Ints, Floats]:
    """What a merchant sees around each account at the minute of its application.

    Args:
        links: Pairs of people, shape (links, 2).
        accounts: All accounts of all merchants.
        late_at: Minute of each account's first late payment.

    Returns:
        Number of linked customers with an account at the same merchant by then, and the share of
        them who had paid late there by then (NaN where there are none); shape (rows,) each.
    """
    rows = len(accounts.person)
    number, late = np.zeros(rows, np.intp), np.zeros(rows)
    both = np.concatenate([links, links[:, ::-1]])
    people = 1 + max(int(accounts.person.max(initial=0)), int(both.max(initial=0)))
    row_of = np.empty(people, np.intp)
    for shop in np.unique(accounts.shop):
        here = np.flatnonzero(accounts.shop == shop)
        row_of[:] = -1
        row_of[accounts.person[here]] = here
        mine, other = row_of[both].T
        seen = (mine >= 0) & (other >= 0)
        mine, other = mine[seen], other[seen]
        known = accounts.opened[other] < accounts.applied[mine]
        mine, other = mine[known], other[known]
        np.add.at(number, mine, 1)
        np.add.at(late, mine, late_at[other] < accounts.applied[mine])
    return number, np.where(number > 0, late / np.maximum(number, 1), np.nan)
