"""The statistics round: users by value of a field, and the bin edges that are read off the counts.

Before the first round each holder counts its training users by cell of each federated field's
public grid, adds noise and sends the counts; their sums over holders give the edges, which go out
with every later request. A user is in at most one cell of a field, so that the L2 sensitivity of F
fields together is sqrt(F). All that is made of the noised counts is post-processing.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import WireError
from credit_common.fields import NumberField
from credit_common.record import Record

Edges = Mapping[str, tuple[float, ...]]
"""Inner edges by the name of each federated field."""
Counts = dict[str, NDArray[np.float64]]
"""Users by cell, noised or not, by the name of each federated field's array."""

COUNTED, EDGES = "statistics.", "edges."
"""What the names of arrays begin with; the field's name follows."""


def statistics_shapes(contract: Contract) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each array of a statistics answer; all are float64."""
    return {f"{COUNTED}{f.name}": (len(f.grid.inner) + 1,) for f in contract.federated_fields}


def count_cells(contract: Contract, records: Iterable[Record]) -> Counts:
    """Users by cell of each federated field, exact.

    A user without a value is in no cell of that field, one with a value is in exactly one.
    """
    grids = {f.name: f.grid.inner for f in contract.federated_fields}
    counts = {name: np.zeros(len(inner) + 1) for name, inner in grids.items()}
    for record in records:
        for name, inner in grids.items():
            value = record.values.get(name)
            if value is not None:
                counts[name][bisect_right(inner, float(value))] += 1.0
    return {f"{COUNTED}{name}": cells for name, cells in counts.items()}


def check_statistics(
    shapes: Mapping[str, tuple[int, ...]], counts: Mapping[str, NDArray[Any]]
) -> None:
    """Refuse arrays that are not the counts of these fields.

    Raises:
        WireError: Naming the array and what is wrong with it.
    """
    odd = sorted(set(shapes) ^ set(counts))
    if odd or not shapes:
        raise WireError(f"statistics {odd} are missing, or the contract does not ask for them")
    for name, shape in shapes.items():
        array = counts[name]
        if array.dtype != np.float64 or array.shape != shape:
            raise WireError(f"{name}: {array.dtype} {array.shape}, must be float64 {shape}")
        if not np.isfinite(array).all():
            raise WireError(f"{name}: has counts that are not finite")


def quantile_edges(contract: Contract, counts: Counts) -> dict[str, tuple[float, ...]]:
    """Edges of equal shares of users, from the holders' summed counts.

    Returns:
        For each federated field its bins - 1 edges: rising, boundaries of its grid, inside its
        range, whatever the counts are.
    """
    return {f.name: _edges(f, counts[f"{COUNTED}{f.name}"]) for f in contract.federated_fields}


def _edges(field: NumberField, counts: NDArray[np.float64]) -> tuple[float, ...]:
    inner, bins = field.grid.inner, field.bins
    sums = np.cumsum(counts)  # negative cells too: cutting them off would count noise as users
    rising = np.maximum.accumulate(sums)
    falling = np.minimum.accumulate(sums[::-1])[::-1]
    below = (rising + falling) / 2  # monotone as both are, and in the middle where noise disagrees
    total = float(below[-1])
    if not total > 0:  # nobody, or noise alone
        below, total = np.arange(1.0, len(counts) + 1), float(len(counts))
    places: list[int] = []
    done, since, last = 0.0, 0, -1
    for k in range(1, bins):
        target = done + (total - done) * (k - since) / (bins - since)
        place = int(np.searchsorted(below, target * (1 - 1e-12)))
        if place <= last:
            # One cell holds several quantiles (many users have no debt at all): what is above it is
            # shared out anew among the edges that are left.
            done, since = float(below[last]), k - 1
            target = done + (total - done) / (bins - since)
            place = max(int(np.searchsorted(below, target * (1 - 1e-12))), last + 1)
        last = min(place, len(inner) - bins + k)  # leaves a boundary for each edge to come
        places.append(last)
    return tuple(inner[place] for place in places)


def edge_arrays(edges: Edges) -> dict[str, NDArray[np.float32]]:
    """Edges as arrays of a request or a release; exact, since grids are of float32 values."""
    return {f"{EDGES}{name}": np.asarray(own, np.float32) for name, own in edges.items()}


def take_edges(
    contract: Contract, arrays: Mapping[str, NDArray[np.float32]]
) -> tuple[dict[str, NDArray[np.float32]], Edges]:
    """The arrays of a request or a release, and the edges that came beside them.

    Raises:
        WireError: If those of a federated field are missing or not one row. `with_edges` checks
            what they say.
    """
    rest, edges = dict(arrays), {}
    for field in contract.federated_fields:
        own = rest.pop(f"{EDGES}{field.name}", None)
        if own is None or own.dtype != np.float32 or own.ndim != 1:
            raise WireError(f"{EDGES}{field.name}: must be there as one row of float32")
        edges[field.name] = tuple(float(edge) for edge in own)
    return rest, edges
