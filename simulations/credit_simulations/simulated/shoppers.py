"""Latent people and their true probability of default.

Each person has standard normal traits that no merchant sees, and each trait speaks through one
channel only: planning and means through numbers and categories, strain through the course of events
in time, worry and stretch through the words of reviews and product titles, the circle's trouble
through linked customers. So the true PD is the sum of parts that a model can miss one by one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from credit_simulations.simulated.draws import Floats, Ints, blend, sigmoid, stream
from credit_simulations.simulated.merchants import Merchant

INTERCEPT = -2.6
"""Set so that some .12 of people default."""
PARTS = ("numbers", "events", "text", "links", "merchant")
"""Parts of the logit; `true_pd` can leave some out."""
CIRCLE_EXTRA = 3.5
"""Mean number of others in a circle of people who know each other (Poisson)."""
ALIKE = 0.3
"""Correlation of planning within a circle: people know people like themselves."""
AT_CIRCLES_HOME = 0.85
"""Share of people whose home merchant is their circle's: friends recommend shops."""
AT_TWO, AT_THREE = 0.10, 0.05
"""Shares of people who shop at two and at three merchants."""


@dataclass(frozen=True, kw_only=True)
class Shoppers:
    """People, each field of shape (users,).

    Attributes:
        age: Years, 18 to 90.
        female: Whether the person is a woman. Age and sex move traits and shopping, and have no
            part of their own in the logit.
        planning, means, strain, worry, stretch: Traits; see the module.
        circle: Index of the person's circle.
        trouble: The circle's trait, the same for all its members.
        home: Index of the home merchant.
        offset: The home merchant's part of the logit.
    """

    age: Floats
    female: Ints
    planning: Floats
    means: Floats
    strain: Floats
    worry: Floats
    stretch: Floats
    circle: Ints
    trouble: Floats
    home: Ints
    offset: Floats


def draw_shoppers(seed: int, users: int, merchants: Sequence[Merchant]) -> Shoppers:
    """Draw people; the same arguments give the same ones."""
    random = stream(seed, "shoppers")
    sizes = 1 + random.poisson(CIRCLE_EXTRA, users)
    circle = np.repeat(np.arange(users), sizes)[:users]
    weights = np.array([m.weight for m in merchants])
    homes = random.choice(len(merchants), size=(2, users), p=weights)
    home = np.where(random.random(users) < AT_CIRCLES_HOME, homes[0][circle], homes[1])
    risk = np.array([m.risk for m in merchants])[home]
    years = random.standard_normal(users)
    female = random.integers(0, 2, users)
    alike = random.standard_normal(users)[circle]
    # A risky clientele plans less too, so that merchants differ in what they see of it.
    planning = blend(0.35, years, random) * np.sqrt(1 - ALIKE) + np.sqrt(ALIKE) * alike - 0.8 * risk
    return Shoppers(
        age=np.clip(np.round(42 + 14 * years), 18, 90),
        female=np.asarray(female, np.intp),
        planning=planning,
        means=blend(0.25, years, random) - 0.1 * (female - 0.5),
        strain=random.standard_normal(users),
        worry=random.standard_normal(users),
        stretch=random.standard_normal(users),
        circle=np.asarray(circle, np.intp),
        trouble=random.standard_normal(users)[circle],
        home=np.asarray(home, np.intp),
        offset=risk,
    )


def draw_visitors(
    seed: int, shoppers: Shoppers, merchants: Sequence[Merchant]
) -> tuple[Ints, Ints]:
    """Who shops where: (person, merchant) index of each row, by person and then by merchant.

    Everybody shops at home. `AT_TWO` and `AT_THREE` of all people, rounded, shop at one and two
    others too, as many as there are.
    """
    random, users = stream(seed, "visitors"), len(shoppers.home)
    order = random.permutation(users)
    three = round(AT_THREE * users)
    extra = {2: order[:three], 1: order[three : three + round(AT_TWO * users)]}
    weights = np.array([m.weight for m in merchants])
    person, shop = [np.arange(users)], [shoppers.home]
    for others, people in extra.items():
        # The largest of weight ** (1 / u) are a draw without replacement (Efraimidis 2006).
        keys = np.log(random.random((len(people), len(merchants)))) / weights
        keys[np.arange(len(people)), shoppers.home[people]] = -np.inf
        chosen = np.argsort(-keys, axis=1)[:, : min(others, len(merchants) - 1)]
        person.append(np.repeat(people, chosen.shape[1]))
        shop.append(chosen.ravel())
    who, where = np.concatenate(person), np.concatenate(shop)
    at = np.lexsort((where, who))
    return who[at], where[at]


def logit_parts(shoppers: Shoppers) -> dict[str, Floats]:
    """The parts of the logit, each of mean near 0 and shape (users,)."""
    s = shoppers
    scarce = np.logaddexp(0.0, -1.5 * s.means)  # little means hurt, plenty hardly helps
    pinch = np.maximum(-s.means, 0.0)
    both = np.maximum(s.worry, 0.0) * np.maximum(s.stretch, 0.0)
    return {
        "numbers": -0.66 * s.planning + 0.48 * (scarce - 0.94),
        "events": 0.55 * s.strain + 0.25 * s.strain * pinch,
        "text": 0.45 * s.worry + 0.34 * s.stretch + 0.25 * (both - 0.16),
        "links": 0.40 * s.trouble,
        "merchant": s.offset,
    }


def true_pd(shoppers: Shoppers, without: Collection[str] = ()) -> Floats:
    """Each person's probability of default, inside (0, 1), shape (users,).

    Args:
        shoppers: The people.
        without: Names of `PARTS` that are left out.
    """
    logit = np.full(len(shoppers.age), INTERCEPT)
    for name, part in logit_parts(shoppers).items():
        if name not in without:
            logit += part
    return sigmoid(logit)


def draw_defaults(seed: int, pd: Floats) -> Ints:
    """Each person's default, 0 or 1: one for all merchants that the person shops at."""
    return np.asarray(stream(seed, "defaults").random(len(pd)) < pd, np.intp)
