"""The single-step audit: what one noised step tells of one user, measured and held to the claim.

A canary whose gradient is ten times the clip norm takes part in a step of the real optimizer, or
does not. The adversary knows the canary, everybody else and the mean release without it, and asks
how far a release lies in the canary's direction. A step with noise multiplier σ promises that no
test is better than that of μ = 1/σ (Gaussian differential privacy, Dong, Roth and Su 2022): with
error rates α and β, Φ^-1(1 - α) - Φ^-1(β) <= μ. The audit counts the errors of thresholds that are
fixed beforehand, bounds their rates exactly, and so has a lower bound on μ. It finds a mechanism
that breaks its claim by much; that a mechanism passes proves nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom
from credit_common.privacy import MechanismPlan

CONFIDENCE = 1 - 1e-6
"""Probability with which each bound of the audit holds, whatever the mechanism."""
THRESHOLDS = (0.5, 1.5, 5.0)
"""Where the adversary draws the line, in clip norms above the mean release without the canary."""
_CANARY = 10.0  # norm of the canary's gradient, in clip norms
_CALIBRATION = 200  # releases that only place the thresholds
_SHAPES = ((5, 4), (12,), (2, 3, 4))

MakeOptimizer = Callable[[list[dict[str, Any]], MechanismPlan], NoisySumOptimizer]
"""Parameter groups as torch's optimizers take them, and a plan -> what steps at rate 1."""


@dataclass(frozen=True, kw_only=True)
class SingleStepAudit:
    """What the audit of one mechanism found.

    Attributes:
        claimed_mu: 1/σ of the plan.
        mu_lower: Lower bound on the μ of what the mechanism releases.
        deviation: Standard deviation of the noise that the plan promises, σC.
        deviation_upper: Upper bound on that of the noise itself.
        trials: Steps with the canary, and as many without.
        confidence: Probability with which each of the two bounds holds.
    """

    claimed_mu: float
    mu_lower: float
    deviation: float
    deviation_upper: float
    trials: int
    confidence: float

    @property
    def passed(self) -> bool:
        """Whether neither bound contradicts the plan."""
        return self.mu_lower <= self.claimed_mu and self.deviation <= self.deviation_upper


def noisy_sum(groups: list[dict[str, Any]], plan: MechanismPlan) -> NoisySumOptimizer:
    """The optimizer of a real run, on plain gradient descent at rate 1."""
    return NoisySumOptimizer(torch.optim.SGD(groups, lr=1.0), plan, SecureRandom())


def run_single_step(
    plan: MechanismPlan,
    make_optimizer: MakeOptimizer = noisy_sum,
    *,
    trials: int = 2000,
    canary_rows: int = 1,
    coordinates: int = 1_000_000,
) -> SingleStepAudit:
    """Audit a mechanism against its plan.

    Args:
        plan: Private; its clip norm, noise and denominator are what is claimed.
        make_optimizer: Called anew for every step, as a round makes its optimizer.
        trials: Steps with the canary, and as many without.
        canary_rows: Examples that the canary's user has; more than one breaks the unit of privacy.
        coordinates: Numbers of noise that the bound on its deviation is taken from. A million tell
            99% of the noise from all of it.
    """
    return SingleStepAudit(
        claimed_mu=1 / plan.noise_multiplier,
        mu_lower=canary_mu(plan, make_optimizer, trials=trials, canary_rows=canary_rows),
        deviation=plan.noise_multiplier * plan.clip_norm,
        deviation_upper=noise_deviation(plan, make_optimizer, coordinates=coordinates),
        trials=trials,
        confidence=CONFIDENCE,
    )


def canary_mu(
    plan: MechanismPlan,
    make_optimizer: MakeOptimizer = noisy_sum,
    *,
    trials: int = 2000,
    canary_rows: int = 1,
) -> float:
    """Lower bound on the μ of one step, from releases with and without the canary."""
    draw = torch.Generator().manual_seed(0)  # gradients that the adversary knows; never the noise
    width = sum(math.prod(shape) for shape in _shapes(plan))
    canary = torch.randn(width, generator=draw)
    canary /= canary.norm()
    others = plan.clip_norm * torch.randn((3, width), generator=draw)
    with_canary = torch.cat([others, (_CANARY * plan.clip_norm * canary).repeat(canary_rows, 1)])

    def far(rows: Tensor, times: int) -> NDArray[np.float64]:
        released = torch.stack([_release(plan, make_optimizer, rows) for _ in range(times)])
        return (released @ canary.double()).numpy() / plan.clip_norm

    centre = float(np.median(far(others, _CALIBRATION)))
    without, present = far(others, trials) - centre, far(with_canary, trials) - centre
    return mu_lower_bound(without, present, THRESHOLDS)


