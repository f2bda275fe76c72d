"""What pages of the privacy report are built of, and how its numbers are written.

Every number that may cost privacy is rounded up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from credit_client.terminal import up

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under heads; a head begins with < or >, the side that its column leans to.

    Attributes:
        widths: Most characters of each column in a terminal.
        folded: What a long table is called where a page folds it away and a terminal leaves it
            out; empty for one that is always there.
    """

    heads: tuple[str, ...]
    widths: tuple[int, ...]
    rows: Sequence[tuple[str, ...]]
    folded: str = ""


@dataclass(frozen=True, kw_only=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Loud:
    """Words that nobody may miss."""

    words: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


Block = str | Table | Points | Loud | Facts
"""A str is a paragraph."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A title and what stands under it."""

    title: str
    blocks: Sequence[Block]


def exact(number: float) -> str:
    """A number with all its digits, and without an exponent: 0.00001, not 1e-05."""
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def bound(epsilon: float | None) -> str:
    """ε, rounded up; None is infinite, which JSON cannot say."""
    return "infinite" if epsilon is None else up(epsilon)


def minute(time: str) -> str:
    """A UTC time without its seconds."""
    return time[:16].replace("T", " ")


def percent(share: float) -> str:
    """A share, rounded up to two decimals, but never to certainty."""
    up_to = math.ceil(round(share * 1e4, 6)) / 100
    return "more than 99.99%" if up_to >= 100 > share * 100 else f"{up_to:g}%"
