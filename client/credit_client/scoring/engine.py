"""A release, ready to score records: the same batches for PyTorch and for ONNX Runtime.

A score depends on its own record alone, whoever else is asked for: texts are padded by their own
length, and whole batches always have the same number of rows. Where the rows of a batch have
something in common, as the scale of int8 activations, a batch is one row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.padding import bucket_length, padded
from credit_common.record import Record
from credit_common.text import record_text, wide_features

ROWS = 64
"""Rows of a batch."""

Forward = Callable[
    [NDArray[np.int64] | None, NDArray[np.bool_] | None, NDArray[np.float32] | None],
    NDArray[np.float32],
]
"""(ids, mask, wide) -> scores (n, outputs); what the contract's model does not read is None.

ids (n, length) int64, mask (n, length) False at padding, wide (n, wide_width) float32.
"""

Tokens = Callable[[list[str]], list[NDArray[np.int64]]]
"""Texts -> token ids of each, cut at the contract's length."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model that scores.

    Attributes:
        contract: With the release's edges filled in.
        forward: The model.
        tokens: Its tokenizer, and `padding` its token for padding; None where no text is read.
        name: "torch", "onnx" or "int8".
        rows: Of a batch.
    """

    contract: Contract
    forward: Forward
    tokens: Tokens | None
    padding: int = 0
    name: str = "torch"
    rows: int = ROWS

    def score(
        self,
        records: Sequence[Record],
        on_progress: Callable[[int], None] = lambda done: None,
        *,
        filled: bool = True,
    ) -> NDArray[np.float32]:
        """Raw scores (n, outputs) of records.

        Args:
            records: In any order.
            on_progress: Called after each batch with the number of records scored so far.
            filled: Whether batches are filled up to `rows` rows, so that a score is the same to the
                last bit whoever else is asked for; not filled, a small batch is quicker.
        """
        scores = np.zeros((len(records), self.contract.task.outputs), np.float32)
        done = 0
        for rows, batch in self._batches(records, filled):
            scores[rows] = batch
            done += len(rows)
            on_progress(done)
        return scores

    def _batches(
        self, records: Sequence[Record], filled: bool
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Batch by batch: which records, and their scores (rows, outputs)."""
        reads_wide = "wide" in self.contract.model.train
        tokens: list[NDArray[np.int64]] = []
        lengths = np.zeros(len(records), np.int64)
        if self.tokens is not None:
            tokens = self.tokens([record_text(self.contract, record) for record in records])
            longest = self.contract.model.tokens
            lengths = np.array([bucket_length(len(own), longest) for own in tokens], np.int64)
        for length in np.unique(lengths).tolist():
            members = np.flatnonzero(lengths == length)
            for start in range(0, len(members), self.rows):
                rows = members[start : start + self.rows]
                more = self.rows - len(rows) if filled else 0
                taken = np.concatenate([rows, np.repeat(rows[:1], more)])
                ids = mask = wide = None
                if self.tokens is not None:
                    ids, mask = padded([tokens[row] for row in taken], length, self.padding)
                if reads_wide:
                    each = [wide_features(self.contract, records[row]) for row in rows]
                    wide = np.stack([*each, *each[:1] * more])
                yield rows, self.forward(ids, mask, wide)[: len(rows)]
