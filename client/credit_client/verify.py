"""A second reader of privacy reports: recomputes ε from the entries of the ledger alone.

It shares no code with the ledger, the balance or the project's accountant: chain, accounts and
events are read anew, and dp-accounting composes the events by its own accountant, on another grid.
Opacus' PRV accountant is asked as well. A report from an unknown source proves who signed it only
if its public key is known.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from credit_common.certificates import is_signed
from credit_common.errors import PrivacyError

TOLERANCE = 0.01
"""Most by which ε may differ: the two accountants round losses to different grids."""
PRV_TOLERANCE = 0.03
LOSS_GRID = 5e-4
_CHAINED = (
    *("sequence", "time", "account", "event", "contract_digest", "message_id"),
    *("request_digest", "reply_digest", "previous"),
)
_START = hashlib.sha256(b"credit-federation ledger 1").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        claimed, found: ε by name, as the report says and as recomputed.
        prv: ε under add/remove by Opacus' PRV accountant; None where it cannot tell.
        problems: What does not hold; empty if all does.
    """

    claimed: Mapping[str, float | None]
    found: Mapping[str, float]
    prv: float | None
    problems: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Largest difference between a claimed and a recomputed ε."""
        pairs = [(self.claimed[name], value) for name, value in self.found.items()]
        return max((abs(c - f) for c, f in pairs if c is not None), default=0.0)


def verify_report(path: Path) -> Verdict:
    """Recompute what a report claims.

    Raises:
        PrivacyError: If the file cannot be read, or is no privacy report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return _verdict(report)
    except OSError as error:
        raise PrivacyError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PrivacyError(f"{path} is not a privacy report in JSON") from None


def _verdict(report: dict[str, Any]) -> Verdict:
    problems = _signature(report) + _chain(report)
    delta = float(report["delta"])
    train, holdout, add, lost = _accounts(report["releases"])
    groups = [train + holdout] if add else [train, holdout]
    found = {
        "epsilon": max(_epsilon(group, delta) for group in groups),
        "epsilon_replace_one": max(
            _epsilon(train + holdout, delta), *(_epsilon(group, delta, True) for group in groups)
        ),
    }
    found |= {
        f"epsilon_shared.{k}": max(_epsilon(group * int(k), delta) for group in groups)
        for k in report["epsilon_shared"] or {}
    }
    claimed = {name: report[name] for name in ("epsilon", "epsilon_replace_one")}
    claimed |= {f"epsilon_shared.{k}": v for k, v in (report["epsilon_shared"] or {}).items()}
    if lost:
        problems.append(f"{lost} entries or more were lost: epsilon is unknown")
        claimed = {name: report["epsilon_of_entries"][key] for name, key in _OF_ENTRIES.items()}
        if report["epsilon"] is not None:
            problems.append("the report claims an epsilon though entries were lost")
    for name, value in found.items():
        said = claimed[name]
        if said is None and math.isinf(value):
            continue
        if said is None or not abs(said - value) <= TOLERANCE:
            problems.append(f"{name}: the report says {said}, its entries spend {value:.4f}")
    second = _prv(groups, delta)
    said = claimed["epsilon"]
    if second is not None and said is not None and said < second - PRV_TOLERANCE:
        problems.append(f"epsilon: the report says {said}, Opacus' PRV accountant {second:.4f}")
    return Verdict(claimed=claimed, found=found, prv=second, problems=tuple(problems))


_OF_ENTRIES = {"epsilon": "add_remove", "epsilon_replace_one": "replace_one"}
_Spent = list[dict[str, Any]]


def _signature(report: dict[str, Any]) -> list[str]:
    plain = {name: value for name, value in report.items() if name != "signature"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if is_signed(text.encode(), report["signature"], report["public_key"]):
        return []
    return ["the report was changed after it was signed"]


def _chain(report: dict[str, Any]) -> list[str]:
    previous, number = _START, 0
    for number, entry in enumerate(report["releases"], start=1):
        plain = {name: entry[name] for name in _CHAINED}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        own = hashlib.sha256(text.encode()).hexdigest()
        if (entry["sequence"], entry["previous"], entry["hash"]) != (number, previous, own):
            return [f"the chain of the ledger breaks at entry {number}"]
        previous = own
    head = report["ledger_head"]
    if (head["sequence"], head["hash"]) != (number, previous):
        return ["the chain of the ledger does not end at its head"]
    return []


def _accounts(entries: _Spent) -> tuple[_Spent, _Spent, bool, int]:
    """Events of train and hold-out users, whether both may be one user's, and lost entries."""
    events: dict[str, _Spent] = {"train": [], "holdout": []}
    splits: set[str] = set()
    add, lost, overrides = False, 0, 0
    for entry in entries:
        plain = json.loads(entry["event"])
        if entry["account"] == "split":
            splits.add(entry["event"])
        elif entry["account"] == "override":
            lost += max(plain["counter"] - (lost + entry["sequence"] - 1), 0)
            overrides += 1
        else:
            events[entry["account"]].append(plain)
            add |= not splits
    return events["train"], events["holdout"], add or len(splits) > 1, max(lost, overrides)


def _epsilon(events: _Spent, delta: float, replace_one: bool = False) -> float:
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


def _prv(groups: list[_Spent], delta: float) -> float | None:
    from credit_client.training.prv import prv_epsilon
    from credit_common.events import event_from_json

    found = [prv_epsilon([event_from_json(e) for e in group], delta) for group in groups]
    return max((value for value in found if value is not None), default=None)
