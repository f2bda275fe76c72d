"""How numbers of the privacy report are written. Every one that may cost privacy is rounded up."""

import math
from decimal import Decimal
from typing import Any

from credit_client.terminal import up

Report = dict[str, Any]


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
