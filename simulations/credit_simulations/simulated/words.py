"""Product titles and reviews of made-up shoppers, in the writing style of their merchant.

Titles tell of stretch and reviews of worry, and nothing else does. What words go with which trait
is invented. Reviews also speak of the product and its delivery, which say nothing.
"""

from collections.abc import Sequence

import numpy as np

from credit_simulations.simulated.draws import Floats, Ints, pick, sigmoid

TITLES = 4
"""Product titles in the last basket."""
IN_DEPARTMENT = 0.7
"""Share of titles from the main department; the others follow the merchant's mix."""
STRETCH_BASE, STRETCH_SLOPE = -0.4, 1.6
"""A title is a stretched one with probability sigmoid(base + slope * stretch)."""
LEVEL_NOISE = 0.45
"""Standard deviation of what a review's sentence says about worry, beside worry itself."""
LEVEL_EDGES = (-1.0, -0.35, 0.35, 1.0)
"""Between the five levels of worry that a sentence can have."""
SILENT = 0.12
"""Share of rows without a review."""

# Department -> (ordinary products, products that a stretched shopper takes).
PRODUCTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "grocery": (
        ("whole milk", "olive oil", "breakfast cereal", "ground coffee", "pasta sauce", "yogurt"),
        ("instant noodles", "dented can soup", "energy drinks", "white bread", "frozen pizza"),
    ),
    "household": (
        ("shampoo refill", "toothpaste", "baby diapers", "light bulbs", "birthday cards"),
        ("prepaid gift card", "cigarettes carton", "phone top-up", "scratch cards"),
    ),
    "meat": (
        ("beef sirloin", "chicken breast", "lamb chops", "turkey slices"),
        ("reduced mince", "economy sausages", "chicken necks"),
    ),
    "produce": (
        ("bananas", "strawberries", "salad greens", "red grapes", "carrots"),
        ("bruised apples", "potato sack", "last day vegetables"),
    ),
    "deli": (
        ("smoked salmon", "cheddar block", "olives", "roast chicken"),
        ("deli ends", "half price sandwich", "leftover platter"),
    ),
    "bakery": (
        ("sourdough loaf", "croissants", "birthday cake", "dinner rolls"),
        ("yesterday's bread", "day old donuts", "marked down pie"),
    ),
    "nutrition": (
        ("vitamin tablets", "oat milk", "protein bars", "dried fruit"),
        ("short dated bars", "trial size powder", "caffeine pills"),
    ),
    "seafood": (
        ("cod fillets", "raw shrimp", "tuna steak"),
        ("fish sticks", "clearance crab sticks"),
    ),
    "flowers": (
        ("rose bouquet", "potted orchid", "garden mums"),
        ("wilted bunch", "single stem on credit"),
    ),
    "cosmetics": (
        ("face cream", "mascara", "hand lotion"),
        ("luxury perfume on instalments", "tester lipstick"),
    ),
}
# Level of worry, from none to much -> what a review says of money.
MONEY: tuple[tuple[str, ...], ...] = (
    (
        "I paid everything at once and put the rest into savings",
        "we set money aside for this long ago",
        "the bill was settled the same day",
        "our budget has plenty of room",
        "I always keep a reserve for such things",
    ),
    (
        "the price fits our monthly budget well",
        "good value and paid on time as usual",
        "I had planned for this purchase",
        "fair price, no need to think twice",
        "we buy this every month without trouble",
    ),
    (
        "the price is about what others ask",
        "it costs what it costs",
        "I compared two shops before I chose",
        "the price did not change since last time",
        "neither cheap nor expensive",
    ),
    (
        "money is a bit tight this month",
        "I had to wait for payday to order",
        "I wish I could pay in smaller parts",
        "the shipping fee hurt my wallet",
        "I put it on the card for now",
    ),
    (
        "I do not know how to pay the next bill",
        "another reminder came and the account is empty",
        "I borrowed from a friend to get this",
        "the rent is overdue and I still bought it",
        "please give me more time to pay what I owe",
    ),
)
PRAISE = (
    "works as described",
    "my family likes it",
    "nice colour",
    "smaller than I thought",
    "good quality",
    "not my taste",
    "would order again",
    "the picture shows another size",
)
DELIVERY = (
    "arrived in two days",
    "the parcel was late",
    "well packed",
    "the courier was friendly",
    "box was damaged",
    "left at the neighbour",
    "quick delivery",
    "came on a Saturday",
)
OPENINGS = {
    "chatty": ("Honestly", "So", "Well", "You know what", "Okay folks"),
    "formal": ("Dear team", "To whom it may concern", "Good day"),
}
DEPARTMENT_NAMES = tuple(PRODUCTS)


def draw_titles(
    random: np.random.Generator, stretch: Floats, department: Ints, mix: Floats
) -> list[str]:
    """Titles in the last basket of each row.

    Args:
        random: Source of the words.
        stretch: The trait, shape (rows,).
        department: Index of each row's main department.
        mix: Department shares of each row's merchant, shape (rows, departments).
    """
    rows = len(stretch)
    columns = []
    for _ in range(TITLES):
        other = pick(mix, random)
        where = np.where(random.random(rows) < IN_DEPARTMENT, department, other)
        tilted = random.random(rows) < sigmoid(STRETCH_BASE + STRETCH_SLOPE * stretch)
        columns.append(
            [
                _of(PRODUCTS[DEPARTMENT_NAMES[d]][t], u)
                for d, t, u in zip(
                    where.tolist(), map(int, tilted), random.random(rows).tolist(), strict=True
                )
            ]
        )
    return [", ".join(dict.fromkeys(titles)) for titles in zip(*columns, strict=True)]


def draw_reviews(random: np.random.Generator, worry: Floats, styles: Sequence[str]) -> list[str]:
    """Each row's last review, empty for those who wrote none.

    Args:
        random: Source of the words.
        worry: The trait, shape (rows,).
        styles: The writing style of each row's merchant.
    """
    rows = len(worry)
    heard = worry[:, None] + LEVEL_NOISE * random.standard_normal((rows, 2))
    levels = np.digitize(heard, LEVEL_EDGES).tolist()
    dice = random.random((rows, 7)).tolist()
    return [
        "" if u[0] < SILENT else _review(style, level, u)
        for style, level, u in zip(styles, levels, dice, strict=True)
    ]


def _review(style: str, levels: Sequence[int], u: Sequence[float]) -> str:
    money = [_of(MONEY[levels[0]], u[1]), _of(MONEY[levels[1]], u[2])]
    said = [_of(PRAISE, u[3]), *dict.fromkeys(money)]
    if u[4] < 0.6:
        said.insert(1 + int(u[4] < 0.3), _of(DELIVERY, u[5]))
    if style == "lower":
        return ", ".join(said).lower()
    if style == "terse":
        return " - ".join(part.removeprefix("I ").removeprefix("we ") for part in said)
    opening = _of(OPENINGS[style], u[6]) + ", " if style in OPENINGS else ""
    end = "!" if style == "chatty" else "."
    return opening + " ".join(part[0].upper() + part[1:] + end for part in said)


def _of(pool: Sequence[str], u: float) -> str:
    return pool[int(u * len(pool))]
