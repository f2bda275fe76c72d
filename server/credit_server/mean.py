"""Sums and weighted means of arrays that come one by one, the same bits in whatever order.

Floating-point addition depends on order, so that replies would have to be kept and sorted. Here
each term is rounded to a fixed grid, and multiples of a grid are added exactly, as integers
(pre-rounding as in Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", 2013, with a
grid that is public and fixed rather than taken from the data).

A term t, |t| < 2^36, is h 2^-10 + l 2^-57 + e with integers h = rint(2^10 t), |h| <= 2^46, and
l = rint(2^57 (t - h 2^-10)), |l| <= 2^46. t - h 2^-10 is exact in float64: it is t itself where
|t| <= 2^-11, else a multiple of 2^-64 or more (t's last place) of at most 2^-11. Products with
powers of two are exact too, so |e| <= 2^-58. Sums of up to 2^16 terms stay within 2^62: int64 adds
them exactly, in any order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.errors import CreditError, WireError

BOUND = 2.0**36
"""Every term is smaller: with a weight of 10,000, values up to 6.8 million."""
MOST = 2**16
"""As many terms are summed at most."""
_HIGH, _LOW = 2.0**10, 2.0**57
"""Steps of the two grids within one."""
_SHIFT = 47
"""2^47 steps of the low grid are one of the high grid."""


class ExactSum:
    """The sum of vectors of float64, the same bits in whatever order they are added.

    With n terms it is within n 2^-58 of the true sum, and then rounded by a relative 2^-52 at most.
    """

    def __init__(self, size: int) -> None:
        self._high = np.zeros(size, np.int64)
        self._low = np.zeros(size, np.int64)
        self._units, self._whole = np.empty(size), np.empty(size, np.int64)  # used by each add
        self.terms = 0

    def add(self, vector: NDArray[np.float64]) -> None:
        """Add a vector (size,).

        Raises:
            WireError: If a number is not finite or not within `BOUND`; nothing is added then.
            CreditError: If there are `MOST` terms already.
        """
        if not (vector.max(initial=0.0) < BOUND and vector.min(initial=0.0) > -BOUND):
            raise WireError(
                "it has numbers beyond the range that can be summed", reason="not-finite"
            )
        if self.terms == MOST:
            raise CreditError(f"more than {MOST} answers to one request cannot be summed")
        units, whole = self._units, self._whole
        np.rint(np.multiply(vector, _HIGH, out=units), out=units)
        whole[:] = units
        self._high += whole
        np.subtract(vector, np.divide(units, _HIGH, out=units), out=units)
        np.rint(np.multiply(units, _LOW, out=units), out=units)
        whole[:] = units
        self._low += whole
        self.terms += 1

    def value(self) -> NDArray[np.float64]:
        """The sum (size,) of all that was added."""
        carried = self._low >> _SHIFT  # else the parts could cancel, each of them rounded
        return (self._high + carried) / _HIGH + (self._low - (carried << _SHIFT)) / _LOW


class WeightedMean:
    """The mean of named arrays by weight; of each holder's arrays nothing is kept.

    Args:
        shapes: Name -> shape of what is averaged.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self._size = sum(int(np.prod(shape)) for shape in shapes.values())
        self._sum = ExactSum(self._size + 1)

    def add(self, arrays: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add a set of arrays; nothing is added where it is refused.

        Raises:
            WireError: If names or shapes are others than the mean's, the weight is not positive,
                or a number times the weight is not finite or not within `BOUND`.
        """
        if {name: array.shape for name, array in arrays.items()} != self._shapes:
            raise WireError("it has arrays of other names or shapes than it was asked for")
        if not weight > 0:
            raise WireError("its weight is not positive")
        row = np.empty(self._size + 1)
        np.concatenate([arrays[name].ravel() for name in self._shapes], out=row[:-1])
        row[:-1] *= weight
        row[-1] = weight
        self._sum.add(row)

    def value(self) -> dict[str, NDArray[np.float32]]:
        """The mean by name, sorted.

        Before it is rounded to float32, it is within 2^-50 mean(w |v|) / mean(w) + 2^-57 / mean(w)
        of sum(w v) / sum(w), for weights w and values v.
        """
        row = self._sum.value()
        flat = (row[:-1] / row[-1]).astype(np.float32)
        mean, start = {}, 0
        for name, shape in self._shapes.items():
            size = int(np.prod(shape))
            mean[name] = flat[start : start + size].reshape(shape).copy()
            start += size
        return mean
