"""The entries of a privacy report, read anew for `credit_client.report.verify`.

It shares no code with the ledger, the balance or the project's accountant: chain, accounts and
events are read here once more, and dp-accounting composes the events by its own accountant, on
another grid.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from credit_common.certificates import is_signed
from credit_common.errors import PrivacyError

LOSS_GRID = 5e-4
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


@dataclass(kw_only=True)
class Recount:
    """What the entries add up to.

    Attributes:
        train, holdout: Events by account.
        add: Whether a user may be in both accounts.
        lost: Number of entries that are known to be lost, at least.
        overrides: Words about lost entries: sequence number, reason, whether they are signed.
    """

    train: Spent = field(default_factory=list)
    holdout: Spent = field(default_factory=list)
    add: bool = False
    lost: int = 0
    overrides: list[tuple[int, str, bool]] = field(default_factory=list)

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
        elif account in ("train", "holdout"):
            _check_event(plain, number)
            (found.train if account == "train" else found.holdout).append(plain)
            found.add |= not splits
        else:
            raise PrivacyError(f"entry {number} has an unknown account")
    found.add |= len(splits) > 1
    return found


def epsilon_of(events: Sequence[dict[str, Any]], delta: float, replace_one: bool = False) -> float:
    """ε of events, under add/remove or under replace-one of a user; 0 of none."""
    if not events:
        return 0.0
    from dp_accounting import (
        GaussianDpEvent,
        NeighboringRelation,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
    )
    from dp_accounting.pld import PLDAccountant

    relations = NeighboringRelation
    accountant = PLDAccountant(
        relations.REPLACE_ONE if replace_one else relations.ADD_OR_REMOVE_ONE,
        value_discretization_interval=LOSS_GRID,
    )
    times: dict[tuple[float, float], int] = {}
    for event in events:
        sigma = event["noise_multiplier"]
        if event["kind"] == "sampled_gaussian":
            key, n = (event["sampling_rate"], sigma), event["steps"]
        else:
            # One user is in one cell of each of F histograms: L2 norm √F. A changed record leaves
            # those cells and enters others: distance √2F, where this accountant takes 2√F, as of
            # a sum that loses one user and gains another.
            alone = sigma / math.sqrt(event.get("fields", 1))
            key = (1.0, alone * math.sqrt(2) if replace_one else alone)
            n = event["releases"]
        times[key] = times.get(key, 0) + n
    for (rate, sigma), n in sorted(times.items()):
        step = GaussianDpEvent(sigma)
        sampled = step if rate == 1 else PoissonSampledDpEvent(rate, step)
        accountant.compose(SelfComposedDpEvent(sampled, n))
    return float(accountant.get_epsilon(delta))


def _check_event(event: Any, number: int) -> None:
    bounds = _BOUNDS.get(str(event.get("kind"))) if isinstance(event, dict) else None
    if bounds is None or set(event) != {"kind", *bounds}:
        raise PrivacyError(f"entry {number} has an event of an unknown kind")
    for name, (kind, least, most) in bounds.items():
        value = event[name]
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
            raise PrivacyError(f"entry {number} has a {name} that is out of its bounds")
