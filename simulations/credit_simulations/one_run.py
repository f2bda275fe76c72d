"""The one-run audit (Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run").

Each of m canaries takes part in one training run or not, by a coin of its own. The auditor looks at
what the run released and guesses some of the coins. Under (ε, δ)-DP there is a bound on how many
guesses can be right, so many right ones refute a claimed ε, at a confidence that is known.

A canary is a per-sample gradient far above the clip norm in a direction of its own. It exists in
simulation only: it enters through `train`'s `fill`, which no holder passes.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from credit_client.training.examples import Batch
from credit_client.training.gradients import Losses, fill_grad_samples
from credit_client.training.randomness import SecureRandom
from credit_common.errors import CreditError
from credit_common.model import CreditModel
from credit_common.privacy import MechanismPlan
from credit_simulations.audited import (
    CanaryBatch,
    Cohort,
    Subject,
    coins,
    coordinates,
    rounds,
)

CONFIDENCE = 0.95
NORM = 10.0
"""A canary's gradient, in units of the clip norm: clipping has to do something."""
GUESSED = 1 / 4
"""Share of the canaries that the auditor guesses, half as in and half as out; the others it passes.
Fixed before the run: a share chosen by what comes out would need a correction of its own."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What the auditor was able to tell.

    Attributes:
        canaries: m, the coins that were thrown.
        made: r, the guesses.
        right: v, those that were right.
    """

    canaries: int
    made: int
    right: int

    def lower_bound(self, delta: float, confidence: float = CONFIDENCE) -> float:
        """The largest ε that the guesses refute at this confidence, 0 if they refute none.

        The bound grows with the number of right guesses, so that it passes the true ε with a
        probability of at most 1 - confidence.
        """
        level = 1 - confidence
        low, high = 0.0, 1.0
        if self.p_value(0.0, delta) >= level:
            return 0.0
        while self.p_value(high, delta) < level:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            if self.p_value(middle, delta) < level:
                low = middle
            else:
                high = middle
        return low

    def p_value(self, epsilon: float, delta: float) -> float:
        """Chance of at least this many right guesses under (ε, δ)-DP, an upper bound.

        Theorem 5.2 of the paper, as evaluated in its appendix D: with W binomial of r trials at
        e^ε/(1 + e^ε), it is P[W >= v] + 2 m δ max over i of P[v - i <= W < v] / i.
        """
        from scipy.stats import binom

        accuracy = 1 / (1 + math.exp(-epsilon))
        tail = float(binom.sf(self.right - 1, self.made, accuracy))
        if self.right == 0:
            return 1.0
        steps = np.arange(1, self.right + 1)
        below = np.cumsum(binom.pmf(self.right - steps, self.made, accuracy))
        return min(1.0, tail + 2 * self.canaries * delta * float(np.max(below / steps)))


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> Guesses:
    """Take the highest scores for in and the lowest for out, as many of each.

    Args:
        scores: (m,), higher where the auditor takes a canary for in.
        included: (m,), the coins.
    """
    half = int(len(scores) * GUESSED / 2)
    order = np.argsort(scores, kind="stable")
    right = np.sum(~included[order[:half]]) + np.sum(included[order[len(order) - half :]])
    return Guesses(canaries=len(scores), made=2 * half, right=int(right))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How an audited run differs from what its claim was computed for.

    Attributes:
        changed: The plan that the trainer is given -> the one that it runs.
        rows: Rows of one canary, each of which is sampled and clipped by itself.
        noise: Makes the source of each round's noise.
        known_noise: Whether the auditor can draw that noise too.
    """

    changed: Callable[[MechanismPlan], MechanismPlan] = lambda plan: plan
    rows: int = 1
    noise: Callable[[], SecureRandom] = SecureRandom
    known_noise: bool = False


class FixedKey(SecureRandom):
    """The broken source: the secure stream under a key that everybody knows."""

    def _rekey(self) -> None:
        super()._rekey()
        self._stream = Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), mode=None).encryptor()


def _without_noise(plan: MechanismPlan) -> MechanismPlan:
    # Next to none: a round without any is refused before it begins.
    return dataclasses.replace(plan, noise_multiplier=1e-3)


def _without_clip(plan: MechanismPlan) -> MechanismPlan:
    far = 1000.0  # a bound that nothing reaches, and the same noise
    return dataclasses.replace(
        plan,
        clip_norm=far * plan.clip_norm,
        noise_multiplier=plan.noise_multiplier / far,
    )


SOUND = Variant()
BROKEN = {
    "no noise": Variant(changed=_without_noise),
    "fixed seed": Variant(noise=FixedKey, known_noise=True),
    "no clip": Variant(changed=_without_clip),
    "five rows a user": Variant(rows=5),
}


def canary_run(
    subject: Subject, claim: float | None, canaries: int, variant: Variant = SOUND
) -> Guesses:
    """Train once with all users and the canaries whose coin says so, and guess the coins.

    Args:
        claim: ε that the run claims; None for none.
        canaries: m.

    Raises:
        CreditError: If the model has fewer directions than there are canaries.
    """
    model, plan = subject.model, subject.plan(claim)
    run = variant.changed(plan)
    at, signs = directions(model, canaries)
    included = coins(canaries)
    cohort = Cohort(
        subject.users,
        np.arange(len(subject.users)),
        np.repeat(np.flatnonzero(included), variant.rows),
    )
    fill = partial(fill_with_canaries, at, signs * NORM * plan.clip_norm)
    scores = np.zeros(canaries)
    for seen in rounds(subject, run, cohort, noise=variant.noise, fill=fill):
        sums = seen.sums
        if variant.known_noise:
            sums = sums - noise_of_round(model, run, variant.noise())
        scores += signs * sums[at]
    return guess(scores, included)


def directions(model: CreditModel, canaries: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """A direction for each canary: a number of the adapter of its own, and a sign.

    They are taken among LoRA's A, as long as that has enough: while B is near zero, the users' own
    gradients are small there, so that they hide a canary least.

    Raises:
        CreditError: If the adapter has fewer numbers than there are canaries.
    """
    places = coordinates(model, "lora.", ".A")
    if len(places) < canaries:
        places = coordinates(model)
    if len(places) < canaries:
        raise CreditError(f"{canaries} canaries: the adapter has only {len(places)} directions")
    chosen = np.argsort(SecureRandom().uniform(len(places)))[:canaries]
    return places[chosen], np.where(coins(canaries), 1.0, -1.0)


def fill_with_canaries(
    at: NDArray[np.intp],
    height: NDArray[np.float64],
    model: CreditModel,
    batch: Batch,
    losses: Losses,
) -> None:
    """`fill_grad_samples`, but in a canary's row stands its own gradient.

    Args:
        at: (m,), place of each canary in the flat adapter.
        height: (m,), its gradient there; it is zero elsewhere.
        model, batch, losses: As for `fill_grad_samples`.
    """
    if not isinstance(batch, CanaryBatch):
        fill_grad_samples(model, batch, losses)
        return
    start = 0
    for _, parameter in model.trained():
        flat = torch.zeros(len(batch.weights), parameter.numel(), device=parameter.device)
        here = at[batch.canaries] - start
        (rows,) = np.nonzero((here >= 0) & (here < parameter.numel()))
        heights = torch.from_numpy(height[batch.canaries[rows]]).to(flat)
        flat[torch.from_numpy(rows), torch.from_numpy(here[rows])] = heights
        parameter.grad_sample = flat.view(-1, *parameter.shape)  # type: ignore[attr-defined]
        start += parameter.numel()


def noise_of_round(
    model: CreditModel, plan: MechanismPlan, source: SecureRandom
) -> NDArray[np.float64]:
    """The noise that a round adds to its sums, drawn as the optimizer draws it: flat float64."""
    sizes = [parameter.numel() for _, parameter in model.trained()]
    total = np.zeros(sum(sizes))
    for _ in range(plan.steps):
        total += np.concatenate([source.normal(size) for size in sizes])
    return total * (plan.noise_multiplier * plan.clip_norm)
