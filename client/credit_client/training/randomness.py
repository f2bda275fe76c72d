"""Where sampling and noise come from.

`SecureRandom` is the only source that a private run accepts: a ChaCha20 stream keyed by the
operating system, float64 Gaussians. `SeededRandom` makes simulations without privacy repeatable and
cannot be made for a private plan.
"""

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from credit_common.errors import PrivacyError
from credit_common.privacy import MechanismPlan

_UNIT = 2.0**-52


class RandomSource(Protocol):
    """A source of uniform and Gaussian numbers."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """N numbers, uniform in (0, 1)."""
        ...

    def normal(self, n: int) -> NDArray[np.float64]:
        """N standard Gaussian numbers."""
        ...


class SecureRandom:
    """ChaCha20 (RFC 8439) keyed by the operating system; no seed reaches it.

    The stream belongs to the process that made it: a forked child would repeat its parent's noise,
    so the first use in another process makes a new key.
    """

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        self._process = os.getpid()
        cipher = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None)
        self._stream = cipher.encryptor()

    def _words(self, n: int) -> NDArray[np.uint64]:
        if os.getpid() != self._process:
            self._rekey()
        return np.frombuffer(self._stream.update(bytes(8 * n)), np.uint64)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """N numbers, uniform on the centres of 2^52 equal cells of (0, 1)."""
        return ((self._words(n) >> np.uint64(12)).astype(np.float64) + 0.5) * _UNIT

    def normal(self, n: int) -> NDArray[np.float64]:
        """N standard Gaussian numbers by Box and Muller (1958), in float64."""
        half = (n + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(half)))
        angle = 2.0 * np.pi * self.uniform(half)
        return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:n]


class SeededRandom:
    """A repeatable source, for simulations without privacy only.

    Raises:
        PrivacyError: If the plan is private.
    """

    def __init__(self, seed: int, plan: MechanismPlan) -> None:
        if plan.private:
            raise PrivacyError("a seeded source of randomness is refused where epsilon is finite")
        self._seed, self._plan = seed, plan
        self._generator = np.random.default_rng(seed)

    def beside(self) -> "SeededRandom":
        """Another stream of the same seed, so that what it draws does not move this one."""
        other = SeededRandom(self._seed, self._plan)
        other._generator = np.random.default_rng((self._seed, 1))
        return other

    def uniform(self, n: int) -> NDArray[np.float64]:
        """N numbers, uniform in [0, 1)."""
        return self._generator.random(n)

    def normal(self, n: int) -> NDArray[np.float64]:
        """N standard Gaussian numbers."""
        return self._generator.standard_normal(n)


GRID = 2.0**-20
"""Step of the grid that noised sums lie on, in units of the noise's standard deviation."""


def add_noise(
    exact: NDArray[np.float64], deviation: float, source: RandomSource
) -> NDArray[np.float64]:
    """The sums with Gaussian noise, snapped to a grid that does not depend on the data.

    Low bits of a float64 sum can tell x from x + 1 through the noise; on the grid they are gone.
    That mitigates what floating point leaks, it does not prove that nothing is left.

    Args:
        exact: Sums of any shape.
        deviation: Standard deviation of the noise; 0 adds none and snaps nothing.
    """
    if deviation == 0:
        return exact
    noised = exact + deviation * source.normal(exact.size).reshape(exact.shape)
    cell = deviation * GRID
    snapped: NDArray[np.float64] = np.round(noised / cell) * cell
    return snapped


def poisson_sample(source: RandomSource, users: int, rate: float) -> NDArray[np.intp]:
    """Indices of the users that take part in a step, each independently with probability `rate`."""
    return np.flatnonzero(source.uniform(users) < rate)
