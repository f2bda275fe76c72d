"""Row 16: bounds and shapes hold in every precision.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from credit_client.training.examples import Batch, Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom
from credit_client.training.shapes import rows_of_reads, rows_of_texts
from credit_common.backbone import resolve_backbone
from credit_common.model import CreditModel
from credit_common.text import wide_width

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


def in_precision(model, bf16):
    """The same model anew, as a machine with or without units for bfloat16 makes it."""
    backbone = resolve_backbone(model.contract.model)
    return CreditModel(model.contract, backbone, "cpu", "bfloat16" if bf16 else "float32")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_row_16_norms_hold_and_shapes_are_fixed_in_every_precision(
    shop, shaken, records, plan_of, layers, bf16
):
    check_half_precision_is_bounded(ours, plan_of())
    model = in_precision(shop(1, model={"layers": layers})[0], bf16)
    model.load_adapter(shaken(model, scale=0.1))
    check_shapes_know_nobody_else(Examples, model, records)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("threads", [1, 2])
def test_row_16_a_rows_place_in_its_batch_moves_no_bit(shop, shaken, layers, bf16, threads):
    model = in_precision(shop(1, model={"layers": layers})[0], bf16)
    model.load_adapter(shaken(model, scale=0.1))
    draw = torch.Generator().manual_seed(0)
    torch.set_num_threads(threads)
    try:
        for length in (8, 16, 24, 40, 64):
            rows = rows_of_texts(length, "cpu", 64.0) if layers > 1 else rows_of_reads("cpu", 64.0)
            hidden = torch.randn((rows, length, model.hidden), generator=draw)
            own = torch.randint(2, length + 1, (rows, 1), generator=draw)
            wide = torch.rand((rows, wide_width(model.contract)), generator=draw) / 8
            labels = torch.randint(0, 2, (rows,), generator=draw).float()
            seen = []
            for shift in (0, 1, rows // 2):
                place = torch.roll(torch.arange(rows), shift)
                batch = Batch(
                    rows=np.arange(rows),
                    hidden=hidden[place],
                    mask=(torch.arange(length)[None] < own)[place],
                    wide=wide[place],
                    labels=labels[place],
                    weights=torch.ones(rows),
                )
                back = torch.argsort(place)
                seen.append({name: grad[back] for name, grad in filled(model, batch).items()})
            for other in seen[1:]:
                assert all(torch.equal(other[name], seen[0][name]) for name in other), length
    finally:
        torch.set_num_threads(1)


def test_row_16_catches_norms_in_half_precision(stock, plan_of):
    with pytest.raises(AssertionError, match="passes the clip"):
        check_half_precision_is_bounded(stock, plan_of())


@pytest.mark.parametrize("bf16", [False, True])
def test_row_16_catches_dynamic_padding(shop, shaken, records, dynamic_padding, monkeypatch, bf16):
    model, *_ = shop(1, model={"layers": 3})
    model.load_adapter(shaken(model, scale=0.1))
    monkeypatch.setattr(model, "bf16", bf16)  # with fused attention, which padding moves
    with pytest.raises(AssertionError, match="knows its companions"):
        check_shapes_know_nobody_else(dynamic_padding, model, records)
