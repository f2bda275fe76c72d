"""The entries of a privacy report, read anew for `credit_client.report.verify`.

It shares no code with the ledger, the balance or the project's accountant: chain, accounts and
events are read here once more, and dp-accounting composes them. Both readers round losses up to the
same grid. On another one the bounds differ by more than a small ε: many steps whose losses are
smaller than the grid's cells are rounded up to several times what they spend.
"""

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from credit_common.certificates import is_signed
from credit_common.errors import PrivacyError

LOSS_GRID = 2.5e-4
FAR = 100.0
"""Past this Rényi ε a ledger tells that bound: distributions of such losses fill the memory."""
Spent = list[dict[str, Any]]
"""Events, as the entries have them."""
_CHAINED = (
    *("sequence", "time", "account", "event", "contract_digest", "message_id"),
    *("request_digest", "reply_digest", "previous"),
)
_START = hashlib.sha256(b"credit-federation ledger 1").hexdigest()
_NUMBER = (int, float)
_BOUNDS: dict[str, dict[str, tuple[Any, float, float]]] = {
    "sampled_gaussian": {
        "noise_multiplier": (_NUMBER, 0.05, 1e6),
        "sampling_rate": (_NUMBER, 1e-9, 1.0),
        "steps": (int, 1, 10_000_000),
    },
    "histogram": {"noise_multiplier": (_NUMBER, 0.05, 1e6), "releases": (int, 1, 10_000_000)},
    "field_histograms": {
        "noise_multiplier": (_NUMBER, 0.05, 1e6),
        "fields": (int, 1, 100_000),
        "releases": (int, 1, 10_000_000),
    },
}
"""Kind of event -> key -> type, least and most: past these ε cannot be computed."""
_Steps = tuple[tuple[float, float, int], ...]
"""Sampling rate, noise multiplier and number of steps of each mechanism."""
_Parts = tuple[tuple[_Steps, int], ...]
"""What is composed, and how often each."""


@dataclass(kw_only=True)
class Recount:
    """What the entries add up to.

    Attributes:
        train, holdout: Events by account.
        add: Whether a user may be in both accounts.
        lost: Number of entries that are known to be lost, at least.
        overrides: Words about lost entries: sequence number, reason, whether they are signed.
        open_runs: Sequence numbers of runs without privacy, each of which makes ε infinite.
    """

    train: Spent = field(default_factory=list)
    holdout: Spent = field(default_factory=list)
    add: bool = False
    lost: int = 0
    overrides: list[tuple[int, str, bool]] = field(default_factory=list)
    open_runs: list[int] = field(default_factory=list)

    @property
    def groups(self) -> list[Spent]:
        """What one user may have taken part in, for each side of the split."""
        return [self.train + self.holdout] if self.add else [self.train, self.holdout]


def canonical_bytes(plain: Any) -> bytes:
    """What signatures and hashes are of: JSON with sorted keys and without spaces, in UTF-8."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def chain_problems(entries: Spent, head: dict[str, Any]) -> list[str]:
    """Where the chain breaks first, if it does."""
    previous, number = _START, 0
    for number, entry in enumerate(entries, start=1):
        plain = {name: entry[name] for name in _CHAINED}
        own = hashlib.sha256(canonical_bytes(plain)).hexdigest()
        if (entry["sequence"], entry["previous"], entry["hash"]) != (number, previous, own):
            return [f"the chain of the ledger breaks at entry {number}"]
        previous = own
    if (head["sequence"], head["hash"]) != (number, previous):
        return ["the chain of the ledger does not end at its head"]
    return []


def recount(entries: Spent) -> Recount:
    """Sort entries by what they are.

    Raises:
        PrivacyError: If one is of an unknown kind, or its numbers are out of their bounds.
    """
    found, splits = Recount(), set()
    for entry in entries:
        plain, account, number = json.loads(entry["event"]), entry["account"], entry["sequence"]
        if account == "split":
            splits.add(entry["event"])
        elif account == "override":
            found.lost += max(plain["counter"] - (found.lost + number - 1), 0)
            signature = plain.pop("signature", "")
            signed = is_signed(canonical_bytes(plain), signature, plain.get("public_key", ""))
            here = plain.get("previous") == entry["previous"]
            found.overrides.append((number, plain["reason"], signed and here))
        elif account == "open" and plain is None:
            found.open_runs.append(number)
        elif account in ("train", "holdout"):
            _check_event(plain, number)
            (found.train if account == "train" else found.holdout).append(plain)
            found.add |= not splits
        else:
            raise PrivacyError(f"entry {number} has an unknown account")
    found.add |= len(splits) > 1
    return found


def epsilon_of(events: Spent, delta: float, replace_one: bool = False) -> float:
    """ε of events, under add/remove or under replace-one of a user; 0 of none."""
    if replace_one and renyi_of(events, delta) > FAR:
        return math.inf
    return _epsilon(((_steps(events, replace_one), 1),), delta, replace_one)


def epsilon_shared(counted: Recount, holders: int, delta: float) -> float:
    """ε of a user of several holders with these entries, who may be on either side at each."""
    if counted.add:
        return _epsilon(((_steps(counted.train + counted.holdout, False), holders),), delta, False)
    train, holdout = _steps(counted.train, False), _steps(counted.holdout, False)
    return max(
        _epsilon(((train, times), (holdout, holders - times)), delta, False)
        for times in range(holders + 1)
    )


def renyi_of(events: Spent, delta: float) -> float:
    """Rényi's bound of ε under add/remove; 0 of no events."""
    return _renyi(((_steps(events, False), 1),), delta)


