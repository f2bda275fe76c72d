"""How far an honest holder's adapter can move in one round, by public figures alone.

A group g of weights has dimension d, learning rate η, weight decay λ and clip norm C_g (all of C
where the contract has no group_clip). In each of T steps its gradient is

    g_t = (S_t + σ C z_t) / B,   ||S_t|| <= n_t C_g,   z_t ~ N(0, I_d),   B = q n

with the public batch B of the size class of n users, and n_t users in the batch.

SGD with momentum m (v = m v + g_t + λ w; w = w - η v) is linear in what it is fed, so that the
change is

    w_T - w_0 = (r - 1) w_0 - Σ_t a_t g_t

where r and a_t, found by running one number through the same steps, do not depend on any data.
S_t may depend on all noise before it; its norm may not. So

    ||w_T - w_0|| <= |r - 1| ||w_0|| + Σ|a_t| C_g max n_t / B + σ C / B sqrt(Σ a_t²) ||z||

with one Gaussian z, ||z|| <= sqrt(d) + sqrt(2 L) but for a chance of e^-L (the norm is 1-Lipschitz,
and its mean at most sqrt(d)). n_t is Binomial(N, q), and N is the holder's secret: it is held to be
at most `OVERSIZE` times what the size class stands for, so that n_t <= N, and by Bernstein's bound
n_t <= μ + L/3 + sqrt(L²/9 + 2 μ L), μ = q N, but for e^-L. A holder that has more users than that
is enrolled in the wrong class.

The least that it can move is the last step's noise: given all that came before, the change is a
fixed vector less η σ C / B z_T, whose squared norm is a non-central χ² and so at least as large,
in distribution, as the central one: ||z||² >= d - 2 sqrt(d L) but for e^-L (Laurent and Massart
2000). A holder whose answer has less noise than that did not run the mechanism. Small groups have
no floor.

Adam divides each coordinate by its own root mean square. By Cauchy and Schwarz step t moves it by
at most η k_t,

    k_t = (1 - b1) / (1 - b1^t) sqrt(Σ_{j<t} (b1²/b2)^j) sqrt((1 - b2^t) / (1 - b2))

(1 at first, 7.3 in the long run), whatever the gradients are, with privacy or without; decoupled
decay multiplies w by 1 - η λ before each step. It has no floor.

L is chosen so that all these chances of a round add up to `CHANCE` at most: an honest holder is set
aside with a probability below 1e-10 a round. Rounding in float32 and of what is sent (`upload`) has
its own allowance. SGD without privacy has no bound: nothing clips a gradient there. A multiple of
the round's median norm would be one, but to know it all answers must be there before the first is
summed; the mean streams, and the other aggregations do without.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from credit_common.contract import Contract
from credit_common.privacy import MechanismPlan
from credit_common.sections import Upload
from credit_common.upload import STEPS

CHANCE = 1e-10
"""Of setting an honest holder aside in one round."""
OVERSIZE = 4.0
"""Training users of a holder, at most, as a multiple of what its size class stands for."""
SLACK = 1e-4
"""Relative allowance for float32 arithmetic."""
_ULP = 2.0**-22
"""Rounding of a float32 weight in one step, twofold and relative to it."""
_BETAS = (0.9, 0.999)  # torch's, which the trainer leaves as they are

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Bounds of a group's change, as an L2 norm.

    Attributes:
        least: Of any honest holder (0 where there is no such bound).
        usual: With the very number of users of the size class in each batch, all of whose gradients
            are as long as they may be and point the same way, and noise of its expected norm.
            Robust aggregation shortens changes to it.
        most: Of any honest holder.
        drift: What is to be added to `usual` and `most`, in units of the norm that the group had
            before the round.
        rounding: What `least` may be short of, in the same units.
    """

    least: float
    usual: float
    most: float
    drift: float
    rounding: float

    def holds(self, change: float, before: float) -> bool:
        """Whether a change of this norm, from weights of that norm, can be honest; nan cannot."""
        return self.least - self.rounding * before <= change <= self.most + self.drift * before


