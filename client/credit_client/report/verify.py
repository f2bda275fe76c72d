"""A second reader of privacy reports: recomputes ε from the entries of the ledger alone.

See `credit_client.report.recount` for how; Opacus' PRV accountant is asked too, and what the report
says of its entries in other words is held against them (`credit_client.report.retold`). No report
proves who signed it unless its public key is known, or that its ledger is the whole one: the heads
that the coordinator keeps do.

Only told, since nothing in a report could show it: holder, federation, purpose, size class, time
and unit; the contract, of which a report has the digest alone, and so the budget and whatever of
the mechanism no entry is charged by (clip norms, rounds, evaluations, which of these counted by
groups, denominator, noise source);
how many messages left and how large they were; name and version of the accountant; the audit; and
what is said of adversary, messages and tuning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from credit_client.report.recount import (
    Recount,
    Spent,
    canonical_bytes,
    chain_problems,
    epsilon_of,
    epsilon_shared,
    recount,
    renyi_of,
)
from credit_client.report.retold import meaning_problems, retold_problems
from credit_common.bundle import read_object
from credit_common.certificates import fingerprint, is_signed
from credit_common.errors import CreditError, PrivacyError
from credit_common.sections import LARGEST_DELTA

SHARED = ("2", "3", "5")
"""Numbers of holders for which a report tells ε of a user of all of them."""
PRV_TOLERANCE = 0.03
_OF_ENTRIES = {"epsilon": "add_remove", "epsilon_replace_one": "replace_one"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        holder: Whose report it says it is.
        signer: Fingerprint of the key that signed it.
        delta: δ of every ε.
        claimed, found: ε by name, as the report says and as recomputed.
        prv: ε under add/remove by Opacus' PRV accountant; None where it cannot tell.
        problems: What does not hold; empty if all does.
    """

    holder: str
    signer: str
    delta: float
    claimed: Mapping[str, float | None]
    found: Mapping[str, float]
    prv: float | None
    problems: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Largest difference between a claimed and a recomputed ε."""
        pairs = [(self.claimed[name], value) for name, value in self.found.items()]
        return max((abs(c - f) for c, f in pairs if c is not None), default=0.0)


def tolerance(found: float) -> float:
    """Most by which a claimed ε may differ from a found one.

    Both readers round losses alike. What is left between them, from the order in which events are
    composed, was .0016 at most (a million steps, ε = 15), and 1e-5 below ε = 1.
    """
    return max(1e-4, min(0.01, 0.01 * found))


def verify_report(path: Path) -> Verdict:
    """Recompute what a report claims.

    Raises:
        PrivacyError: If the file cannot be read, is no privacy report, or has an entry that ε
            cannot be computed of.
    """
    try:
        return _verdict(read_object(path))
    except PrivacyError:
        raise
    except CreditError as error:
        raise PrivacyError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise PrivacyError(f"{path} is not a privacy report in JSON") from None


def _verdict(report: dict[str, Any]) -> Verdict:
    delta = float(report["delta"])
    # At a large one every ε is small: a contract's bound is a report's too.
    if not 1e-12 <= delta <= LARGEST_DELTA:
        raise PrivacyError(f"delta = {delta!r}: must be inside [1e-12, {LARGEST_DELTA:g}]")
    entries: Spent = report["releases"]
    problems = _signature(report) + chain_problems(entries, report["ledger_head"])
    counted = recount(entries)
    found, claimed = _found(counted, delta), _claimed(report)
    problems += [
        f"entry {number} is a run without privacy: epsilon is infinite"
        for number in counted.open_runs
    ]
    of_entries = {name: report["epsilon_of_entries"][key] for name, key in _OF_ENTRIES.items()}
    if counted.overrides:
        known = max(counted.lost, len(counted.overrides))
        problems.append(f"{known} entries or more were lost: epsilon is unknown")
        told = [report[name] for name in _OF_ENTRIES]
        if any(value is not None for value in told) or report["epsilon_shared"]:
            problems.append("the report claims an epsilon though entries were lost")
        claimed |= of_entries
    else:
        problems += _shared(report["epsilon_shared"], counted)
        for name, value in of_entries.items():
            if not _agree(value, found[name]):
                problems.append(f"epsilon_of_entries: it says {value} for {name}")
    for name, value in found.items():
        if not _agree(claimed[name], value):
            said = claimed[name]
            problems.append(f"{name}: the report says {said}, its entries spend {value:.4f}")
    problems += retold_problems(report, counted)
    if counted.overrides or _agree(report["epsilon"], found["epsilon"]):
        problems += meaning_problems(report, counted)
    cross, bound = report["accountant"]["cross_check"]["epsilon"], _renyi(counted, delta)
    if not _agree(cross, bound):
        problems.append(f"accountant: Rényi's bound is {cross} in the report, and {bound:.4f}")
    second = None if counted.open_runs else _prv(counted.groups, delta)
    said = claimed["epsilon"]
    if second is not None and said is not None and said < second - PRV_TOLERANCE:
        problems.append(f"epsilon: the report says {said}, Opacus' PRV accountant {second:.4f}")
    return Verdict(
        holder=str(report["holder"]),
        signer=fingerprint(bytes.fromhex(report["public_key"])),
        delta=delta,
        claimed=claimed,
        found=found,
        prv=second,
        problems=tuple(problems),
    )


def _signature(report: dict[str, Any]) -> list[str]:
    plain = {name: value for name, value in report.items() if name != "signature"}
    if is_signed(canonical_bytes(plain), report["signature"], report["public_key"]):
        return []
    return ["the report was changed after it was signed"]


def _shared(told: dict[str, Any] | None, counted: Recount) -> list[str]:
    if not told:
        return ["epsilon_shared is left out, though nothing was lost"]
    if set(told) != set(SHARED):
        return [f"epsilon_shared: it must be for {', '.join(SHARED)} holders"]
    return []


def _found(counted: Recount, delta: float) -> dict[str, float]:
    whole, groups = counted.train + counted.holdout, counted.groups
    train, holdout = epsilon_of(counted.train, delta), epsilon_of(counted.holdout, delta)
    both = epsilon_of(whole, delta)
    found = {
        "epsilon": both if counted.add else max(train, holdout),
        "epsilon_replace_one": max(both, *(epsilon_of(group, delta, True) for group in groups)),
        "epsilon_by_account.train": train,
        "epsilon_by_account.holdout": holdout,
    }
    if not counted.overrides:
        found |= {f"epsilon_shared.{k}": epsilon_shared(counted, int(k), delta) for k in SHARED}
    return dict.fromkeys(found, math.inf) if counted.open_runs else found


def _claimed(report: dict[str, Any]) -> dict[str, float | None]:
    """ε by name; None where the report tells none."""
    accounts, shared = report["epsilon_by_account"], report["epsilon_shared"] or {}
    return {
        **{name: report[name] for name in _OF_ENTRIES},
        **{f"epsilon_by_account.{name}": accounts[name] for name in ("train", "holdout")},
        **{f"epsilon_shared.{k}": shared.get(k) for k in SHARED},
    }


def _agree(said: float | None, found: float) -> bool:
    """Whether a claim is what was found; an infinite one is not told."""
    if said is None or math.isinf(found):
        return said is None and math.isinf(found)
    return abs(said - found) <= tolerance(found)


def _renyi(counted: Recount, delta: float) -> float:
    if counted.open_runs:
        return math.inf
    return max(renyi_of(group, delta) for group in counted.groups)


def _prv(groups: list[Spent], delta: float) -> float | None:
    from credit_client.training.prv import prv_epsilon
    from credit_common.events import event_from_json

    found = [prv_epsilon([event_from_json(e) for e in group], delta) for group in groups]
    return max((value for value in found if value is not None), default=None)
