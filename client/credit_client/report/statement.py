"""The privacy report: what a holder's ledger, manifest and contract say of its users' privacy.

Made from those three alone, and signed with the holder's key. Every entry of the ledger is in it,
so that whoever has the report can compute ε anew (`credit_client.report.verify` does). It follows
the questions of NIST SP 800-226: unit, adjacency, mechanism, accounting, threat model.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
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
from credit_common.heads import head_from_json
from credit_common.privacy import MechanismPlan, mechanism_plan

FORMAT = 1
SHARED = (2, 3, 5)
"""Numbers of holders for which ε of a user of all of them is told."""
ADVERSARY = (
    "whoever sees every message that this holder ever sent, as a coordinator does, knows all "
    "contracts and all other users' data, and may deviate from the protocol; no server can weaken "
    "what this holder's own package enforces"
)
BELIEFS = (0.01, 0.5)
"""How likely somebody may hold it beforehand that a person is a user: for what ε means."""
ROLL_BACK = (
    "roll-back: a ledger that lost entries is found out by its witness on the holder's machine and "
    "by the heads that the coordinator keeps; where the witness is lost too and the coordinator "
    "hides its head, an older ledger passes for whole"
)
ALIKE = "what is true of users as a whole: it is what the model learns, and is not hidden"
_ARM: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (str, ("name", "kind")),
    ((int, float, type(None)), ("claimed_epsilon", "lower_bound")),  # None is infinite
    ((int, float), ("confidence",)),
    (int, ("canaries",)),
    (bool, ("caught",)),
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
        PrivacyError: If the contract has no budget, if a message or a release of this holder is
            missing in the ledger, if a word about lost entries is not signed, or if `audit` is not
            what it should be.
    """
    contract = identity.bundle.contract
    if not contract.privacy.private:
        raise PrivacyError("this federation has no privacy: there is no epsilon to report")
    _check_audit(audit)
    entries, balance = ledger.entries(), ledger.balance
    delta = contract.privacy.delta
    messages = list(listed(identity.manifest.lines(), entries))
    for entry in balance.overrides:
        if not is_signed_override(entry.event, entry.previous):
            raise PrivacyError(f"entry {entry.sequence} is an override that nobody signed")
    if balance.open_runs:
        number = balance.open_runs[0].sequence
        raise PrivacyError(f"entry {number} is a run without privacy: epsilon is infinite")
    whole = not balance.overrides
    if whole:  # else what lost entries were for cannot be told
        _check_releases(identity, balance)
    plan = mechanism_plan(contract, identity.subject.size_class)
    spent, replaced = balance.epsilon(delta), balance.epsilon_replace_one(delta)
    report: dict[str, Any] = {
        "format": FORMAT,
        "federation": identity.bundle.federation,
        "holder": identity.subject.name,
        "purpose": contract.federation.description,
        "predicts": f"{contract.task.label} ({contract.task.kind})",
        "size_class": identity.subject.size_class,
        "size_class_users": contract.privacy.class_users(identity.subject.size_class),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "one user of this holder, who is one training example or one hold-out example",
        "row_rule": _row_rule(contract),
        "adjacency": "epsilon: add or remove one such user; epsilon_replace_one: change the record "
        "of one, or put another user in the place of one",
        "epsilon": spent if whole else None,
        "epsilon_replace_one": replaced if whole else None,
        "epsilon_of_entries": {"add_remove": spent, "replace_one": replaced},
        "epsilon_shared": {str(k): balance.epsilon(delta, k) for k in SHARED} if whole else None,
        "epsilon_by_account": {
            name: epsilon_of(balance.history(name), delta) for name in ("train", "holdout")
        },
        "accounts_add": balance.accounts_add,
        "delta": delta,
        "meaning": _meaning(spent) if whole else None,
        "budget": contract.privacy.epsilon,
        "budget_left": max((contract.privacy.epsilon or 0) - spent, 0) if whole else None,
        "lost_entries": balance.lost,
        "overrides": [
            {"sequence": e.sequence, "time": e.time, **_words(e)} for e in balance.overrides
        ],
        "remark": None if whole else LOST,
        "contract_digest": contract.digest,
        "contracts": _by_contract(entries),
        "mechanism": _mechanism(plan),
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
        "messages_of_lost_entries": sum(item.lost for item in messages),
        "sends": [
            {"message": s.what, "when": s.when, "contains": list(s.contains)}
            for s in sendings(contract, plan)
        ],
        "never_sent": list(NEVER_SENT),
        "tuning": contract.privacy.tuning or "not stated in the contract",
        "audit": audit,
        "excluded": [
            *(what for what in EXCLUDED if not what.startswith("other runs")),
            ROLL_BACK,
            ALIKE,
        ],
        "structure": "The structure of this report is after NIST SP 800-226. Differential privacy "
        "alone does not make data anonymous (EDPB opinion 28/2024).",
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


def _meaning(epsilon: float) -> dict[str, Any] | None:
    """What ε lets somebody learn at most, but for δ; None where ε is past all meaning."""
    if not epsilon < 700:
        return None
    factor = math.exp(epsilon)
    after = {str(p): p * factor / (1 - p + p * factor) for p in BELIEFS}
    return {"odds_factor": factor, "belief_after": after}


def _mechanism(plan: MechanismPlan) -> dict[str, Any]:
    return {
        "training": "sampled Gaussian mechanism on sums of clipped per-user gradients",
        "sampler": "Poisson",
        "sampling_rate": plan.sampling_rate,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": plan.clip_norm,
        "steps_per_round": plan.steps,
        "rounds": plan.rounds,
        "steps": plan.steps * plan.rounds,
        "denominator": plan.expected_batch_size,
        "evaluation": "Gaussian mechanism on counts, one user in one cell"
        + (
            f", in the last one also in one cell for each of {groups} protected fields"
            if (groups := plan.evaluation_groups)
            else ""
        ),
        "evaluation_noise_multiplier": plan.evaluation_noise_multiplier,
        "evaluations": plan.evaluations,
        "evaluation_groups": plan.evaluation_groups,
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


def _check_audit(audit: Mapping[str, Any] | None) -> None:
    arms = [] if audit is None else audit.get("arms")
    for arm in arms if isinstance(arms, list) else [None]:
        for kind, names in _ARM:
            for name in names:
                if not (isinstance(arm, dict) and name in arm and isinstance(arm[name], kind)):
                    raise PrivacyError(f"the audit has no arms, or one without a proper {name}")


def _check_releases(identity: Identity, balance: Balance) -> None:
    """Every model in the holder's folder came of a run that the ledger knows.

    A release has the head that this holder signed when it had sent all; one that sent nothing in
    that run, since it came late or its budget was spent, has none there.
    """
    key = load_key(identity.key_pem, str(identity.key_path))
    own = public_hex(key.public_key())
    for path in sorted(identity.home.glob("releases/*/release.json")):
        manifest = read_object(path)
        facts = manifest.get("facts")
        if not isinstance(facts, dict) or facts.get("epsilon") is None:
            raise PrivacyError(f"{path} came of a run without privacy: epsilon is infinite")
        for plain in facts.get("heads") or []:
            head = head_from_json(plain)
            if head.public_key == own and head.counter > balance.counter:
                raise PrivacyError(
                    f"{path} came of a run that the ledger does not have: this holder signed "
                    f"{head.counter} entries then, and it has {balance.counter}"
                )