def bounds(contract: Contract, plan: MechanismPlan, shapes: Shapes) -> dict[str, Bound]:
    """Group of weights -> bounds of its change in one round; empty where no bound follows.

    Args:
        contract: Sets optimizer, learning rates, decay and upload.
        plan: Of the holder's size class.
        shapes: Name -> shape of an adapter's arrays; arrays of no group are left out.
    """
    training = contract.training
    if training.optimizer == "sgd" and not plan.private:
        return {}
    found: dict[str, Bound] = {}
    for group in contract.model.train:
        own = {name: shape for name, shape in shapes.items() if name.split(".")[0] == group}
        if not own:
            continue
        size = sum(math.prod(shape) for shape in own.values())
        rate = getattr(training.learning_rate, group)
        decay = 0.0 if group == "lora" else training.weight_decay
        if training.optimizer == "adam":
            moved, drift = _adam(rate, decay, plan.steps)
            bound = (0.0, moved * math.sqrt(size), moved * math.sqrt(size), drift)
        else:
            clip = dict(plan.group_clip).get(group, plan.clip_norm)
            events = plan.steps + 2 * len(contract.model.train)
            bound = _sgd(
                plan, size, clip, rate, decay, training.momentum, math.log(events / CHANCE)
            )
        least, usual, most, drift = bound
        sent = max(_sent(training.upload, shape) for shape in own.values())
        rounding = plan.steps * _ULP
        found[group] = Bound(
            least=least * max(0.0, 1 - sent) * (1 - SLACK),
            usual=usual * (1 + sent) * (1 + SLACK),
            most=most * (1 + sent) * (1 + SLACK),
            drift=(drift + rounding) * (1 + sent) * (1 + SLACK),
            rounding=rounding,
        )
    return found


def _sgd(
    plan: MechanismPlan,
    size: int,
    clip: float,
    rate: float,
    decay: float,
    momentum: float,
    log_chance: float,
) -> tuple[float, float, float, float]:
    pulses = _answers(rate, decay, momentum, plan.steps)
    signal = clip * sum(map(abs, pulses))
    noise = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    spread = noise * math.sqrt(sum(a * a for a in pulses))
    expected = OVERSIZE * plan.expected_batch_size
    third = log_chance / 3
    batch = expected + third + math.sqrt(third**2 + 2 * expected * log_chance)
    batch = min(batch, expected / plan.sampling_rate)
    least = rate * noise * math.sqrt(max(0.0, size - 2 * math.sqrt(size * log_chance)))
    return (
        least,
        signal + spread * math.sqrt(size),
        signal * batch / plan.expected_batch_size
        + spread * (math.sqrt(size) + math.sqrt(2 * log_chance)),
        abs(_decayed(rate, decay, momentum, plan.steps) - 1),
    )


def _answers(rate: float, decay: float, momentum: float, steps: int) -> list[float]:
    """What a gradient of 1 in step t has moved the weight by after the last, for each t from T."""
    weight, velocity, moved = 0.0, 0.0, []
    for k in range(steps):
        velocity = momentum * velocity + (1.0 if k == 0 else 0.0) + decay * weight
        weight -= rate * velocity
        moved.append(weight)
    return moved


def _decayed(rate: float, decay: float, momentum: float, steps: int) -> float:
    """What is left of a weight of 1 without any gradient."""
    weight, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + decay * weight
        weight -= rate * velocity
    return weight


def _adam(rate: float, decay: float, steps: int) -> tuple[float, float]:
    """Most that a coordinate moves in a round, and what its own size adds to that."""
    first, second = _BETAS
    kept, moved = 1 - rate * decay, 0.0
    for t in range(1, steps + 1):
        ratio = first**2 / second
        warm = (1 - first) / (1 - first**t) * math.sqrt((1 - ratio**t) / (1 - ratio))
        step = warm * math.sqrt((1 - second**t) / (1 - second))
        moved = abs(kept) * moved + rate * step
    return moved, abs(kept**steps - 1)


def _sent(upload: Upload, shape: tuple[int, ...]) -> float:
    """Relative error of an array's change by the encoding that it is sent in, as an L2 norm.

    int8: each number is off by less than a 127th of the largest of its index, hence by less than a
    127th of the norm of all.
    """
    if upload == "float32":
        return 0.0
    if upload == "bfloat16":
        return 2.0**-8
    return math.sqrt(math.prod(shape) / min(shape)) / STEPS
