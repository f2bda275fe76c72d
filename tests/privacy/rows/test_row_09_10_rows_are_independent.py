"""Rows 9 and 10: no layer and no adversarial step mixes rows.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from credit_client.training.adversarial import fill_adversarial
from credit_client.training.examples import Batch
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom
from credit_client.training.shapes import MOST_ROWS


def ours(parameters, plan, noise=None):
    return NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), plan, noise or SecureRandom())


def text_batch(model, seed=0, rows=MOST_ROWS, length=16):
    draw = torch.Generator().manual_seed(seed)
    own = torch.randint(2, length + 1, (rows, 1), generator=draw)
    return Batch(
        rows=np.arange(rows),
        hidden=torch.randn((rows, length, model.hidden), generator=draw),
        mask=torch.arange(length)[None] < own,
        wide=torch.rand((rows, model.wide.in_features), generator=draw) / 8,
        labels=torch.randint(0, 2, (rows,), generator=draw).float(),
        weights=torch.ones(rows),
    )


PARTS = ("hidden", "mask", "wide", "labels", "weights")


def row_of(batch, row):
    cut = {name: getattr(batch, name)[row : row + 1] for name in PARTS}
    return Batch(rows=np.arange(1), **cut)


def beside(batch, others):
    """The first row of one batch with the other rows of another."""
    mixed = {n: torch.cat([getattr(batch, n)[:1], getattr(others, n)[1:]]) for n in PARTS}
    return Batch(rows=batch.rows, **mixed)


def filled(model, batch, fill=fill_grad_samples):
    """Name -> per-sample gradients, (rows, *shape)."""
    fill(model, batch, partial(losses, model.contract))
    out = {}
    for name, p in model.trained():
        out[name], p.grad_sample = p.grad_sample, None
    return out


def loss_of(model, batch, hidden):
    scores = model.score(model.text_features(hidden, batch.mask), batch.wide)
    return losses(model.contract, scores, batch.labels).sum()


def by_autograd(model, batch):
    """Gradients of a batch of one."""
    trained = dict(model.trained())
    grads = torch.autograd.grad(loss_of(model, batch, batch.hidden), list(trained.values()))
    return dict(zip(trained, grads, strict=True))


def check_rows_are_independent(model, gradients, alone):
    """Row 0 among any companions, and each row against a batch of one, for every tensor."""
    batch, strangers, huge = (text_batch(model, seed) for seed in (0, 1, 2))
    huge.hidden.mul_(100)
    mine = gradients(model, batch)
    assert set(mine) == set(model.schema())
    for others in (strangers, huge):
        mixed = gradients(model, beside(batch, others))
        for name, grad in mine.items():
            gap = (mixed[name][0] - grad[0]).norm() / grad[0].norm()
            assert gap < 1e-5, f"{name} knows its companions"
    for row in (0, 1, MOST_ROWS - 1):
        for name, exact in alone(model, row_of(batch, row)).items():
            assert exact.norm() > 0
            assert (mine[name][row] - exact).norm() < 1e-5 * exact.norm(), name


@pytest.mark.parametrize("layers", [1, 3])
def test_row_09_a_rows_gradient_is_that_of_a_batch_of_one(shop, shaken, layers):
    model, *_ = shop(1, model={"layers": layers})
    model.load_adapter(shaken(model, scale=0.1))
    check_rows_are_independent(model, filled, by_autograd)


def test_row_09_catches_batch_norm_that_opacus_lets_pass(batch_norm_model, shaken):
    from opacus.validators import ModuleValidator

    model, norm = batch_norm_model
    assert not ModuleValidator.validate(norm, strict=False)
    model.load_adapter(shaken(model, scale=0.1))
    with pytest.raises(AssertionError, match="knows its companions"):
        check_rows_are_independent(model, filled, by_autograd)


RADIUS = 0.3


def adversarial_filled(model, batch):
    return filled(model, batch, partial(fill_adversarial, radius=RADIUS))


def adversarial_by_autograd(model, batch):
    """The mean of both gradients of a batch of one, written out."""
    hidden = batch.hidden.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(loss_of(model, batch, hidden), hidden)
    scale = batch.hidden[batch.mask].norm(dim=1).mean()
    moved = batch.hidden + RADIUS * scale * ascent / ascent.norm()
    trained = dict(model.trained())
    mean = (loss_of(model, batch, batch.hidden) + loss_of(model, batch, moved)) / 2
    return dict(zip(trained, torch.autograd.grad(mean, list(trained.values())), strict=True))


def check_a_perturbed_user_counts_once(add, model, plan):
    tight = dataclasses.replace(plan, clip_norm=0.01)
    optimizer = ours([p for _, p in model.trained()], tight)
    optimizer.zero_grad()
    add(optimizer, model, text_batch(model, rows=1), RADIUS)
    total = torch.cat([p.summed_grad.flatten() for _, p in model.trained()]).norm()
    optimizer.zero_grad()
    assert total > 0.0099
    assert total <= 0.01, "a user counts more than once"


def one_clip(optimizer, model, batch, radius):
    fill_adversarial(model, batch, partial(losses, model.contract), radius)
    optimizer.accumulate()


@pytest.mark.parametrize("layers", [1, 3])
def test_row_10_an_adversarial_step_is_each_rows_own_and_clipped_once(shop, shaken, layers):
    model, plan, _ = shop(1, model={"layers": layers})
    model.load_adapter(shaken(model, scale=0.1))
    check_rows_are_independent(model, adversarial_filled, adversarial_by_autograd)
    check_a_perturbed_user_counts_once(one_clip, model, plan)


@pytest.mark.usefixtures("coupled_moves")
def test_row_10_catches_a_step_normalised_over_the_batch(shop, shaken):
    model, *_ = shop(1)
    model.load_adapter(shaken(model, scale=0.1))
    with pytest.raises(AssertionError, match="knows its companions"):
        check_rows_are_independent(model, adversarial_filled, adversarial_by_autograd)


def test_row_10_catches_a_copy_clipped_on_its_own(shop, shaken, two_examples):
    model, plan, _ = shop(1)
    model.load_adapter(shaken(model, scale=0.1))
    with pytest.raises(AssertionError, match="more than once"):
        check_a_perturbed_user_counts_once(two_examples, model, plan)