def noise_deviation(
    plan: MechanismPlan,
    make_optimizer: MakeOptimizer = noisy_sum,
    *,
    coordinates: int = 1_000_000,
) -> float:
    """Upper bound on the deviation of the noise of one step without examples.

    For X the sum of n squared standard Gaussians, P(X <= n - 2 sqrt(n x)) <= exp(-x) (Laurent and
    Massart 2000, lemma 1).
    """
    parameter = nn.Parameter(torch.zeros(coordinates))
    optimizer = make_optimizer([{"params": [parameter], "group": _groups(plan)[0]}], plan)
    optimizer.zero_grad()
    optimizer.step()
    noise = parameter.detach().double() * plan.expected_batch_size
    smallest = coordinates - 2 * math.sqrt(coordinates * -math.log(1 - CONFIDENCE))
    return math.sqrt(float(noise.square().sum()) / smallest)


def mu_lower_bound(
    without: NDArray[np.float64],
    present: NDArray[np.float64],
    thresholds: Sequence[float],
    confidence: float = CONFIDENCE,
) -> float:
    """Lower bound on μ from a statistic without and with the canary; 0 where nothing is known.

    Both error rates of each threshold are bounded from above by Clopper and Pearson (1934), exact
    for any number of trials, and share the risk of a false bound equally.

    Args:
        without, present: Independent values of the statistic, larger with the canary.
        thresholds: Fixed without looking at these values.
        confidence: Probability with which the bound holds.
    """
    risk, normal, best = (1 - confidence) / (2 * len(thresholds)), NormalDist(), 0.0
    for threshold in thresholds:
        alpha = rate_upper_bound(int((without > threshold).sum()), len(without), risk)
        beta = rate_upper_bound(int((present <= threshold).sum()), len(present), risk)
        if alpha < 1 and beta < 1:
            best = max(best, normal.inv_cdf(1 - alpha) - normal.inv_cdf(beta))
    return best


def rate_upper_bound(errors: int, trials: int, risk: float) -> float:
    """Upper bound on the rate of errors, too low with probability at most `risk`.

    The rate at which so few errors have probability `risk` (Clopper and Pearson 1934).
    """
    if errors == trials:
        return 1.0
    counts = np.arange(errors + 1)
    ways = np.array([math.lgamma(k + 1) + math.lgamma(trials - k + 1) for k in counts])
    ways = math.lgamma(trials + 1) - ways
    low, high = errors / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        terms = ways + counts * math.log(rate) + (trials - counts) * math.log1p(-rate)
        low, high = (low, rate) if np.exp(terms).sum() <= risk else (rate, high)
    return high


def _release(plan: MechanismPlan, make_optimizer: MakeOptimizer, rows: Tensor) -> Tensor:
    """The noised sum of one step on per-example gradients `rows`, flat, float64."""
    names = _groups(plan)
    parameters: list[Any] = [nn.Parameter(torch.zeros(shape)) for shape in _shapes(plan)]
    groups = [{"params": [p], "group": names[i % len(names)]} for i, p in enumerate(parameters)]
    optimizer = make_optimizer(groups, plan)
    optimizer.zero_grad()
    parts = torch.split(rows, [p.numel() for p in parameters], dim=1)
    for p, part in zip(parameters, parts, strict=True):
        p.grad_sample = part.reshape(len(rows), *p.shape)
    optimizer.accumulate()
    optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in parameters]).double()
    return -moved * plan.expected_batch_size


def _shapes(plan: MechanismPlan) -> tuple[tuple[int, ...], ...]:
    return _SHAPES[: max(2, len(plan.group_clip))]  # a tensor for each group that is clipped


def _groups(plan: MechanismPlan) -> tuple[str, ...]:
    return tuple(name for name, _ in plan.group_clip) or ("",)
