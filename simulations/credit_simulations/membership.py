"""A membership attack on real users, by inverting the adapters that a holder sends.

Each user of the data set takes part or is held back, by a coin of its own. The attacker sees every
message and knows every user's record, as the claim allows, but not the coins. Around the adapter
that a round began with it knows the gradient that each user would add, and so asks which of them
together explain the sums that were released: a linear inverse problem. Because the coins are fair
and independent, users can be counted as canaries of the one-run audit, and the same theorem turns
the attacker's success into a lower bound on ε that holds for a single run.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_common.model import Arrays, CreditModel
from credit_common.privacy import MechanismPlan
from credit_simulations.audited import Cohort, Subject, coins, rounds
from credit_simulations.one_run import Guesses, guess

FALSE_ALARMS = 0.01
"""False positive rate at which the attack's true positive rate is told."""
_FLOOR = 1e-6  # what float32 leaves uncertain even without noise, by the mean squared gradient


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What a membership attack reached.

    Attributes:
        auc: Chance that a member scores above somebody held back; 0.5 is blind.
        tpr: Share of the members found where `FALSE_ALARMS` of the others are taken for members.
    """

    guesses: Guesses
    auc: float
    tpr: float


def attack(subject: Subject, claim: float | None) -> Attack:
    """Train once on a random half of the users, and say who they were.

    Args:
        claim: ε that the run claims; None for none.
    """
    plan, users = subject.plan(claim), subject.users
    member = coins(len(users))
    cohort = Cohort(users, np.flatnonzero(member), np.zeros(0, np.intp))
    scores = infer(subject, plan, cohort)
    auc, tpr = separation(scores, member)
    return Attack(guesses=guess(scores, member), auc=auc, tpr=tpr)


def infer(subject: Subject, plan: MechanismPlan, cohort: Cohort) -> NDArray[np.float64]:
    """Scores of all users: the best linear estimate of who is a member.

    The sums of a round are y = G^T k + noise of variance s², with row i of G user i's clipped
    gradient at the round's start, and k_i the number of the round's steps that user i was in. Of a
    member k is t = q times the steps on average, of others zero, and v is its mean variance around
    that. With K = G G^T, a round then knows t² K (v K + s²)^-1 about the coins, and says
    t (v K + s²)^-1 G (y - t G^T 1/2); a coin by itself has variance 1/4.
    """
    q, n = plan.sampling_rate, len(subject.users)
    often, spread = q * plan.steps, q * (1 - q) * plan.steps / 2
    deviation = plan.noise_multiplier * plan.clip_norm
    known, said = 4.0 * np.eye(n), np.zeros(n)
    for round_ in rounds(subject, plan, cohort):
        rows = gradients(subject, plan, round_.before).astype(np.float64)
        K = rows @ rows.T
        least = _FLOOR * spread * np.trace(K) / n
        uncertain = spread * K + (plan.steps * deviation**2 + least) * np.eye(n)
        surprise = rows @ round_.sums - K.sum(1) * (often / 2)
        solved = np.linalg.solve(uncertain, np.column_stack((K, surprise)))
        known += often**2 * solved[:, :n]
        said += often * solved[:, n]
    return np.asarray(np.linalg.solve(known, said), np.float64)


def gradients(subject: Subject, plan: MechanismPlan, adapter: Arrays) -> NDArray[np.float32]:
    """Each user's gradient at an adapter, clipped as the plan clips: (users, numbers)."""
    model, users = subject.model, subject.users
    model.load_adapter(adapter)
    size = sum(parameter.numel() for _, parameter in model.trained())
    rows = np.zeros((len(users), size), np.float32)
    for batch in users.batches(np.arange(len(users))):
        fill_grad_samples(model, batch, lambda scores, y: losses(model.contract, scores, y))
        rows[batch.rows] = _taken(model, len(batch.rows))
    if plan.private:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows *= np.minimum(1.0, plan.clip_norm / np.maximum(norms, 1e-30))
    return rows


def separation(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> tuple[float, float]:
    """AUC, and the true positive rate at a false positive rate of `FALSE_ALARMS`."""
    inside, outside = np.sort(scores[member]), np.sort(scores[~member])
    if not len(inside) or not len(outside):
        return 0.5, 0.0
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    allowed = int(FALSE_ALARMS * len(outside))
    threshold = outside[len(outside) - 1 - allowed]
    return float(below.mean() / (2 * len(outside))), float((inside > threshold).mean())


def _taken(model: CreditModel, n: int) -> NDArray[np.float32]:
    parts = []
    for _, parameter in model.trained():
        own: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]
        parts.append(own[:n].flatten(1).float().cpu().numpy())
        parameter.grad_sample = None  # type: ignore[attr-defined]
    return np.concatenate(parts, axis=1)
