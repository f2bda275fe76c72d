"""The privacy report: what a holder's ledger, manifest and contract say of its users' privacy.

Made from those three alone, and signed with the holder's key. Every entry of the ledger is in it,
so that whoever has the report can compute ε anew (`credit_client.verify` does). Its structure
follows the questions of NIST SP 800-226: unit, adjacency, mechanism, accounting, threat model.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from credit_client.balance import Balance, epsilon_of
from credit_client.chain import Entry, canonical
from credit_client.disclosure import NEVER_SENT, sendings
from credit_client.identity import Identity
from credit_client.ledger import Ledger
from credit_client.manifest import Listed, listed
from credit_client.safekeeping import is_signed_override
from credit_common.accountant import LOSS_GRID, epsilon_rdp
from credit_common.bundle import read_object
from credit_common.certificates import load_key, public_hex, sign
from credit_common.claim import EXCLUDED
from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.privacy import MechanismPlan, mechanism_plan

FORMAT = 1
SHARED = (2, 3, 5)
"""Numbers of holders for which ε of a user of all of them is told."""
ADVERSARY = (
    "whoever sees every message that this holder ever sent, as a coordinator does, knows all "
    "contracts and all other users' data, and may deviate from the protocol; no server can weaken "
    "what this holder's own package enforces"
)
LOST = "entries were lost, and what they spent is not known: epsilon is unknown"


def privacy_report(
    identity: Identity, ledger: Ledger, audit: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The signed report of a holder.

    Args:
        identity: Whose.
        ledger: Its ledger, open and held against its witness.
        audit: What `credit-sim audit --format json` printed, to be told beside the claim.

    Returns:
        Plain JSON. `epsilon` is None where entries were lost.

    Raises:
        PrivacyError: If a message or a release of this holder is missing in the ledger, or a word
            about lost entries is not signed.
    """
    contract = identity.bundle.contract
    entries, balance = ledger.entries(), ledger.balance
    delta = contract.privacy.delta
    messages = list(listed(identity.manifest.lines(), entries))
    for entry in balance.overrides:
        if not is_signed_override(entry.event, entry.previous):
            raise PrivacyError(f"entry {entry.sequence} is an override that nobody signed")
    _check_releases(identity.home, entries)
    whole = not balance.overrides
    spent, replaced = balance.epsilon(delta), balance.epsilon_replace_one(delta)
    report: dict[str, Any] = {
        "format": FORMAT,
        "federation": identity.bundle.federation,
        "holder": identity.subject.name,
        "size_class": identity.subject.size_class,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "one user of this holder, who is one training example or one hold-out example",
        "row_rule": _row_rule(contract),
        "adjacency": "add or remove one such user; epsilon_replace_one: change one user's record",
        "epsilon": spent if whole else None,
        "epsilon_replace_one": replaced if whole else None,
        "epsilon_of_entries": {"add_remove": spent, "replace_one": replaced},
        "epsilon_shared": {str(k): balance.epsilon(delta, k) for k in SHARED} if whole else None,
        "epsilon_by_account": {
            name: epsilon_of(balance.history(name), delta) for name in ("train", "holdout")
        },
        "accounts_add": balance.accounts_add,
        "delta": delta,
        "budget": contract.privacy.epsilon,
        "lost_entries": balance.lost,
        "overrides": [
            {"sequence": e.sequence, "time": e.time, **_words(e)} for e in balance.overrides
        ],
        "remark": None if whole else LOST,
        "contract_digest": contract.digest,
        "contracts": _by_contract(entries),
        "mechanism": _mechanism(mechanism_plan(contract, identity.subject.size_class)),
        "accountant": {
            "name": "privacy loss distributions (Doroshenko et al. 2022), an upper bound",
            "package": "dp-accounting",
            "version": version("dp-accounting"),
            "loss_grid": LOSS_GRID,
            "cross_check": {"name": "Rényi (an upper bound)", "epsilon": _renyi(balance, delta)},
        },
        "ledger_head": {
            "counter": balance.counter,
            "sequence": ledger.head[0],
            "hash": ledger.head[1],
        },
        "releases": [{**asdict(entry), "hash": entry.hash} for entry in entries],
        "adversary": ADVERSARY,
        "messages": _messages(messages),
        "sends": [
            {"message": s.what, "when": s.when, "contains": list(s.contains)}
            for s in sendings(contract, mechanism_plan(contract, identity.subject.size_class), None)
        ],
        "never_sent": list(NEVER_SENT),
        "tuning": contract.privacy.tuning or "not stated in the contract",
        "audit": audit,
        "excluded": [what for what in EXCLUDED if not what.startswith("other runs")],
        "structure": "after NIST SP 800-226; differential privacy alone does not make data "
        "anonymous (EDPB opinion 28/2024)",
    }
    plain: dict[str, Any] = json.loads(json.dumps(report), parse_constant=lambda _: None)
    key = load_key(identity.key_pem, str(identity.key_path))
    plain["public_key"] = public_hex(key.public_key())
    plain["signature"] = sign(key, canonical(plain).encode())
    return plain


def _row_rule(contract: Contract) -> str:
    rule = contract.record
    rows = {
        "last": "the last row of a user gives the record",
        "first": "the first row of a user gives the record",
        "reject": "users with several rows are left out",
    }[rule.several_rows]
    return f"rows belong to a user by the column {rule.user!r}; {rows}"


def _mechanism(plan: MechanismPlan) -> dict[str, Any]:
    return {
        "training": "sampled Gaussian mechanism on sums of clipped per-user gradients",
        "sampler": "Poisson",
        "sampling_rate": plan.sampling_rate,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": plan.clip_norm,
        "steps_per_round": plan.steps,
        "rounds": plan.rounds,
        "denominator": plan.expected_batch_size,
        "evaluation": "Gaussian mechanism on counts, one user in one cell",
        "evaluation_noise_multiplier": plan.evaluation_noise_multiplier,
        "evaluations": plan.evaluations,
        "group_clip": dict(plan.group_clip),
        "statistics_fields": plan.statistics_fields,
        "statistics_noise_multiplier": plan.statistics_noise_multiplier,
        "noise_source": "ChaCha20 stream keyed by the operating system, float64, snapped to a "
        "grid of 2^-20 standard deviations; no seed reaches it",
    }


def _by_contract(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        if entry.message_id is not None:
            found[entry.contract_digest][entry.account] += 1
    return {digest: dict(counts) for digest, counts in sorted(found.items())}


def _renyi(balance: Balance, delta: float) -> float:
    def bound(account: str) -> float:
        return epsilon_of(balance.composed(account), delta, epsilon_rdp)

    return max(bound("train"), bound("holdout"))


def _messages(messages: Sequence[Listed]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for item in messages:
        found[item.sent.message].update(times=1, bytes=item.sent.bytes)
    return {name: dict(counts) for name, counts in found.items()}


def _words(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(entry.event)
    return {name: plain[name] for name in ("reason", "counter", "holder")}


def _check_releases(home: Path, entries: Sequence[Entry]) -> None:
    """Every model in the holder's folder came of a run that the ledger knows."""
    charged = {entry.contract_digest for entry in entries if entry.account == "train"}
    for path in sorted(home.glob("releases/*/release.json")):
        manifest = read_object(path)
        facts = manifest.get("facts")
        private = isinstance(facts, dict) and facts.get("epsilon") is not None
        if private and manifest.get("contract_digest") not in charged:
            raise PrivacyError(f"{path} came of a run that the ledger has no charge of")
