"""One round of local training under the contract's plan, and scoring."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from credit_client.training.adversarial import fill_adversarial
from credit_client.training.examples import Batch, Examples
from credit_client.training.gradients import Losses, fill_grad_samples, summed_gradients
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import RandomSource, SecureRandom, poisson_sample
from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.model import Arrays, CreditModel
from credit_common.privacy import MechanismPlan

Fill = Callable[[CreditModel, Batch, Losses], object]
"""Sets `grad_sample` of each trained tensor for one physical batch, as `fill_grad_samples` does."""


def train(
    model: CreditModel,
    examples: Examples,
    plan: MechanismPlan,
    adapter: Arrays,
    *,
    sampling: RandomSource,
    noise: RandomSource,
    fill: Fill | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The adapter after `plan.steps` noised steps from `adapter`.

    Args:
        model: The resident model; its trained tensors are overwritten.
        examples: The holder's training users, one example each.
        plan: Sampling rate, clip norm, noise, steps and the public denominator.
        adapter: The round's global adapter.
        sampling: Draws each step's Poisson batch.
        noise: Draws each step's noise.
        fill: Instead of the contract's way to fill `grad_sample`, for audits in simulation. A
            holder passes none, and nothing that a contract or a message says can set it.

    Raises:
        PrivacyError: If the plan is private and a source is not a SecureRandom, or noise does not
            move a tensor.
        WireError: If the adapter does not fit the model.
    """
    if plan.private and not (
        isinstance(sampling, SecureRandom) and isinstance(noise, SecureRandom)
    ):
        raise PrivacyError("a private plan takes its sampling and noise from SecureRandom alone")
    model.load_adapter(adapter)
    if plan.private:
        _check_moves(model, plan)
        model.load_adapter(adapter)
    optimizer = NoisySumOptimizer(_optimizer(model), plan, noise)
    row_losses = partial(losses, model.contract)
    radius = model.contract.training.adversarial
    told_apart = plan.private or radius > 0 or fill is not None
    if fill is None:
        fill = partial(fill_adversarial, radius=radius) if radius else fill_grad_samples
    for _ in range(plan.steps):
        optimizer.zero_grad()
        rows = poisson_sample(sampling, len(examples), plan.sampling_rate)
        for batch in examples.batches(rows, plan.expected_batch_size):
            if not told_apart:
                sums = summed_gradients(model, batch, row_losses)
                if all(bool(torch.isfinite(total).all()) for total in sums):
                    optimizer.accumulate_sums(sums)
                    continue
            fill(model, batch, row_losses)  # also where a row without a gradient must be left out
            optimizer.accumulate()
        optimizer.step()
    optimizer.zero_grad()
    return model.adapter()


@torch.no_grad()
def score(model: CreditModel, examples: Examples, adapter: Arrays) -> NDArray[np.float32]:
    """Raw scores (logits, or the scaled target) of every example, (n, outputs)."""
    model.load_adapter(adapter)
    out = np.zeros((len(examples), model.contract.task.outputs), np.float32)
    for batch in examples.batches(np.arange(len(examples))):
        scores = model(batch.hidden, batch.mask, batch.wide)
        out[batch.rows] = scores[: len(batch.rows)].cpu().numpy()
    return out


def losses(contract: Contract, scores: Tensor, labels: Tensor) -> Tensor:
    """Loss of each row: log loss (binary, multi-class) or half the squared error (regression).

    Each row's loss depends on that row alone, so a user's gradient is one row's gradient.
    """
    if contract.task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(scores[:, 0], labels, reduction="none")
    if contract.task.kind == "multiclass":
        return functional.cross_entropy(scores, labels.long(), reduction="none")
    return 0.5 * (scores[:, 0] - labels).square()


def _check_moves(model: CreditModel, plan: MechanismPlan) -> None:
    """Refuse a round that could not move some tensor: noised steps without data must move each.

    It is tried before the data is touched. A refusal afterwards would show the server something of
    a release that is not charged, as often as it asks, at values of its own choice.
    """
    still = {name: (p, p.detach().clone()) for name, p in model.trained()}
    optimizer = NoisySumOptimizer(_optimizer(model), plan, SecureRandom())
    for _ in range(3):  # rounding may keep a tensor of one number where it is, but not every time
        optimizer.zero_grad()
        optimizer.step()
        still = {name: pair for name, pair in still.items() if torch.equal(*pair)}
        if not still:
            break
    optimizer.zero_grad()
    if still:
        raise PrivacyError(f"noised steps do not move {min(still)}")


def _optimizer(model: CreditModel) -> torch.optim.Optimizer:
    training = model.contract.training
    groups = []
    for name, parameter in model.trained():
        group = name.split(".")[0]
        decay = 0.0 if group == "lora" else training.weight_decay
        rate = getattr(training.learning_rate, group)
        groups.append({"params": [parameter], "lr": rate, "weight_decay": decay, "group": group})
    if training.optimizer == "adam":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=training.momentum)
