"""Privacy events: what a release spends, as immutable data apart from the arithmetic over it.

The plan makes them, the ledger keeps them as JSON, and `credit_common.accountant` turns a history
of them into ε. An event says nothing about the number of a holder's users.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from credit_common.errors import PrivacyError


@dataclass(frozen=True, kw_only=True, order=True)
class SampledGaussian:
    """Steps that release a sum over Poisson-sampled users, each clipped to C, plus N(0, σ² C²).

    Attributes:
        sampling_rate: Probability q in (0, 1] that a user takes part in a step.
        noise_multiplier: σ > 0.
        steps: Number of steps, at least 1.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        q = self.sampling_rate
        _require(finite(q) and 0 < q <= 1, "sampling_rate", q, "inside (0, 1]")
        _check_noise(self.noise_multiplier)
        _check_count("steps", self.steps)


@dataclass(frozen=True, kw_only=True, order=True)
class Histogram:
    """Counts with N(0, σ²) on each cell, where one user is in one cell (L2 sensitivity 1).

    Attributes:
        noise_multiplier: σ > 0, in users.
        releases: Number of histograms released, at least 1.
    """

    noise_multiplier: float
    releases: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_count("releases", self.releases)


@dataclass(frozen=True, kw_only=True, order=True)
class FieldHistograms:
    """Counts of several fields at once, with N(0, σ²) on each cell.

    A user is in at most one cell of each field: the L2 sensitivity of all of them together is
    √fields under add/remove, and √(2 fields) where one user's record is changed.

    Attributes:
        noise_multiplier: σ > 0, in users.
        fields: Number of fields, at least 1.
        releases: How often all of them were released, at least 1.
    """

    noise_multiplier: float
    fields: int
    releases: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_count("fields", self.fields)
        _check_count("releases", self.releases)


Event = SampledGaussian | Histogram | FieldHistograms
_KINDS: dict[str, type[Event]] = {
    "sampled_gaussian": SampledGaussian,
    "histogram": Histogram,
    "field_histograms": FieldHistograms,
}


def event_to_json(event: Event) -> dict[str, Any]:
    """Plain JSON form of an event.

    Example:
        >>> event_to_json(Histogram(noise_multiplier=20.0))
        {'kind': 'histogram', 'noise_multiplier': 20.0, 'releases': 1}
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"kind": kind, **vars(event)}


def event_from_json(plain: object) -> Event:
    """The event of a JSON form; nothing may be missing, unknown or of another type.

    Raises:
        PrivacyError: Naming the key and the bound.
    """
    if not isinstance(plain, Mapping) or plain.get("kind") not in list(_KINDS):
        raise PrivacyError(f"a privacy event must be a table of kind {', '.join(_KINDS)}")
    cls = _KINDS[plain["kind"]]
    keys = {"kind", *cls.__dataclass_fields__}
    if set(plain) != keys:
        raise PrivacyError(f"a {plain['kind']} event must have the keys {', '.join(sorted(keys))}")
    return cls(**{name: value for name, value in plain.items() if name != "kind"})


def finite(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_noise(sigma: float) -> None:
    _require(finite(sigma) and sigma > 0, "noise_multiplier", sigma, "positive and finite")


def _check_count(name: str, count: int) -> None:
    ok = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    _require(ok, name, count, "an integer of at least 1")


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise PrivacyError(f"{name} = {value!r}: must be {bound}")
