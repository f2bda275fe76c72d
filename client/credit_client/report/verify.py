"""A second reader of privacy reports: recomputes ε from the entries of the ledger alone.

See `credit_client.report.recount` for how; Opacus' PRV accountant is asked too. Whatever else the
report says of its entries is held against them too. A report from an unknown source proves who
signed it only if its public key is known, and no report proves that its ledger is the whole one:
the heads that the coordinator keeps do.
"""

import json
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
    recount,
)
from credit_common.bundle import read_object
from credit_common.certificates import fingerprint, is_signed
from credit_common.errors import CreditError, PrivacyError

TOLERANCE = 0.01
"""Most by which ε may differ: the two accountants round losses to different grids."""
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
    if not 1e-12 <= delta < 1:
        raise PrivacyError(f"delta = {delta!r}: must be inside [1e-12, 1)")
    entries: Spent = report["releases"]
    problems = _signature(report) + chain_problems(entries, report["ledger_head"])
    counted = recount(entries)
    found, claimed = _found(report, counted, delta), _claimed(report)
    if counted.overrides:
        known = max(counted.lost, len(counted.overrides))
        problems.append(f"{known} entries or more were lost: epsilon is unknown")
        if any(value is not None for value in _claimed(report, by_account=False).values()):
            problems.append("the report claims an epsilon though entries were lost")
        claimed |= {name: report["epsilon_of_entries"][key] for name, key in _OF_ENTRIES.items()}
    elif not report["epsilon_shared"]:
        problems.append("epsilon_shared is left out, though nothing was lost")
    for name, value in found.items():
        said = claimed[name]
        if said is None and math.isinf(value):
            continue
        if said is None or not abs(said - value) <= TOLERANCE:
            problems.append(f"{name}: the report says {said}, its entries spend {value:.4f}")
    problems += _retold(report, counted)
    second = _prv(counted.groups, delta)
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


def _found(report: dict[str, Any], counted: Recount, delta: float) -> dict[str, float]:
    whole, groups = counted.train + counted.holdout, counted.groups
    train, holdout = epsilon_of(counted.train, delta), epsilon_of(counted.holdout, delta)
    both = epsilon_of(whole, delta)
    shared = {
        f"epsilon_shared.{k}": max(epsilon_of(group * int(k), delta) for group in groups)
        for k in report["epsilon_shared"] or {}
    }
    return {
        "epsilon": both if counted.add else max(train, holdout),
        "epsilon_replace_one": max(both, *(epsilon_of(group, delta, True) for group in groups)),
        "epsilon_by_account.train": train,
        "epsilon_by_account.holdout": holdout,
        **shared,
    }


def _claimed(report: dict[str, Any], *, by_account: bool = True) -> dict[str, float | None]:
    claimed: dict[str, float | None] = {name: report[name] for name in _OF_ENTRIES}
    tables = ("epsilon_shared", "epsilon_by_account") if by_account else ("epsilon_shared",)
    for table in tables:
        claimed |= {f"{table}.{name}": value for name, value in (report[table] or {}).items()}
    return claimed


def _retold(report: dict[str, Any], counted: Recount) -> list[str]:
    """Whether what the report says of its entries elsewhere is what they are."""
    problems = []
    if report["accounts_add"] is not counted.add:
        problems.append(
            f"accounts_add: the report says {report['accounts_add']}, by its entries it is "
            f"{counted.add}"
        )
    if report["lost_entries"] != counted.lost:
        problems.append(
            f"lost_entries: the report says {report['lost_entries']}, by its entries it is "
            f"{counted.lost}"
        )
    if report["ledger_head"]["counter"] != len(report["releases"]) + counted.lost:
        problems.append("ledger_head: its counter is not that of its entries")
    for number, _, signed in counted.overrides:
        if not signed:
            problems.append(f"entry {number} is an override that nobody signed")
    told = [(each["sequence"], each["reason"]) for each in report["overrides"]]
    if told != [(number, reason) for number, reason, _ in counted.overrides]:
        problems.append("overrides: the report does not tell those of its entries")
    plan = report["mechanism"]
    said = (plan["sampling_rate"], plan["noise_multiplier"], plan["steps_per_round"])
    for entry in report["releases"]:
        event = json.loads(entry["event"])
        if (
            entry["contract_digest"] == report["contract_digest"]
            and event["kind"] == "sampled_gaussian"
            and (event["sampling_rate"], event["noise_multiplier"], event["steps"]) != said
        ):
            number = entry["sequence"]
            problems.append(f"mechanism: entry {number} was charged for another than the report's")
            break
    return problems


def _prv(groups: list[Spent], delta: float) -> float | None:
    from credit_client.training.prv import prv_epsilon
    from credit_common.events import event_from_json

    found = [prv_epsilon([event_from_json(e) for e in group], delta) for group in groups]
    return max((value for value in found if value is not None), default=None)
