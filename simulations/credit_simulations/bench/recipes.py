"""The peers: LoRA fine-tuning of BERT as a user would write it today, with and without Opacus.

transformers' BertForSequenceClassification, LoRA by peft on every layer with the classifier in
`modules_to_save`, texts padded to the longest of the set, the checkpoint's own dropout, float32,
every layer under autograd, Poisson batches by Opacus' PrivacyEngine. What makes that recipe fail
outright is mended as its documentation says: an empty Poisson batch is a step of noise alone, and
the accountant's q is 1 / len(loader).
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from credit_common.sections import Model

Mode = Literal["hooks", "ghost", "none"]
"""Opacus' per-sample gradients by hooks, its ghost clipping, or no privacy."""


class Recipe:
    """A model, its optimizer and its loader.

    Args:
        folder: Of the checkpoint.
        spec: Rank, scale, projections and longest text, as in the contract; all layers train.
        texts: One a training user.
        labels: (users,), 0 or 1.
        mode: How privacy is had.
        batch: Expected rows of a batch.
        noise_multiplier: Of a step, with a clip norm of 1.
        rate: AdamW's learning rate.
        physical: Rows of a physical batch, which are then sorted by length and padded to their own
            longest text; None for whole batches, padded to the longest of the set. Gradients are
            the same; the plain recipe does not do it.
        seed: Of initial weights, dropout, sampling and noise: the recipe's are torch's.
        device: Where it trains.
    """

    def __init__(
        self,
        folder: Path,
        spec: Model,
        texts: Sequence[str],
        labels: NDArray[np.float32],
        mode: Mode,
        *,
        batch: int = 64,
        noise_multiplier: float = 1.0,
        rate: float = 1e-3,
        physical: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoTokenizer, BertForSequenceClassification
        from transformers.utils import logging

        logging.set_verbosity_error()  # its load report lists the new classifier
        logging.disable_progress_bar()
        torch.manual_seed(seed)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._longest = spec.tokens
        self._physical = physical
        self._mode = mode
        self._device = torch.device(device)
        ids, mask = self._padded(texts)
        with _quietly():
            bert = BertForSequenceClassification.from_pretrained(
                folder, num_labels=1, local_files_only=True
            )
            config = LoraConfig(
                r=spec.rank,
                lora_alpha=spec.alpha,
                target_modules=sorted(spec.targets),
                modules_to_save=["classifier"],
            )
            self.model: Any = get_peft_model(bert, config).to(self._device)
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer: Any = torch.optim.AdamW(trained, lr=rate)
        self._loss: Any = torch.nn.BCEWithLogitsLoss()
        data = TensorDataset(ids, mask, torch.from_numpy(labels).to(self._device))
        self._loader: Any = DataLoader(data, batch_size=batch, shuffle=True)
        if mode != "none":
            self._make_private(noise_multiplier)
        self._batches = self._forever()

    def steps(self, count: int) -> int:
        """Take optimizer steps and return how many examples were drawn for them."""
        drawn = 0
        for ids, mask, labels in itertools.islice(self._batches, count):
            drawn += len(labels)
            with _quietly():
                self._step(ids, mask, labels)
        return drawn

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Logits (n,) without dropout."""
        ids, mask = self._padded(texts)
        out = np.zeros(len(texts), np.float32)
        self.model.eval()
        for rows in torch.split(torch.argsort(mask.sum(1)), 64):
            out[rows.cpu().numpy()] = self._logits(*_trimmed(ids[rows], mask[rows])).cpu().numpy()
        self.model.train()
        return out

    def _make_private(self, noise_multiplier: float) -> None:
        from opacus import PrivacyEngine

        with _quietly():
            made = PrivacyEngine(accountant="rdp").make_private(
                module=self.model,
                optimizer=self._optimizer,
                data_loader=self._loader,
                criterion=self._loss,
                noise_multiplier=noise_multiplier,
                max_grad_norm=1.0,
                grad_sample_mode=self._mode,
            )
        if self._mode == "ghost":
            self.model, self._optimizer, self._loss, self._loader = made
        else:
            self.model, self._optimizer, self._loader = made

    def _forever(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            yield from self._loader

    def _step(self, ids: Tensor, mask: Tensor, labels: Tensor) -> None:
        if len(labels) == 0:
            self._noise_alone()
            return
        parts = [torch.arange(len(labels))]
        if self._physical is not None:
            parts = list(torch.split(torch.argsort(mask.sum(1)), self._physical))
        for rows in parts:
            own = (ids[rows], mask[rows])
            logits = self._logits(*(own if self._physical is None else _trimmed(*own)))
            loss = self._loss(logits, labels[rows])
            if self._mode == "none":
                (loss * (len(rows) / len(labels))).backward()
                continue
            self._optimizer.signal_skip_step(rows is not parts[-1])
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        if self._mode == "none":
            self._optimizer.step()
            self._optimizer.zero_grad()

    def _noise_alone(self) -> None:
        """The step of a batch that Poisson sampling left empty; BERT cannot run on it."""
        for p in self._optimizer.params:
            p.grad_sample = torch.zeros(0, *p.shape, device=self._device)
            p.grad = torch.zeros_like(p)
        self._optimizer.signal_skip_step(False)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0]

    def _padded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self._tokenizer(
            list(texts),
            padding="longest",
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(self._device), encoded["attention_mask"].to(self._device)


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    longest = int(mask.sum(1).max())
    return ids[:, :longest], mask[:, :longest]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that every user of these libraries sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
