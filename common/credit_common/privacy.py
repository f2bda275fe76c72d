"""The mechanism plan: contract -> what a holder's trainer runs and what its ledger is charged.

One `MechanismPlan` is both, so that the two cannot drift apart. All of it is public: nothing in it
is computed from the number of a holder's users.
"""

import math
from dataclasses import dataclass

from credit_common.accountant import epsilon
from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.events import Event, FieldHistograms, Histogram, SampledGaussian

NO_PRIVACY = (
    "privacy.epsilon is absent: this federation has no privacy; "
    "it is refused unless --allow-no-privacy is given"
)
"""What client, server and simulation say when they refuse a contract without a budget."""


@dataclass(frozen=True, kw_only=True)
class MechanismPlan:
    """Everything that the trainer and the accountant share. Made by `mechanism_plan`.

    Attributes:
        sampling_rate: Poisson probability q of a user in a step.
        noise_multiplier: σ of a step's sum in units of clip_norm; 0 without privacy.
        clip_norm: L2 bound C of one user's gradient.
        steps: Local steps in one round.
        rounds: Number of rounds.
        expected_batch_size: q times the users of the size class, the public denominator.
        evaluation_noise_multiplier: σ of each histogram cell, in users; 0 without privacy.
        evaluations: Number of evaluations in the contract's schedule.
        evaluation_groups: Protected fields that the last of them counts by too; often none.
        epsilon: Budget, or None without privacy.
        delta: δ of the budget.
        group_clip: Group of weights -> L2 bound C_g of one user's gradient in it; empty for one
            bound C on the whole.
        statistics_noise_multiplier: σ of each cell's count of a field, in users; 0 without privacy.
        statistics_fields: Fields that are counted once before the first round; often none.

    Raises:
        PrivacyError: If ΣC_g² > C²: the noise, which is that of C, would be too little.
    """

    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    rounds: int
    expected_batch_size: float
    evaluation_noise_multiplier: float
    evaluations: int
    evaluation_groups: int = 0
    epsilon: float | None
    delta: float
    group_clip: tuple[tuple[str, float], ...] = ()
    statistics_noise_multiplier: float = 0.0
    statistics_fields: int = 0

    def __post_init__(self) -> None:
        squares, whole = sum(bound**2 for _, bound in self.group_clip), self.clip_norm**2
        if not squares <= whole * (1 + 1e-9):
            raise PrivacyError(
                f"privacy.group_clip = {dict(self.group_clip)}: the squares add up to "
                f"{squares:g}, must be at most privacy.clip_norm squared = {whole:g}"
            )

    @property
    def private(self) -> bool:
        """Whether there is a budget at all."""
        return self.epsilon is not None

    def round_event(self) -> SampledGaussian | None:
        """What one round of training spends; None without privacy."""
        return self._training(self.steps)

    def evaluation_event(self, groups: int = 0) -> Histogram | FieldHistograms | None:
        """What one evaluation that counts by `groups` fields too spends; None without privacy."""
        if not self.private:
            return None
        return counted_event(self.evaluation_noise_multiplier, groups)

    @property
    def grouped_evaluations(self) -> int:
        """Evaluations of the schedule that count by groups: the last one, or none."""
        return min(self.evaluation_groups, 1)

    def evaluation_events(self, plain: int, grouped: int) -> list[Event | None]:
        """What so many evaluations without and with groups spend; none for a negative number."""
        one: Event | None = self.evaluation_event()
        last: Event | None = self.evaluation_event(self.evaluation_groups)
        return [one] * plain + [last] * grouped

    def statistics_event(self) -> FieldHistograms | None:
        """What the statistics round spends; None without privacy or where no field is counted."""
        if not (self.private and self.statistics_fields):
            return None
        return FieldHistograms(
            noise_multiplier=self.statistics_noise_multiplier, fields=self.statistics_fields
        )

    def train_epsilon(self) -> float:
        """ε of a training user after statistics and all rounds; infinite without privacy."""
        whole, counted = self._training(self.steps * self.rounds), self.statistics_event()
        if whole is None:
            return math.inf
        return epsilon([whole] if counted is None else [whole, counted], self.delta)

    def holdout_epsilon(self) -> float:
        """ε of a hold-out user after all evaluations; infinite without privacy."""
        grouped = self.grouped_evaluations
        events = self.evaluation_events(self.evaluations - grouped, grouped)
        spent = [event for event in events if event is not None]
        return epsilon(spent, self.delta) if self.private else math.inf

    def _training(self, steps: int) -> SampledGaussian | None:
        if not self.private:
            return None
        return SampledGaussian(
            sampling_rate=self.sampling_rate, noise_multiplier=self.noise_multiplier, steps=steps
        )


def mechanism_plan(contract: Contract, size_class: str) -> MechanismPlan:
    """The plan of a holder of `size_class`. Two holders of one class have the same plan.

    Raises:
        ContractError: If the contract has no such size class.
        PrivacyError: If the bounds of privacy.group_clip pass privacy.clip_norm together.
    """
    training, privacy = contract.training, contract.privacy
    due = (contract.evaluation.due(r + 1, training.rounds) for r in range(training.rounds))
    return MechanismPlan(
        sampling_rate=training.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        steps=training.steps,
        rounds=training.rounds,
        expected_batch_size=training.sampling_rate * privacy.class_users(size_class),
        evaluation_noise_multiplier=contract.evaluation.noise_multiplier,
        evaluations=sum(due),
        evaluation_groups=len(contract.evaluation.groups),
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        group_clip=privacy.group_clip,
        statistics_noise_multiplier=contract.statistics.noise_multiplier,
        statistics_fields=len(contract.federated_fields),
    )


def counted_event(noise_multiplier: float, groups: int) -> Histogram | FieldHistograms:
    """What counts of hold-out users spend: one cell of the scores, and one of each of `groups`."""
    if groups:
        return FieldHistograms(noise_multiplier=noise_multiplier, fields=1 + groups)
    return Histogram(noise_multiplier=noise_multiplier)


def check_plan(plan: MechanismPlan) -> None:
    """Refuse a plan that could not be run to its end within its own budget.

    Raises:
        PrivacyError: Naming the ε of the whole schedule and the budget.
    """
    if plan.epsilon is None:
        return
    counted = plan.statistics_fields
    statistics = f" and the statistics of {counted} fields" if counted else ""
    groups = plan.evaluation_groups
    by_groups = f", the last by {groups} protected fields too," if groups else ""
    spends = {
        f"{plan.rounds} rounds of {plan.steps} steps{statistics}": plan.train_epsilon,
        f"{plan.evaluations} evaluations{by_groups}": plan.holdout_epsilon,
    }
    for what, spend in spends.items():
        if not spend() <= plan.epsilon:
            raise PrivacyError(
                f"{what} spend epsilon {spend():.3f} at delta {plan.delta:g}: "
                f"must be at most privacy.epsilon = {plan.epsilon:g}"
            )
