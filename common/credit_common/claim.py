"""What a release claims: the facts of its training, and whom it promises what.

ε in the facts is held against the contract's own schedule, so that no release can claim more
privacy than its rounds have left. Figures are no facts: whoever has the released histogram reads
them from it, so that none can be made up beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.accountant import epsilon
from credit_common.contract import Contract
from credit_common.errors import PrivacyError, WireError
from credit_common.evaluation import Figure, is_rows, read_released
from credit_common.events import Event, FieldHistograms, SampledGaussian, finite
from credit_common.groups import GroupGaps, count_columns, read_groups
from credit_common.heads import Head, head_from_json, head_to_json
from credit_common.privacy import counted_event

NO_PRIVACY = (
    "There is no privacy: this model was trained without differential privacy. Whoever has it may "
    "learn from it about single users in the data of the holders. Use it for research only."
)
LOST = (
    " The ledger of at least one holder has lost entries: for its users, epsilon over all runs is "
    "unknown."
)
ADVERSARY = (
    "somebody who sees every message that a holder sends in this run, as the coordinator does, who "
    "knows the contract and all that other holders sent, and who has this release"
)
EXCLUDED = (
    "other runs: what a holder sent before or after composes with this, and its ledger has the sum",
    "timing: when a holder answers, and how long it takes",
    "collusion of holders: holders that pool their data know what they pooled",
    "users of several holders: their epsilons compose",
    "floating point: noised sums are snapped to a grid, which mitigates and does not prove",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a release was trained with, beside its contract.

    Attributes:
        rounds: Rounds that the adapter has behind it.
        holders: Fewest holders in one of them.
        histogram: Sum of the DP histograms of the last evaluation, two rows of counts; None where
            there was none.
        evaluated: Number of holders summed in it.
        epsilon, holdout_epsilon: What `rounds` rounds of the public schedule spend of a training
            and of a hold-out user (see `schedule_epsilon`); None without privacy.
        created: UTC, ISO 8601.
        heads: What each holder signed of its own ledger at the end of the run, by node id; empty
            in a simulation and without privacy.

    Raises:
        WireError: If a fact is of another type or out of its bounds.
    """

    rounds: int
    holders: int
    histogram: tuple[tuple[float, ...], ...] | None = None
    evaluated: int = 0
    epsilon: float | None
    holdout_epsilon: float | None
    created: str
    heads: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rounds", "holders"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, name, value, "an integer of at least 1")
        for name in ("epsilon", "holdout_epsilon"):
            value = getattr(self, name)
            _require(value is None or (finite(value) and value >= 0), name, value, "at least 0")
        both = (self.epsilon is None) == (self.holdout_epsilon is None)
        _require(both, "holdout_epsilon", self.holdout_epsilon, "given if and only if epsilon is")
        # A damaged histogram is not quoted: it may be long.
        known = self.histogram is None or is_rows(self.histogram)
        _require(known, "histogram", "...", "two rows of as many counts, up to 1e12, or absent")
        summed = 0 if self.histogram is None else 1
        ok = type(self.evaluated) is int and min(self.evaluated, 1) == summed
        _require(ok, "evaluated", self.evaluated, "at least 1 with a histogram, 0 without")
        try:
            utc = datetime.fromisoformat(self.created).utcoffset() == UTC.utcoffset(None)
        except (ValueError, TypeError):
            utc = False
        _require(utc, "created", self.created, "a UTC time in ISO 8601")


def facts_to_json(facts: Facts) -> dict[str, Any]:
    """Plain JSON form of the facts."""
    return {
        **vars(facts),
        "histogram": facts.histogram and [list(row) for row in facts.histogram],
        "heads": [head_to_json(head) for head in facts.heads],
    }


