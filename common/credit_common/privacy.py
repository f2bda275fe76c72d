"""Mechanism plan -> events -> ε: the arithmetic of the privacy claim, without any state.

One `MechanismPlan` is what the trainer runs and what the accountant charges, so that the two cannot
drift apart. All of it is public: nothing in it is computed from the number of a holder's users.

ε is an upper bound by privacy loss distributions (Doroshenko et al. 2022, connect-the-dots, in
Google's dp-accounting), for the unit of one user of one holder. `epsilon` is under add/remove of
that user, `epsilon_replace_one` under a change of that user's record. Rényi accounting
(`epsilon_rdp`) is an independent, looser upper bound. GDP's limit theorem underestimates ε and is
not offered.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from credit_common.contract import Contract
from credit_common.errors import PrivacyError

# Losses are rounded up to this grid, so that a coarser one is still a bound. Against 1e-4 it is
# .00002 higher at q=.05, σ=1, T=600 (.004 at 100,000 steps) and 2.5 times faster.
LOSS_GRID = 2.5e-4
FAR_PAST_ANY_BUDGET = 100.0
SMALLEST_DELTA = 1e-12  # below, the rounding of the Fourier transforms would show
LEAST_NOISE, MOST_NOISE = 200, 1_000_000  # noise multipliers of a contract, in thousandths


@dataclass(frozen=True, kw_only=True, order=True)
class SampledGaussian:
    """Steps that release a sum over Poisson-sampled users, each clipped to C, plus N(0, σ² C²).

    Attributes:
        sampling_rate: Probability q in (0, 1] that a user takes part in a step.
        noise_multiplier: σ > 0.
        steps: Number of steps, at least 1.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        q = self.sampling_rate
        _require(_number(q) and 0 < q <= 1, "sampling_rate", q, "inside (0, 1]")
        _check_noise(self.noise_multiplier)
        _check_count("steps", self.steps)


@dataclass(frozen=True, kw_only=True, order=True)
class Histogram:
    """Counts with N(0, σ²) on each cell, where one user is in one cell (L2 sensitivity 1).

    Attributes:
        noise_multiplier: σ > 0, in users.
        releases: Number of histograms released, at least 1.
    """

    noise_multiplier: float
    releases: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        _check_count("releases", self.releases)


Event = SampledGaussian | Histogram
_KINDS: dict[str, type[Event]] = {"sampled_gaussian": SampledGaussian, "histogram": Histogram}


def event_to_json(event: Event) -> dict[str, Any]:
    """Plain JSON form of an event.

    Example:
        >>> event_to_json(Histogram(noise_multiplier=20.0))
        {'kind': 'histogram', 'noise_multiplier': 20.0, 'releases': 1}
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"kind": kind, **vars(event)}


def event_from_json(plain: object) -> Event:
    """The event of a JSON form; nothing may be missing, unknown or of another type.

    Raises:
        PrivacyError: Naming the key and the bound.
    """
    if not isinstance(plain, Mapping) or plain.get("kind") not in list(_KINDS):
        raise PrivacyError(f"a privacy event must be a table of kind {', '.join(_KINDS)}")
    cls = _KINDS[plain["kind"]]
    keys = {"kind", *cls.__dataclass_fields__}
    if set(plain) != keys:
        raise PrivacyError(f"a {plain['kind']} event must have the keys {', '.join(sorted(keys))}")
    return cls(**{name: value for name, value in plain.items() if name != "kind"})


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
        epsilon: Budget, or None without privacy.
        delta: δ of the budget.
    """

    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    rounds: int
    expected_batch_size: float
    evaluation_noise_multiplier: float
    evaluations: int
    epsilon: float | None
    delta: float

    @property
    def private(self) -> bool:
        """Whether there is a budget at all."""
        return self.epsilon is not None

    def round_event(self) -> SampledGaussian | None:
        """What one round of training spends; None without privacy."""
        return self._training(self.steps)

    def evaluation_event(self) -> Histogram | None:
        """What one evaluation spends; None without privacy."""
        if not self.private:
            return None
        return Histogram(noise_multiplier=self.evaluation_noise_multiplier)

    def train_epsilon(self) -> float:
        """ε of a training user after all rounds; infinite without privacy."""
        whole = self._training(self.steps * self.rounds)
        return math.inf if whole is None else epsilon([whole], self.delta)

    def holdout_epsilon(self) -> float:
        """ε of a hold-out user after all evaluations; infinite without privacy."""
        one = self.evaluation_event()
        return math.inf if one is None else epsilon([one] * self.evaluations, self.delta)

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
        epsilon=privacy.epsilon,
        delta=privacy.delta,
    )