def _steps(events: Spent, replace_one: bool) -> _Steps:
    """Equal mechanisms as one; Gaussians without sampling are one: their squared shifts add up."""
    times: dict[tuple[float, float], int] = {}
    squares = []
    for event in events:
        sigma = event["noise_multiplier"]
        if event["kind"] != "sampled_gaussian":
            # One user is in one cell of each of F histograms: L2 norm √F. A changed record leaves
            # those cells and enters others: distance √2F.
            moved = event.get("fields", 1) * (2 if replace_one else 1)
            squares.append(event["releases"] * moved / sigma**2)
        elif event["sampling_rate"] == 1:
            squares.append(event["steps"] * (4 if replace_one else 1) / sigma**2)
        else:
            key = event["sampling_rate"], sigma
            times[key] = times.get(key, 0) + event["steps"]
    sampled = tuple((rate, sigma, n) for (rate, sigma), n in sorted(times.items()))
    return (*sampled, (1.0, 1 / math.sqrt(math.fsum(squares)), 1)) if squares else sampled


# Accounts stand in several sums, and their parts in several accounts: each is composed once.
@lru_cache(maxsize=1024)
def _epsilon(parts: _Parts, delta: float, replace_one: bool) -> float:
    """ε of the parts, each of them so often, composed."""
    given = tuple((steps, times) for steps, times in parts if steps and times)
    if not given:
        return 0.0
    if not replace_one and (far := _renyi(given, delta)) > FAR:
        return far
    losses = _losses(*given[0], replace_one)
    for steps, times in given[1:]:
        losses = losses.compose(_losses(steps, times, replace_one))
    return float(losses.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _losses(steps: _Steps, times: int, replace_one: bool) -> Any:
    if times > 1:
        return _losses(steps, 1, replace_one).self_compose(times)
    total = None
    for rate, sigma, n in steps:
        one = _step_losses(rate, sigma, replace_one and rate != 1)
        each = one.self_compose(n) if n > 1 else one
        total = each if total is None else total.compose(each)
    return total


@lru_cache(maxsize=64)
def _step_losses(rate: float, sigma: float, replace_one: bool) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    relations = NeighboringRelation
    return from_gaussian_mechanism(
        sigma,
        sampling_prob=rate,
        value_discretization_interval=LOSS_GRID,
        neighboring_relation=relations.REPLACE_ONE if replace_one else relations.ADD_OR_REMOVE_ONE,
    )


def _renyi(parts: _Parts, delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon

    curves = [
        (rate, sigma, n * times) for steps, times in parts for rate, sigma, n in steps if times
    ]
    if not curves:
        return 0.0
    orders = _step_renyi(1.0, 1.0)[0]
    total = sum(n * _step_renyi(rate, sigma)[1] for rate, sigma, n in curves)
    return float(compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=256)
def _step_renyi(rate: float, sigma: float) -> tuple[Any, Any]:
    import numpy as np
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").addFilter(_of_use)
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)))
    # Orders whose value came out negative have lost their digits; without them it is a bound too.
    values = np.asarray(accountant.rdp)
    return accountant.orders, np.where(values < 0, math.inf, values)


def _of_use(record: logging.LogRecord) -> bool:
    return "_compute_log_a_frac" not in record.getMessage()


def _check_event(event: Any, number: int) -> None:
    bounds = _BOUNDS.get(str(event.get("kind"))) if isinstance(event, dict) else None
    if bounds is None or set(event) != {"kind", *bounds}:
        raise PrivacyError(f"entry {number} has an event of an unknown kind")
    for name, (kind, least, most) in bounds.items():
        value = event[name]
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
            raise PrivacyError(f"entry {number} has a {name} that is out of its bounds")
