"""`credit-sim audit`: attacks on the privacy claim, what each proves beside what is claimed.

An arm is sound or broken before it runs. A sound arm is the product's trainer with the noise that
its claim needs; a broken one claims the same and does something else. The audit fails if it proves
more than a sound arm claims, or does not prove that a broken arm breaks its claim. It cannot show
that a claim is true: a lower bound far under the claim is what little an attacker found.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from credit_client.training.optimizer import NoisySumOptimizer
from credit_common.accountant import epsilon
from credit_common.errors import CreditError
from credit_common.events import Histogram
from credit_common.privacy import MechanismPlan
from credit_simulations.audited import Schedule, Subject, open_subject
from credit_simulations.data import prepare
from credit_simulations.membership import attack
from credit_simulations.one_run import BROKEN, CONFIDENCE, SOUND, Variant, canary_run
from credit_simulations.packaged import packaged_contract
from credit_simulations.single_step import CONFIDENCE as SINGLE_STEP_CONFIDENCE
from credit_simulations.single_step import MakeOptimizer, canary_mu, noisy_sum

CLAIMS = (None, 8.0, 2.0, 1.0)
"""ε of the sound arms; None is ε = ∞, which claims nothing and so cannot be refuted."""
BROKEN_CLAIM = 2.0
USERS, SCHEDULE = 1000, Schedule(rounds=12, steps=3, sampling_rate=0.2)
QUICK_USERS, QUICK_SCHEDULE = 300, Schedule(rounds=4, steps=2, sampling_rate=0.5)
STEPS = 2000
"""Steps with the canary of the single-step audit, and as many without."""
LEAST_CANARIES = 600
"""With fewer, a broken arm may get away by chance."""

Kind = Literal["sound", "broken"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an attack proves.

    Attributes:
        lower_bound: ε that is refuted, at this confidence.
        canaries: How many canaries, or users, the attacker had to tell in from out.
        figures: More about the attack, by name.
    """

    lower_bound: float
    confidence: float
    canaries: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One attack on one variant, not yet run."""

    name: str
    kind: Kind
    claim: float | None
    run: Callable[[], Measured]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One attack, what is claimed, and what was proved."""

    name: str
    kind: Kind
    claimed_epsilon: float | None
    measured: Measured
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether the claim is refuted."""
        claim = self.claimed_epsilon
        return claim is not None and self.measured.lower_bound > claim

    @property
    def as_it_should(self) -> bool:
        """Whether a sound arm stands, or a broken one falls."""
        return self.caught == (self.kind == "broken")


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """All arms of an audit.

    Attributes:
        users: Real users in the runs.
        delta: δ of every claim and bound.
        command: Repeats the audit, with other randomness.
    """

    data: str
    users: int
    delta: float
    schedule: Schedule
    lines: tuple[Line, ...]
    seconds: float
    command: str

    def failures(self) -> list[str]:
        """One sentence for each arm that is not as it should be."""
        return [
            f"{line.name} ({line.kind}): lower bound {line.measured.lower_bound:.3f} "
            f"{'over' if line.caught else 'not over'} the claimed epsilon "
            f"{line.claimed_epsilon:g}"
            for line in self.lines
            if not line.as_it_should and line.claimed_epsilon is not None
        ]


def run_audit(
    data: str,
    *,
    canaries: int = 1000,
    quick: bool = False,
    stage: Callable[[str], None] = lambda words: None,
) -> AuditResult:
    """Attack every arm on a packaged data set.

    Args:
        data: Name of the data set; its first 1,000 users (300 if `quick`) by salted key.
        canaries: m of the one-run audits.
        stage: Called with a few words when a new part begins.

    Raises:
        CreditError: If there are too few or too many canaries, or the data set cannot be had.
    """
    start = time.perf_counter()
    if canaries < LEAST_CANARIES:
        raise CreditError(f"--canaries {canaries}: must be at least {LEAST_CANARIES}")
    stage(f"reading {data}")
    shard = prepare(data)
    contract = packaged_contract(data)
    schedule, users = (QUICK_SCHEDULE, QUICK_USERS) if quick else (SCHEDULE, USERS)
    subject = open_subject(contract, shard, schedule, users)
    lines = []
    for arm in arms(subject, canaries):
        stage(arm.name)
        began = time.perf_counter()
        measured = arm.run()
        lines.append(
            Line(
                name=arm.name,
                kind=arm.kind,
                claimed_epsilon=arm.claim,
                measured=measured,
                seconds=time.perf_counter() - began,
            )
        )
    return AuditResult(
        data=data,
        users=len(subject.users),
        delta=contract.privacy.delta,
        schedule=schedule,
        lines=tuple(lines),
        seconds=time.perf_counter() - start,
        command=f"credit-sim audit --data {data} --canaries {canaries}" + " --quick" * quick,
    )


def arms(subject: Subject, canaries: int) -> Iterator[Arm]:
    """All arms, in the order of the report."""
    yield from _single_step_arms(subject)
    yield from _one_run_arms(subject, canaries)
    yield from _membership_arms(subject)


def _single_step_arms(subject: Subject) -> Iterator[Arm]:
    """One step with noise multiplier 1 on all users, which claims μ = 1 of Gaussian DP.

    What is refuted is a μ. It is told as the ε that a Gaussian mechanism of that μ has, to stand
    beside the others; without the claim of Gaussian DP these trials would refute a smaller ε.
    """
    delta = subject.schedule.delta
    plan = _one_step(delta)
    claim = epsilon([Histogram(noise_multiplier=1.0)], delta)

    def half(groups: list[dict[str, Any]], plan: MechanismPlan) -> NoisySumOptimizer:
        return noisy_sum(groups, replace(plan, noise_multiplier=plan.noise_multiplier / 2))

    def run(make: MakeOptimizer, rows: int) -> Measured:
        mu = canary_mu(plan, make, trials=STEPS, canary_rows=rows)
        bound = epsilon([Histogram(noise_multiplier=1 / mu)], delta) if mu > 0 else 0.0
        return Measured(
            lower_bound=bound,
            confidence=SINGLE_STEP_CONFIDENCE,
            canaries=STEPS,
            figures={"mu": mu, "claimed_mu": 1.0},
        )

    variants: list[tuple[str, Kind, MakeOptimizer, int]] = [
        ("single step by mu", "sound", noisy_sum, 1),
        ("single step by mu, half noise", "broken", half, 1),
        ("single step by mu, three rows a user", "broken", noisy_sum, 3),
    ]
    for name, kind, make, rows in variants:
        yield Arm(name=name, kind=kind, claim=claim, run=partial(run, make, rows))


def _one_step(delta: float) -> MechanismPlan:
    return MechanismPlan(
        sampling_rate=1.0,
        noise_multiplier=1.0,
        clip_norm=1.0,
        steps=1,
        rounds=1,
        expected_batch_size=100.0,
        evaluation_noise_multiplier=1.0,
        evaluations=0,
        epsilon=50.0,
        delta=delta,
    )


def _one_run_arms(subject: Subject, canaries: int) -> Iterator[Arm]:
    def run(claim: float | None, variant: Variant) -> Measured:
        found = canary_run(subject, claim, canaries, variant)
        return Measured(
            lower_bound=found.lower_bound(subject.schedule.delta),
            confidence=CONFIDENCE,
            canaries=found.canaries,
            figures={"guesses": found.made, "right": found.right},
        )

    for claim in CLAIMS:
        name = f"one-run {_said(claim)}"
        yield Arm(name=name, kind="sound", claim=claim, run=partial(run, claim, SOUND))
    for name, variant in BROKEN.items():
        yield Arm(
            name=f"one-run {name}",
            kind="broken",
            claim=BROKEN_CLAIM,
            run=partial(run, BROKEN_CLAIM, variant),
        )


def _membership_arms(subject: Subject) -> Iterator[Arm]:
    def run(claim: float | None) -> Measured:
        found = attack(subject, claim)
        guesses = found.guesses
        return Measured(
            lower_bound=guesses.lower_bound(subject.schedule.delta),
            confidence=CONFIDENCE,
            canaries=guesses.canaries,
            figures={
                "guesses": guesses.made,
                "right": guesses.right,
                "auc": found.auc,
                "tpr_at_1_percent_fpr": found.tpr,
            },
        )

    for claim in CLAIMS:
        name = f"membership {_said(claim)}"
        yield Arm(name=name, kind="sound", claim=claim, run=partial(run, claim))


def _said(claim: float | None) -> str:
    return "eps=inf" if claim is None else f"eps={claim:g}"
