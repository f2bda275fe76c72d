"""Scoring as a user would write it from a release's card: transformers, peft, numpy, in batches.

The release is opened with PeftModel.from_pretrained, LoRA left beside the weights, every layer runs
for every token, texts are padded to the longest of the file, 64 records a batch, float32.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from credit_common.contract import Contract
from credit_common.record import Record
from credit_common.release import HEAD, release_scores
from credit_common.text import record_text, wide_features

BATCH = 64


class PlainLoop:
    """The release, opened.

    Args:
        release: Its folder.
        backbone: Folder of the backbone.
        contract: With the release's edges.
    """

    def __init__(self, release: Path, backbone: Path, contract: Contract) -> None:
        from peft import PeftModel
        from transformers import AutoTokenizer, BertModel

        self._contract = contract
        self._tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
        bert = BertModel.from_pretrained(backbone, add_pooling_layer=False, local_files_only=True)
        with warnings.catch_warnings():
            # peft asks transformers for a name that the latter is about to rename.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            self._bert: Any = PeftModel.from_pretrained(bert, release).float().eval()
        self._head = load_file(release / HEAD)

    @torch.no_grad()
    def scores(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """Scores (n, outputs) of records."""
        contract = self._contract
        texts = [record_text(contract, record) for record in records]
        wide = np.stack([wide_features(contract, record) for record in records])
        tokens = self._tokenizer(
            texts,
            truncation=True,
            max_length=contract.model.tokens,
            padding="longest",
            return_tensors="pt",
        )
        read = []
        for start in range(0, len(records), BATCH):
            batch = {name: ids[start : start + BATCH] for name, ids in tokens.items()}
            read.append(self._read(batch).numpy())
        return release_scores(self._head, np.concatenate(read), wide)

    def _read(self, batch: dict[str, Any]) -> torch.Tensor:
        weight = self._contract.model.mean_weight
        out = self._bert(**batch, output_hidden_states=weight > 0)
        read: torch.Tensor = out.last_hidden_state[:, 0]
        if weight > 0:
            own = batch["attention_mask"][:, :, None]
            read = read + weight * (out.hidden_states[-2] * own).sum(1) / own.sum(1)
        return read