def facts_from_json(plain: object) -> Facts:
    """The facts of a JSON form.

    Raises:
        WireError: If a key is missing or unknown, or a fact out of its bounds.
    """
    names = set(Facts.__dataclass_fields__)
    if not isinstance(plain, Mapping) or set(plain) != names:
        raise WireError(f"facts: must be a table of {', '.join(sorted(names))}")
    rows = plain["histogram"]
    if isinstance(rows, list) and all(isinstance(row, list) for row in rows):
        rows = tuple(tuple(row) for row in rows)
    if not isinstance(plain["heads"], list):
        raise WireError("facts.heads: must be a list")
    heads = tuple(head_from_json(head) for head in plain["heads"])
    return Facts(**{**plain, "histogram": rows, "heads": heads})


def released_figures(contract: Contract, facts: Facts) -> dict[str, Figure]:
    """The figures of a release with their intervals, from its histogram; none without one.

    Raises:
        WireError: If the histogram has not the contract's bins.
    """
    if facts.histogram is None:
        return {}
    return read_released(contract, _checked_counts(contract, facts), facts.evaluated)


def released_groups(contract: Contract, facts: Facts) -> tuple[GroupGaps, ...]:
    """How groups fare by a release's histogram; none where the contract counts no groups.

    Raises:
        WireError: If the histogram has not the contract's bins.
    """
    if facts.histogram is None:
        return ()
    return read_groups(contract, _checked_counts(contract, facts), facts.evaluated)


def schedule_epsilon(contract: Contract, rounds: int) -> tuple[float, float] | None:
    """What the first `rounds` rounds spend of a training and of a hold-out user; None without DP.

    Both are ε under add/remove of the user, at the contract's delta. The statistics before the
    first round, where there are some, are in that of a training user.
    """
    if not contract.privacy.private:
        return None
    training, evaluation, delta = contract.training, contract.evaluation, contract.privacy.delta
    steps = SampledGaussian(
        sampling_rate=training.sampling_rate,
        noise_multiplier=contract.privacy.noise_multiplier,
        steps=training.steps * rounds,
    )
    trained: list[Event] = [steps]
    if contract.federated_fields:
        trained.append(
            FieldHistograms(
                noise_multiplier=contract.statistics.noise_multiplier,
                fields=len(contract.federated_fields),
            )
        )
    counted = [
        counted_event(evaluation.noise_multiplier, len(contract.groups_at(round_)))
        for round_ in _evaluated(contract, rounds)
    ]
    return epsilon(trained, delta), epsilon(counted, delta)


def check_claim(contract: Contract, facts: Facts, slack: float = 1e-6) -> None:
    """Refuse facts that claim more privacy than the contract's schedule gives.

    Args:
        slack: Share by which an ε may be below the one computed here; by default what another
            machine's floating point may do.

    Raises:
        PrivacyError: If there are more rounds than the contract's, an ε is below what they spend or
            missing, or there is one without DP.
    """
    for head in facts.heads:
        silent = head.epsilon is None and not head.overrides
        if head.contract_digest != contract.digest or silent:
            raise PrivacyError(f"the head of node {head.node_id} says nothing of this contract")
    most = contract.training.rounds
    if facts.rounds > most:
        raise PrivacyError(f"facts.rounds = {facts.rounds}: the contract has {most}")
    spent = schedule_epsilon(contract, facts.rounds)
    if facts.epsilon is None or facts.holdout_epsilon is None or spent is None:
        if (facts.epsilon is None) != (spent is None):
            raise PrivacyError("facts.epsilon: must be given if and only if the contract has one")
        return
    claims = {"epsilon": facts.epsilon, "holdout_epsilon": facts.holdout_epsilon}
    for (name, claimed), least in zip(claims.items(), spent, strict=True):
        if claimed < least * (1 - slack):
            raise PrivacyError(
                f"facts.{name} = {claimed:g}: {facts.rounds} rounds of this contract spend "
                f"{told_epsilon(least)}"
            )


def told_epsilon(value: float, decimals: int = 3) -> str:
    """ε rounded up: what is told is never less than what was spent.

    Example:
        >>> told_epsilon(7.93041), told_epsilon(7.93041, 2)
        ('7.931', '7.94')
    """
    unit = 10**decimals
    return f"{math.ceil(value * unit) / unit:.{decimals}f}"


