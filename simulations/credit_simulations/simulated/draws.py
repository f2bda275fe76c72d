"""Streams of random numbers and small distributions that the simulated parts share.

The seeds are public: they shape made-up data and have no part in any privacy mechanism.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def stream(seed: int, name: str) -> np.random.Generator:
    """An independent generator for each named part, so that a part can change by itself.

    Labels have a stream of their own: nothing else can depend on how they fell.
    """
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def blend(share: float, trait: Floats, random: np.random.Generator) -> Floats:
    """A standard normal variable that correlates with a standard normal trait.

    Args:
        share: The correlation, -1 to 1.
        trait: Shape (n,).
        random: Source of the rest.
    """
    rest = float(np.sqrt(1.0 - share**2))
    return share * trait + rest * random.standard_normal(len(trait))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)), np.float64)


def pick(weights: Floats, random: np.random.Generator) -> Ints:
    """One column of each row, drawn in proportion to non-negative weights (n, columns)."""
    up = np.cumsum(weights, axis=1)
    return np.asarray((up < random.random(len(up))[:, None] * up[:, -1:]).sum(axis=1), np.intp)


def from_quantiles(z: Floats, quantiles: Sequence[tuple[float, float]]) -> Floats:
    """Standard normal scores -> a positive variable with the given quantiles.

    Args:
        z: Scores, any shape.
        quantiles: (normal score, value) pairs, increasing; what lies between is interpolated in the
            logarithm, what lies outside stays at the end.

    Example:
        >>> from_quantiles(np.array([0.0, 9.0]), [(-1.0, 1.0), (1.0, 100.0)]).round(6).tolist()
        [10.0, 100.0]
    """
    at, values = np.array(quantiles).T
    return np.asarray(np.exp(np.interp(z, at, np.log(values))), np.float64)