def check_plan(plan: MechanismPlan) -> None:
    """Refuse a plan that could not be run to its end within its own budget.

    Raises:
        PrivacyError: Naming the ε of the whole schedule and the budget.
    """
    if plan.epsilon is None:
        return
    spends = {
        f"{plan.rounds} rounds of {plan.steps} steps": plan.train_epsilon,
        f"{plan.evaluations} evaluations": plan.holdout_epsilon,
    }
    for what, spend in spends.items():
        if not spend() <= plan.epsilon:
            raise PrivacyError(
                f"{what} spend epsilon {spend():.3f} at delta {plan.delta:g}: "
                f"must be at most privacy.epsilon = {plan.epsilon:g}"
            )


def epsilon(events: Iterable[Event], delta: float) -> float:
    """ε under add/remove of one user, an upper bound by privacy loss distributions.

    Args:
        events: What one user may have taken part in, in any order; none gives 0.
        delta: δ in [1e-12, 1).

    Raises:
        PrivacyError: If δ is out of its range.
    """
    return _spent(_merged(events), _checked_delta(delta), False)


def epsilon_replace_one(events: Iterable[Event], delta: float) -> float:
    """ε under a change of one user's record, otherwise as `epsilon`.

    Infinite where the add/remove ε is beyond 100.
    """
    return _spent(_merged(events), _checked_delta(delta), True)


def epsilon_rdp(events: Iterable[Event], delta: float) -> float:
    """Looser ε under add/remove by Rényi accounting (Mironov et al. 2019), for cross-checks."""
    return _rdp(_merged(events), _checked_delta(delta))


def solve_noise_multiplier(sampling_rate: float, steps: int, epsilon: float, delta: float) -> float:
    """Smallest noise multiplier for training steps to stay within a budget.

    Returns:
        σ to three decimals, rounded up, within [0.2, 1000] as in a contract.

    Raises:
        PrivacyError: If the budget is not positive, or not even σ = 1000 stays within it.
    """
    _require(_number(epsilon) and epsilon > 0, "epsilon", epsilon, "positive")

    def excess(thousandths: int) -> float:
        sigma = thousandths / 1000
        step = SampledGaussian(sampling_rate=sampling_rate, noise_multiplier=sigma, steps=steps)
        spent = _spent((step,), _checked_delta(delta), False)
        return math.log(max(spent, 1e-9) / epsilon)

    low, f_low = LEAST_NOISE, excess(LEAST_NOISE)
    high, f_high = MOST_NOISE, excess(MOST_NOISE)
    if f_low <= 0:
        return low / 1000
    if f_high > 0:
        raise PrivacyError(
            f"epsilon = {epsilon:g} at delta {delta:g}: no noise multiplier up to 1000 keeps "
            f"{steps} steps at sampling rate {sampling_rate:g} within it"
        )
    # ln ε is nearly straight in ln σ: false position there, with the Illinois rule (an end that
    # stays twice counts half) so that both ends close in.
    within: bool | None = None
    while high - low > 1:
        k = math.ceil(low * (high / low) ** (f_low / (f_low - f_high)))
        k = min(max(k, low + 1), high - 1)
        f = excess(k)
        stays = within is (f <= 0)
        within = f <= 0
        if within:
            high, f_high, f_low = k, f, f_low / 2 if stays else f_low
        else:
            low, f_low, f_high = k, f, f_high / 2 if stays else f_high
    return high / 1000


