"""Per-sample gradients of every trained tensor, filled in where Opacus' optimizer looks for them.

LoRA's weights are small, its activations are not. So no weight's gradient is asked of autograd:
one backward pass gives the gradient of each projection's output, and the per-sample gradients are
outer products of that with the projection's input, summed over positions. With
y = W x + s B A x: dB = s dy (A x)^T and dA = s (B^T dy) x^T. Opacus' hooks do the same for every
Linear, at the price of the redundant weight gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from credit_client.training.examples import Batch
from credit_common.model import CreditModel, Tap

Losses = Callable[[Tensor, Tensor], Tensor]


def fill_grad_samples(
    model: CreditModel, batch: Batch, losses: Losses, *, also: tuple[Tensor, ...] = ()
) -> tuple[Tensor, ...]:
    """Set `grad_sample` (rows, *shape) of each trained tensor, float32.

    Rows of weight zero get gradients of exactly zero, unless they repeat a row that is not finite.

    Args:
        model: In its current state.
        batch: One physical batch.
        losses: Scores (n, outputs) and labels (n,) -> loss of each row (n,).
        also: Inputs of the batch that require a gradient.

    Returns:
        The gradient of the sum of the rows' losses by each tensor of `also`; rows are independent,
        so that each row of it is that row's own.
    """
    trained: dict[str, Any] = dict(model.trained())  # grad_sample is opacus' own attribute
    taps: list[Tap] = []
    with torch.enable_grad():
        cls = model.text_features(batch.hidden, batch.mask, taps) if model.reads_text else None
        scores = model.score(cls, batch.wide)
        loss = (losses(scores, batch.labels) * batch.weights).sum()
    inner = [scores, *(tap.out for tap in taps)]
    d_scores, *others = torch.autograd.grad(loss, [*inner, *also])
    d_outs, d_also = others[: len(taps)], others[len(taps) :]
    with torch.no_grad():
        if "head.weight" in trained:
            assert cls is not None
            trained["head.weight"].grad_sample = torch.einsum("no,nx->nox", d_scores, cls.float())
            if "head.bias" in trained:
                trained["head.bias"].grad_sample = d_scores
        if "wide.weight" in trained:
            assert batch.wide is not None
            trained["wide.weight"].grad_sample = torch.einsum("no,nx->nox", d_scores, batch.wide)
        for tap, d_out in zip(taps, d_outs, strict=True):
            _lora(tap, d_out.float())
    return tuple(d_also)


def summed_gradients(model: CreditModel, batch: Batch, losses: Losses) -> tuple[Tensor, ...]:
    """The ordinary gradient of the batch's summed loss by each trained tensor, for runs without DP.

    Rows are not told apart, so that nothing can be clipped. Rows of weight zero add nothing.
    """
    with torch.enable_grad():
        scores = model(batch.hidden, batch.mask, batch.wide)
        loss = (losses(scores, batch.labels) * batch.weights).sum()
        return torch.autograd.grad(loss, [p for _, p in model.trained()])


def _lora(tap: Tap, d_out: Tensor) -> None:
    n, rank = len(d_out), tap.A.shape[0]
    d_out = d_out.reshape(n, tap.x.shape[1], -1) * tap.scale
    low, x = tap.low.float(), tap.x.float()
    if tap.headwise:  # a head's outputs meet only that head's rows of B
        heads, size = d_out.shape[1:]
        d_low = torch.einsum("nhd,hdr->nhr", d_out, tap.B.view(heads, size, rank))
        d_B = (d_out[..., None] * low[:, :, None, :]).reshape(n, heads * size, rank)
    else:
        d_low = d_out @ tap.B
        d_B = d_out.transpose(1, 2) @ low
    A: Any = tap.A
    B: Any = tap.B
    if B.requires_grad:
        B.grad_sample = d_B
    if A.requires_grad:
        A.grad_sample = d_low.transpose(1, 2) @ x
