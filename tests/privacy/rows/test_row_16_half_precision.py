"""Row 16: bounds and shapes hold in every precision.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from credit_client.training.examples import Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom

C = 0.7  # of the plans of `plan_of`


def ours(parameters, plan, noise=None):
    return NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), plan, noise or SecureRandom())


def check_half_precision_is_bounded(make, plan):
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(11, 40)), nn.Parameter(torch.zeros(11))]
    for _ in range(200):
        optimizer = make(parameters, plan)
        optimizer.zero_grad()
        error, x = 10 * torch.randn((1, 11), generator=draw), torch.randn((1, 40), generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            parameters[0].grad_sample = error[:, :, None] @ x[:, None]
        assert parameters[0].grad_sample.dtype == torch.bfloat16
        parameters[1].grad_sample = error.bfloat16()
        optimizer.accumulate()
        total = torch.cat([p.summed_grad.double().flatten() for p in parameters])
        assert total.norm() > 0.98 * C
        assert total.norm() <= C, "a row passes the clip norm"


def filled(model, batch, fill=fill_grad_samples):
    """Name -> per-sample gradients, (rows, *shape)."""
    fill(model, batch, partial(losses, model.contract))
    out = {}
    for name, p in model.trained():
        out[name], p.grad_sample = p.grad_sample, None
    return out


def check_shapes_know_nobody_else(make_examples, model, records):
    """A row's gradients, bit by bit, among users with short texts and with long ones."""
    own, *others = records(60)
    others.sort(key=lambda record: len(record.values["note"] or ""))
    seen = []
    for companions in ([], others[:20], others[-20:]):
        examples = make_examples(model, model.contract, [own, *companions])
        for batch in examples.batches(np.arange(len(examples))):
            if 0 in batch.rows:
                grads = filled(model, batch)
                row = int(np.flatnonzero(batch.rows == 0)[0])
                seen.append({name: grad[row].numpy().tobytes() for name, grad in grads.items()})
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2], "a row knows its companions"


def test_row_16_norms_hold_and_shapes_are_fixed_in_every_precision(
    shop, shaken, records, plan_of, monkeypatch
):
    check_half_precision_is_bounded(ours, plan_of())
    model, *_ = shop(1, model={"layers": 3})
    model.load_adapter(shaken(model, scale=0.1))
    for bf16 in (False, True):
        monkeypatch.setattr(model, "bf16", bf16)
        check_shapes_know_nobody_else(Examples, model, records)


def test_row_16_catches_norms_in_half_precision(stock, plan_of):
    with pytest.raises(AssertionError, match="passes the clip"):
        check_half_precision_is_bounded(stock, plan_of())


@pytest.mark.parametrize("bf16", [False, True])
def test_row_16_catches_dynamic_padding(shop, shaken, records, dynamic_padding, monkeypatch, bf16):
    model, *_ = shop(1, model={"layers": 3})
    model.load_adapter(shaken(model, scale=0.1))
    monkeypatch.setattr(model, "bf16", bf16)
    with pytest.raises(AssertionError, match="knows its companions"):
        check_shapes_know_nobody_else(dynamic_padding, model, records)