def _merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Equal mechanisms become one event; composition does not depend on their order."""
    sampled: Counter[tuple[float, float]] = Counter()
    counted: Counter[float] = Counter()
    for event in events:
        if isinstance(event, SampledGaussian):
            sampled[event.sampling_rate, event.noise_multiplier] += event.steps
        elif isinstance(event, Histogram):
            counted[event.noise_multiplier] += event.releases
        else:
            raise PrivacyError(f"{type(event).__name__} is not a privacy event")
    return (
        *(
            SampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=steps)
            for (q, sigma), steps in sorted(sampled.items())
        ),
        *(Histogram(noise_multiplier=sigma, releases=n) for sigma, n in sorted(counted.items())),
    )


# In a simulation many holders ask for the same history in every round, hence the caches: of the
# answers, and of the one-step distributions that take half of the time.
@lru_cache(maxsize=4096)
def _spent(events: tuple[Event, ...], delta: float, replace_one: bool) -> float:
    if not events:
        return 0.0
    bound = _rdp(events, delta)
    if bound > FAR_PAST_ANY_BUDGET:  # such distributions would fill the memory
        return math.inf if replace_one else bound
    total = None
    squared_mu = 0.0  # whole Gaussian releases compose exactly: their squared shifts add up
    for event in events:
        sigma = event.noise_multiplier
        if isinstance(event, Histogram):  # a changed record moves one user between two cells
            squared_mu += event.releases * (2 if replace_one else 1) / sigma**2
        elif event.sampling_rate == 1:
            squared_mu += event.steps * (4 if replace_one else 1) / sigma**2
        else:
            steps = _step_losses(event.sampling_rate, sigma, replace_one).self_compose(event.steps)
            total = steps if total is None else total.compose(steps)
    if squared_mu > 0:
        gaussian = _losses(1.0, 1 / math.sqrt(squared_mu), False)
        total = gaussian if total is None else total.compose(gaussian)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _step_losses(q: float, sigma: float, replace_one: bool) -> Any:
    return _losses(q, sigma, replace_one)


def _losses(q: float, sigma: float, replace_one: bool) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    relation = (
        NeighboringRelation.REPLACE_ONE if replace_one else NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    return from_gaussian_mechanism(
        sigma,
        sampling_prob=q,
        value_discretization_interval=LOSS_GRID,
        neighboring_relation=relation,
    )


def _rdp(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    from dp_accounting.rdp import compute_epsilon

    total: Any = 0.0
    for event in events:
        if isinstance(event, Histogram):
            orders, one = _step_rdp(1.0, event.noise_multiplier)
            total = total + event.releases * one
        else:
            orders, one = _step_rdp(event.sampling_rate, event.noise_multiplier)
            total = total + event.steps * one
    return float(compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=256)
def _step_rdp(q: float, sigma: float) -> tuple[Any, Any]:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    logging.getLogger("absl").addFilter(_not_about_orders)
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    # An order whose value has come out negative has lost its digits and bounds nothing.
    values = [value if value >= 0 else math.inf for value in accountant.rdp]
    return accountant.orders, np.array(values)


def _not_about_orders(record: logging.LogRecord) -> bool:
    """Leaving out an order that does not converge only loosens the bound: nothing to warn of."""
    return "_compute_log_a_frac" not in record.getMessage()


def _checked_delta(delta: float) -> float:
    ok = _number(delta) and SMALLEST_DELTA <= delta < 1
    _require(ok, "delta", delta, f"inside [{SMALLEST_DELTA:g}, 1)")
    return float(delta)


def _check_noise(sigma: float) -> None:
    _require(_number(sigma) and sigma > 0, "noise_multiplier", sigma, "positive and finite")


def _check_count(name: str, count: int) -> None:
    ok = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    _require(ok, name, count, "an integer of at least 1")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise PrivacyError(f"{name} = {value!r}: must be {bound}")
