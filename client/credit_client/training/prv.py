"""Opacus' PRV accountant (Gopi, Lee, Wutschitz 2021): a second opinion on ε by other code.

Its estimate lies within `ERROR` of the truth, where privacy loss distributions give a bound.
"""

import math
import warnings
from collections.abc import Iterable

from credit_common.events import Event, FieldHistograms, Histogram

ERROR = 0.01


def prv_epsilon(events: Iterable[Event], delta: float) -> float | None:
    """ε under add/remove of one user, or None where Opacus' accountant cannot tell.

    It fails for very little noise and for next to no spend, by errors of its own arithmetic.
    """
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [_step(event) for event in events]
    if not accountant.history:
        return 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, on the way to the errors below
            found = float(accountant.get_epsilon(delta, eps_error=ERROR))
    except (ValueError, RuntimeError, OverflowError, MemoryError, IndexError):
        return None
    return found if math.isfinite(found) else None


def _step(event: Event) -> tuple[float, float, int]:
    if isinstance(event, Histogram):
        return event.noise_multiplier, 1.0, event.releases
    if isinstance(event, FieldHistograms):
        return event.noise_multiplier / math.sqrt(event.fields), 1.0, event.releases
    return event.noise_multiplier, event.sampling_rate, event.steps
