"""How the figures of a results page look beside `credit_client.page.drawing`: colours by arm.

No two arms differ by colour alone: each has a marker or a line of its own.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from credit_client.page.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from credit_simulations.results.arms import PRIVATE
from credit_simulations.results.claims import Spread
from credit_simulations.results.sentences import shown

_LINES: dict[str, tuple[str, str]] = {
    "federated": (BLUE, "o"),
    "newcomers": (SKY, "v"),
    "wide_only": (ORANGE, "s"),
    "text_only": (GREEN, "^"),
    "frozen_bert": (PURPLE, "D"),
    "untuned": (GREY, "X"),
    "central_dp": (RED, "P"),
}
_DASHES: dict[str, tuple[str, str]] = {
    "local_only": (RED, "--"),
    "central": (BLACK, "-"),
    "logistic": (GREY, "--"),
    "gbm": (GREEN, "-."),
    "tfidf": (PURPLE, ":"),
}
_RAMP = ("#D55E00", "#E69F00", "#56B4E9", "#0072B2")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure of the page.

    Attributes:
        name: Of the file, without its ending, and of the page's anchor.
        title: In words, above it.
        caption: How to read it.
        alt: What it shows, for who cannot see it.
        png: The picture.
        half: Whether two of its kind stand side by side.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    half: bool = False


def panels(figure: Figure, count: int, columns: int, alike: bool = False) -> list[Axes]:
    """Axes in rows of `columns`, as many as are used; `alike` ones share their vertical axis."""
    wide = min(count, columns)
    grid = figure.subplots(math.ceil(count / wide), wide, squeeze=False, sharey=alike)
    every = list(grid.flat)
    for unused in every[count:]:
        unused.set_axis_off()
    return every[:count]


def name_of(*parts: str) -> str:
    """A file's name from words: letters, digits and hyphens.

    >>> name_of("auc", "Mine: réel/0.5")
    'auc-mine-r-el-0-5'
    """
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def short(text: str, most: int = 22) -> str:
    """A name as a label: one line, not longer than `most`; both of its ends tell names apart."""
    flat = shown(text)
    if len(flat) <= most:
        return flat
    tail = most // 2
    return f"{flat[: most - tail - 1]}…{flat[-tail:]}"


def marked(arm: str, place: int) -> tuple[str, str]:
    """Colour and marker of an arm that is drawn over ε; an unlisted one by its place."""
    return _LINES.get(arm, (BLACK, _MARKS[place % len(_MARKS)]))


def dashed(arm: str, place: int) -> tuple[str, object]:
    """Colour and dashes of an arm that is drawn as a level; an unlisted one by its place."""
    return _DASHES.get(arm, (SKY, (0, (1 + place % 4, 1, 4, 1))))


def is_level(arm: str, epsilons: Iterable[float | None]) -> bool:
    """Whether an arm is a horizontal line: it has no ε, and is not the federation without DP."""
    return arm not in PRIVATE and all(epsilon is None for epsilon in epsilons)


def of_epsilon(epsilon: float | None, every: Sequence[float | None]) -> tuple[str, str]:
    """Colour and marker of an ε among all of a figure: from red to blue, black without DP."""
    finite = [each for each in every if each is not None]
    if epsilon is None:
        return BLACK, "*"
    place, last = finite.index(epsilon), len(finite) - 1
    colour = _RAMP[round(place * (len(_RAMP) - 1) / last) if last else -1]
    return colour, _MARKS[place % (len(_MARKS) - 1)]


def framed(spreads: Iterable[Spread], levels: Iterable[float] = ()) -> tuple[float, float]:
    """Limits for means with their intervals; an interval of few seeds may leave the frame."""
    found = list(spreads)
    means = [spread.mean for spread in found] + list(levels)
    low, high = min(means), max(means)
    room = max(high - low, 0.01)
    ends = [end for s in found for end in (s.low, s.high) if end is not None]
    bottom = max(min([low, *ends]), low - 0.6 * room)
    top = min(max([high, *ends]), high + 0.6 * room)
    return bottom - 0.06 * room, top + 0.06 * room


def bars(spreads: Sequence[Spread]) -> list[list[float]]:
    """Lengths of error bars below and above; none for one seed."""
    halves = [0.0 if s.high is None else s.high - s.mean for s in spreads]
    return [halves, halves]
