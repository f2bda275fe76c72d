"""A contract at another ε: the same schedule, with the noise that the budget needs."""

from dataclasses import replace
from functools import lru_cache

from credit_common.accountant import epsilon as spent
from credit_common.accountant import solve_noise_multiplier
from credit_common.contract import Contract
from credit_common.events import FieldHistograms
from credit_common.privacy import mechanism_plan

STATISTICS_SHARE = 0.1
"""Part of ε that federated edges may take by themselves; the steps get what is left."""


def at_epsilon(contract: Contract, epsilon: float | None) -> Contract:
    """The contract with another budget; its δ, schedule and settings stay.

    Steps, evaluations and federated edges get the least noise that stays within the budget, to
    three decimals, and never less than a contract may have.

    Args:
        contract: Any.
        epsilon: The budget; None for no DP.

    Raises:
        PrivacyError: If no noise keeps the schedule within the budget.
    """
    if epsilon is None:
        return contract.without_privacy()
    training, delta = contract.training, contract.privacy.delta
    plan = mechanism_plan(contract, contract.privacy.size_classes[0][0])
    others: tuple[FieldHistograms, ...] = ()
    statistics = contract.statistics
    if plan.statistics_fields:
        noise = _of_statistics(plan.statistics_fields, epsilon, delta)
        statistics = replace(statistics, noise_multiplier=noise)
        others = (FieldHistograms(noise_multiplier=noise, fields=plan.statistics_fields),)
    steps = _solved(
        training.sampling_rate, training.rounds * training.steps, epsilon, delta, others
    )
    return replace(
        contract,
        privacy=replace(contract.privacy, epsilon=epsilon, noise_multiplier=steps),
        evaluation=replace(
            contract.evaluation,
            # Squared sensitivities add up: counts by a group are one evaluation more.
            noise_multiplier=_solved(
                1.0, plan.evaluations + plan.evaluation_groups, epsilon, delta, ()
            ),
        ),
        statistics=statistics,
    )


def _of_statistics(fields: int, epsilon: float, delta: float) -> float:
    """Noise of the counts of federated edges, in users, to one decimal."""
    low, high = 2, 1 << 20  # tenths
    while high - low > 1:
        middle = (low + high) // 2
        one = FieldHistograms(noise_multiplier=middle / 10, fields=fields)
        within = spent([one], delta) <= STATISTICS_SHARE * epsilon
        low, high = (low, middle) if within else (middle, high)
    return high / 10


@lru_cache(maxsize=256)
def _solved(
    q: float, steps: int, epsilon: float, delta: float, others: tuple[FieldHistograms, ...]
) -> float:
    """Trials of one data set ask for the same ones."""
    return solve_noise_multiplier(q, steps, epsilon, delta, others)