def promise(contract: Contract, facts: Facts) -> str:
    """The promise in one paragraph; without a budget, that there is none."""
    if facts.epsilon is None:
        return NO_PRIVACY
    budget = contract.privacy.epsilon
    assert facts.holdout_epsilon is not None
    assert budget is not None  # `check_claim` has held the facts against the contract
    return (
        "Differential privacy for each user of each holder, under add/remove of that user: "
        f"epsilon {told_epsilon(facts.epsilon)} for a user who was trained on, "
        f"{told_epsilon(facts.holdout_epsilon)} for a hold-out user, at delta "
        f"{contract.privacy.delta:g}, by privacy loss distributions (dp-accounting). It holds "
        "against everyone who sees all messages that a holder sends in a run of this schedule. "
        "What it sends in other runs, or to a coordinator that asks more often, composes with it: "
        "its own ledger has the sum, and under this contract refuses past epsilon "
        f"{budget:g}. It does not "
        "make the model anonymous data."
    ) + (LOST if any(head.overrides for head in facts.heads) else "")


def privacy_statement(contract: Contract, facts: Facts) -> dict[str, Any]:
    """The content of privacy.json: what is promised to whom, by which mechanism, and what is not.

    Without a budget it says that there is no privacy.
    """
    training, privacy = contract.training, contract.privacy
    mechanism = {
        "sampler": "Poisson",
        "sampling_rate": training.sampling_rate,
        "noise_multiplier": privacy.noise_multiplier,
        "clip_norm": privacy.clip_norm,
        "steps": training.steps,
        "rounds": facts.rounds,
        "size_classes": dict(privacy.size_classes),
    }
    if privacy.group_clip:
        mechanism["group_clip"] = dict(privacy.group_clip)
    evaluation: dict[str, Any] = {
        "noise_multiplier": contract.evaluation.noise_multiplier,
        "releases": len(_evaluated(contract, facts.rounds)),
    }
    if groups := contract.groups_at(facts.rounds):
        evaluation["last_by_groups"] = [f.name for f in groups]
    common = {
        "private": facts.epsilon is not None,
        "unit": "one user of one holder, who is one training example: the contract's record rule "
        "makes one record of all rows of a user",
        "epsilon": facts.epsilon,
        "holdout_epsilon": facts.holdout_epsilon,
        "mechanism": mechanism,
        "evaluation": evaluation,
        "contract_digest": contract.digest,
    }
    if contract.federated_fields:
        common["statistics"] = {
            "of": "training users by cell of a public grid, for the edges of these fields",
            "fields": [f.name for f in contract.federated_fields],
            "noise_multiplier": contract.statistics.noise_multiplier,
            "releases": 1,
        }
    if facts.epsilon is None:
        return {"statement": NO_PRIVACY, **common}
    return {
        "statement": promise(contract, facts),
        **common,
        "adjacency": "add or remove one such user",
        "delta": privacy.delta,
        "accountant": {
            "name": "dp-accounting: privacy loss distributions, an upper bound",
            "version": version("dp-accounting"),
        },
        "holders": [head_to_json(head) for head in facts.heads],
        "adversary": ADVERSARY,
        "excluded": list(EXCLUDED),
    }


def _checked_counts(contract: Contract, facts: Facts) -> NDArray[np.float64]:
    counts = np.array(facts.histogram, np.float64)
    columns = count_columns(contract, facts.rounds)
    if counts.shape[1] != columns:
        raise WireError(f"facts.histogram must have the contract's {columns} bins")
    return counts


def _evaluated(contract: Contract, rounds: int) -> list[int]:
    """Those of the first `rounds` rounds that the schedule evaluates."""
    due, last = contract.evaluation.due, contract.training.rounds
    return [round_ for round_ in range(1, rounds + 1) if due(round_, last)]


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise WireError(f"facts.{name} = {value!r}: must be {bound}")
