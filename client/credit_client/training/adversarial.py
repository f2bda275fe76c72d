"""Adversarial training of one user's row at a time (FGM: Miyato, Dai and Goodfellow 2017).

What the trained layers read of a text is moved by a fixed length along the gradient of that row's
own loss. Nothing of the step is shared in a batch (privacy specification, row 10): the length is
measured on the row's own tokens, the direction normalised over the row alone. The gradients of the
text and of its moved copy are averaged for each user, and the optimizer clips that mean, once.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from credit_client.training.examples import Batch
from credit_client.training.gradients import Losses, fill_grad_samples
from credit_common.model import CreditModel


def fill_adversarial(model: CreditModel, batch: Batch, losses: Losses, radius: float) -> None:
    """Set `grad_sample` of each trained tensor to the mean of the text's and its moved copy's.

    Rows of weight zero are not moved, and get gradients of exactly zero.

    Args:
        model: In its current state; it reads text.
        batch: One physical batch.
        losses: Scores (n, outputs) and labels (n,) -> loss of each row (n,).
        radius: Length of the move over the mean norm of the row's tokens.
    """
    assert batch.hidden is not None
    assert batch.mask is not None
    hidden = batch.hidden.detach().requires_grad_()
    clean_batch = dataclasses.replace(batch, hidden=hidden)
    (ascent,) = fill_grad_samples(model, clean_batch, losses, also=(hidden,))
    trained: list[Any] = [p for _, p in model.trained()]  # grad_sample is opacus' own attribute
    clean = [p.grad_sample for p in trained]
    moved = batch.hidden + row_moves(ascent, batch.hidden, batch.mask, radius)
    fill_grad_samples(model, dataclasses.replace(batch, hidden=moved), losses)
    for p, of_text in zip(trained, clean, strict=True):
        p.grad_sample = (of_text + p.grad_sample) / 2


def row_moves(ascent: Tensor, hidden: Tensor, mask: Tensor, radius: float) -> Tensor:
    """Each row's move: radius * (mean norm of its tokens) * gradient / |gradient|.

    Args:
        ascent: (n, length, hidden), gradient of each row's own loss.
        hidden: (n, length, hidden), what is moved.
        mask: (n, tokens) bool, False at padding; of another length where only [CLS] is kept.
        radius: Length of the move over the mean norm of the row's tokens.

    Returns:
        (n, length, hidden); zero where the gradient is.
    """
    own = mask[:, : hidden.shape[1]].float()  # [CLS] comes first
    scale = (hidden.norm(dim=2) * own).sum(1) / own.sum(1)
    largest = ascent.abs().amax((1, 2)).clamp_min(torch.finfo(ascent.dtype).tiny)
    direction = ascent / largest[:, None, None]  # so that no square underflows
    norm = direction.flatten(1).norm(dim=1).clamp_min(1.0)
    moves: Tensor = direction * (radius * scale / norm)[:, None, None]
    return moves
