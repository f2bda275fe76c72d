"""Weight of evidence and information value of each field, by the contract's own cells.

Of a cell with g of G users without default and b of B defaults (Siddiqi 2006, ch. 6):

    WOE = ln((g / G) / (b / B))            IV = sum over cells of (g / G - b / B) * WOE

Where g or b is 0, half a user is added to both before they are divided by G and B, so that the
logarithm exists (the adjusted weight of evidence; the continuity correction of Anscombe 1956). A
cell that nobody is in counts for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.fields import CategoryField, NumberField
from credit_common.record import Record
from credit_common.text import cell_names, cell_of

_BANDS = ((0.02, "unpredictive"), (0.1, "weak"), (0.3, "medium"), (0.5, "strong"))
_BEYOND = "suspicious"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Users in one cell of a field.

    Attributes:
        name: What the cell holds.
        users, bads: Users, and defaults among them.
        bad_rate, woe: None where nobody is in it.
        iv: What it adds to the field's.
        corrected: Whether half a user was added.
    """

    name: str
    users: int
    bads: int
    bad_rate: float | None
    woe: float | None
    iv: float
    corrected: bool


@dataclass(frozen=True, kw_only=True)
class FieldEvidence:
    """How well one field tells defaults apart.

    Attributes:
        name: Of the field; an aggregation's name where it comes from an event list.
        iv: Its information value.
        band: As `iv_band` names it.
        by_chance: IV that a field of so many cells has on average, on so many users, where it has
            nothing to do with defaults: (cells - 1)(1 / G + 1 / B), to first order.
        cells: In the contract's order.
    """

    name: str
    iv: float
    band: str
    by_chance: float
    cells: tuple[Cell, ...]


def iv_band(iv: float) -> str:
    """The usual band of an IV (Siddiqi 2006): from .5 on, look for what knows the outcome.

    >>> [iv_band(x) for x in (0.0, 0.02, 0.1, 0.3, 0.5)]
    ['unpredictive', 'weak', 'medium', 'strong', 'suspicious']
    """
    return next((name for end, name in _BANDS if iv < end), _BEYOND)


def evidence(
    contract: Contract, records: Sequence[Record], labels: NDArray[np.int64]
) -> tuple[FieldEvidence, ...]:
    """WOE and IV of every field of the wide part, in the contract's order.

    Args:
        contract: With all edges.
        records: Of the users.
        labels: (users,), 1 for a default; both classes.
    """
    return tuple(_field(field, records, labels) for field in contract.wide_fields)


def _field(
    field: NumberField | CategoryField, records: Sequence[Record], labels: NDArray[np.int64]
) -> FieldEvidence:
    names = cell_names(field)
    place = np.array([cell_of(field, record.values.get(field.name)) for record in records])
    bads = np.bincount(place[labels == 1], minlength=len(names))
    goods = np.bincount(place[labels == 0], minlength=len(names))
    cells = tuple(
        _cell(name, int(good), int(bad), int(goods.sum()), int(bads.sum()))
        for name, good, bad in zip(names, goods, bads, strict=True)
    )
    iv = sum(cell.iv for cell in cells)
    used = sum(cell.users > 0 for cell in cells)
    chance = (used - 1) * (1 / int(goods.sum()) + 1 / int(bads.sum()))
    return FieldEvidence(name=field.name, iv=iv, band=iv_band(iv), by_chance=chance, cells=cells)


def _cell(name: str, good: int, bad: int, goods: int, bads: int) -> Cell:
    users, empty = good + bad, good == 0 or bad == 0
    if not users:
        return Cell(name=name, users=0, bads=0, bad_rate=None, woe=None, iv=0.0, corrected=False)
    more = 0.5 if empty else 0.0
    a, b = (good + more) / goods, (bad + more) / bads
    woe = float(np.log(a / b))
    return Cell(
        name=name,
        users=users,
        bads=bad,
        bad_rate=bad / users,
        woe=woe,
        iv=(a - b) * woe,
        corrected=empty,
    )
