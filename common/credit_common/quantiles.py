"""Bin edges that a federation finds out for itself: how a contract asks for them.

A number with `edges = "federated"` names a number of bins and a public fine grid over its range.
Holders count their users by cell of the grid, with noise, before the first round; the edges are the
boundaries of cells that come nearest to equal shares of users (`credit_common.statistics`).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal

from credit_common.checked import build, require
from credit_common.errors import ContractError

FEDERATED = "federated"
KEYS = ("bins", "cells", "scale")
LARGEST = 1e30  # of a range's ends: boundaries are float32


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """What a federated number has in place of edges.

    Attributes:
        bins: Number of quantile bins; there is one edge less.
        cells: Cells of the grid over the field's range, at least as many as bins.
        scale: "linear" has cells of equal width; "log", for amounts, has cells of equal width in
            asinh(value): even within about 1 unit of zero, and beyond, on both sides of zero, as
            wide as the value is large.
    """

    bins: int
    cells: int = 200
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of one field.

    Attributes:
        quantiles: How many, and of which widths.
        range: The field's.
    """

    quantiles: Quantiles
    range: tuple[float, float]

    def check(self, where: str) -> None:
        """Refuse a grid that cannot be.

        Raises:
            ContractError: Naming the key of the field `where`.
        """
        bins, cells, ends = self.quantiles.bins, self.quantiles.cells, self.range
        require(2 <= bins <= 100, f"{where}.bins", bins, "between 2 and 100")
        ok = 10 <= cells <= 2000
        require(ok, f"{where}.cells", cells, "between 10 and 2000")
        require(cells >= bins, f"{where}.cells", cells, f"at least the {bins} bins")
        ok = max(map(abs, ends)) <= LARGEST
        require(ok, f"{where}.range", ends, f"within {LARGEST:g} of 0 where edges are federated")
        bounds = (ends[0], *self.inner, ends[1])
        rising = all(a < b for a, b in pairwise(bounds))
        require(rising, f"{where}.cells", cells, "fewer: float32 cannot tell such cells apart")

    @cached_property
    def inner(self) -> tuple[float, ...]:
        """The cells - 1 boundaries inside the range, rising, each a float32 value.

        Cell i holds inner[i-1] <= value < inner[i], as bins do. Rounded to float32 they are the
        same on every machine and pass the wire unchanged.
        """
        (low, high), cells = self.range, self.quantiles.cells
        log = self.quantiles.scale == "log"
        if log:
            low, high = math.asinh(low), math.asinh(high)
        even = (low + (high - low) * i / cells for i in range(1, cells))
        return tuple(_float32(math.sinh(x) if log else x) for x in even)


@lru_cache(maxsize=1024)  # a field is made anew whenever its edges are filled in
def grid_of(quantiles: Quantiles, range_: tuple[float, float]) -> Grid:
    """The grid over a range, not checked."""
    return Grid(quantiles=quantiles, range=range_)


def read_quantiles(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A number's table with its keys for federated edges made into `Quantiles`.

    Raises:
        ContractError: If the keys do not go together.
    """
    edges, given = table.get("edges"), [key for key in KEYS if key in table]
    made = {key: value for key, value in table.items() if key not in KEYS}
    if "quantiles" in table:  # the attribute has no key of its own
        raise ContractError(f"[{where}] unknown key 'quantiles'; give edges = \"{FEDERATED}\"")
    if isinstance(edges, str):
        require(edges == FEDERATED, f"{where}.edges", edges, f'a list, or "{FEDERATED}"')
        own = {key: table[key] for key in given}
        made |= {"edges": (), "quantiles": build(Quantiles, own, where)}
    elif given:
        raise ContractError(f'{where}.{given[0]}: must be left out unless edges = "{FEDERATED}"')
    return made


def refuse_federated(edges: object, where: str) -> None:
    """Refuse federated edges of an event list.

    Raises:
        ContractError: If the list, or one of its aggregations, has them.
    """
    named = edges.values() if isinstance(edges, Mapping) else (edges,)
    if FEDERATED in [edge for edge in named if isinstance(edge, str)]:
        raise ContractError(f'{where}.edges = "{FEDERATED}": event lists have edges of their own')


def _float32(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
