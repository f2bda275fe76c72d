"""A holder's records, encoded once: tokens, wide features, labels, and the frozen layers' output.

The frozen output is raw personal data in another form; `credit_client.cache` says where it is kept.
A text is kept at the multiple of 8 above its own length. Where several layers are trained, it goes
through them at that length; where only [CLS] is read, at the contract's longest, since the tokens
cost little there and one length leaves less to fill up (see `shapes`).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from credit_client.training.hidden import Frozen, Hidden, Store, Tokens
from credit_client.training.shapes import rows_of_reads, rows_of_texts
from credit_common.contract import Contract
from credit_common.groups import group_places
from credit_common.model import CreditModel
from credit_common.padding import bucket_length
from credit_common.record import Record
from credit_common.text import record_text, wide_features, wide_width


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One physical batch of a fixed number n of rows.

    Attributes:
        rows: Which examples stand in the first len(rows) rows; the others are filling.
        hidden, mask, wide: Inputs of `CreditModel.forward`.
        labels: (n,) float32, zero in filling rows.
        weights: (n,) float32, 1 for examples and 0 for filling.
    """

    rows: NDArray[np.intp]
    hidden: Tensor | None
    mask: Tensor | None
    wide: Tensor | None
    labels: Tensor
    weights: Tensor


class Examples:
    """Encoded records, in order, with the frozen layers' output at hand.

    Args:
        model: The resident model; the frozen layers must be the ones that train goes on from.
        contract: Says what the text and the wide features of a record are. Where it has federated
            edges, the records are kept, and `under` makes the wide features once they are known.
        records: One per user. Records without a label get the label 0; score them only.
        store: Where the output is kept, shared by the examples of one holder; memory without a
            limit where it is left out.
        frozen: What `frozen` gave for the same records, model and contract: nothing runs again.

    Raises:
        CacheError: If the store's file cannot be made or has no room.
    """

    def __init__(
        self,
        model: CreditModel,
        contract: Contract,
        records: Sequence[Record],
        store: Store | None = None,
        frozen: Frozen | None = None,
    ) -> None:
        self.labels = np.asarray([r.label or 0.0 for r in records], np.float32)
        self.groups = group_places(contract, records)
        self.device = model.device
        self.records = tuple(records) if contract.federated_fields else ()
        self._wide: NDArray[np.float32] | None = None
        self._latest: tuple[object, NDArray[np.float32]] | None = None
        if "wide" in contract.model.train and all(f.edges for f in contract.federated_fields):
            self._wide = _wide_rows(contract, records)
        self._bucket = np.zeros(len(records), np.int64)  # padded length of each example
        self._place = np.arange(len(records))  # its row in that bucket
        self._counts = np.zeros(len(records), np.int64)  # tokens of its text
        self._layers = model.trained_layers if contract.model.reads_text else 0
        self._longest = contract.model.tokens
        self._hidden: Hidden | None = None
        if contract.model.reads_text and frozen is not None:
            self._lay_out(frozen.counts)
            self._hidden = Hidden.of(frozen, self._bucket)
        elif contract.model.reads_text:
            self._build(model, [record_text(contract, r) for r in records], store or Store())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def wide(self) -> NDArray[np.float32]:
        """Wide features, (n, wide_width)."""
        if self._wide is None:
            raise ValueError("these examples have no wide features")
        return self._wide

    @property
    def cache_bytes(self) -> int:
        """Bytes of the frozen layers' output that is kept."""
        return self._hidden.bytes if self._hidden is not None else 0

    def under(self, contract: Contract) -> "Examples":
        """The same examples with the wide features of a contract whose edges are filled in.

        Texts say values and not bins, so that nothing runs through BERT again. The features are
        kept for the next call with the same edges.
        """
        if not contract.federated_fields:
            return self
        edges = tuple(f.edges for f in contract.federated_fields)
        if self._latest is None or self._latest[0] != edges:
            self._latest = (edges, _wide_rows(contract, self.records))
        other = copy.copy(self)
        other._wide = self._latest[1]
        return other

    def without_text(self) -> "Examples":
        """The same examples for a contract that trains the wide part alone."""
        other = copy.copy(self)
        other._hidden, other._bucket = None, np.zeros(len(self), np.int64)
        other._layers = 0
        return other

    def without_wide(self) -> "Examples":
        """The same examples for a contract that trains on text alone."""
        other = copy.copy(self)
        other._wide, other.records, other._latest = None, (), None
        return other

    def at_cls(self, model: CreditModel) -> "Examples":
        """The same examples for a contract without LoRA: what the head reads, computed once.

        At the initial adapter LoRA adds nothing (B is zero), so the top layers are the frozen ones.
        """
        if self._hidden is None:
            return self.without_text()
        model.load_adapter(model.initial_adapter())
        rows = {}
        for length in sorted(set(self._bucket.tolist())):
            members = np.flatnonzero(self._bucket == length)
            rows[length] = torch.zeros(len(members), 1, model.hidden, dtype=torch.half)
            for batch in self.batches(members):
                assert batch.hidden is not None
                assert batch.mask is not None
                with torch.no_grad():
                    read = model.read(batch.hidden, batch.mask)[: len(batch.rows)]
                rows[length][np.searchsorted(members, batch.rows), 0] = read.half().cpu()
        return self.with_cls(Frozen(counts=self._counts, rows=rows))

    def with_cls(self, cls: Frozen) -> "Examples":
        """What `at_cls` gives, from what `frozen` gave of it."""
        other = copy.copy(self)
        other._layers = 0
        other._place = _places(self._bucket)
        other._hidden = Hidden.of(cls, self._bucket)
        return other

    def cls_vectors(self) -> NDArray[np.float32]:
        """What the head reads of each text, (n, hidden), of what `at_cls` or `with_cls` gave."""
        kept = self.frozen()
        out = np.zeros((len(self), next(iter(kept.rows.values())).shape[2]), np.float32)
        for length, rows in kept.rows.items():
            out[self._bucket == length] = rows[:, 0].float().numpy()
        return out

    def frozen(self) -> Frozen:
        """The frozen layers' output, to be handed on.

        Raises:
            ValueError: If no text is read.
        """
        if self._hidden is None:
            raise ValueError("these examples have no text")
        rows = {}
        for length in sorted(set(self._bucket.tolist())):
            rows[length] = self._hidden.rows(length, self._place[self._bucket == length])
        return Frozen(counts=self._counts, rows=rows)

    def subset(self, rows: NDArray[np.intp]) -> "Examples":
        """Some of the examples, in the order of their indices `rows`; nothing is computed anew."""
        other = copy.copy(self)
        other.labels, other.groups = self.labels[rows], self.groups[rows]
        if self.records:
            other.records = tuple(self.records[i] for i in rows)
        if self._wide is not None:
            other._wide = self._wide[rows]
        other._latest = None
        other._bucket, other._place = self._bucket[rows], self._place[rows]
        other._counts = self._counts[rows]
        return other

    def _build(self, model: CreditModel, texts: list[str], store: Store) -> None:
        tokens = model.tokens(texts)
        self._lay_out(np.asarray([len(own) for own in tokens], np.int64))
        self._hidden = Hidden(
            tokens,
            self._bucket,
            width=model.hidden,
            cls_only=not model.trained_layers,
            run=partial(_frozen, model),
            store=store,
        )

    def _lay_out(self, counts: NDArray[np.int64]) -> None:
        self._counts = counts
        padded = [bucket_length(int(own), self._longest) for own in counts]
        self._bucket = np.asarray(padded, np.int64)
        self._place = _places(self._bucket)

    def batches(self, rows: NDArray[np.intp], expected: float = math.inf) -> Iterator[Batch]:
        """Physical batches that together hold the examples `rows`, each once.

        Args:
            rows: Indices of examples.
            expected: Public expected number of rows of such a call.
        """
        whole, device = self._layers > 1, self.device.type
        rows = rows[np.argsort(self._bucket[rows], kind="stable")]  # runs of one length copy fast
        lengths = self._bucket[rows] if whole else np.full(len(rows), self._longest)
        for length in sorted(set(lengths.tolist())):
            members = rows[lengths == length]
            shape = partial(rows_of_texts, length) if whole else rows_of_reads
            most = shape(device, expected)
            for start in range(0, len(members), most):
                yield self._batch(members[start : start + most], most, length)

    def _batch(self, rows: NDArray[np.intp], most: int, length: int) -> Batch:
        filled = np.full(most, rows[0])  # filling repeats an example at weight zero
        filled[: len(rows)] = rows
        weights = torch.zeros(most)
        weights[: len(rows)] = 1.0
        hidden = mask = wide = None
        if self._hidden is not None:
            hidden, mask = self._kept(self._hidden, filled, length)
        if self._wide is not None:
            wide = torch.from_numpy(self._wide[filled]).to(self.device)
        labels = torch.from_numpy(self.labels[filled]) * weights
        return Batch(
            rows=rows,
            hidden=hidden,
            mask=mask,
            wide=wide,
            labels=labels.to(self.device),
            weights=weights.to(self.device),
        )

    def _kept(self, kept: Hidden, rows: NDArray[np.intp], length: int) -> tuple[Tensor, Tensor]:
        """Frozen output (n, length, hidden) float32 and mask (n, length) of some examples."""
        own, places = self._bucket[rows], self._place[rows]
        ends = [*(np.flatnonzero(np.diff(own)) + 1).tolist(), len(rows)]
        parts, start = [], 0
        for end in ends:  # a run of rows that are kept at one length
            stored = int(own[start])
            parts.append((start, end, stored, kept.rows(stored, places[start:end])))
            start = end
        width = parts[0][3].shape[2]
        if not self._layers:  # [CLS] alone is kept
            length = 1
        hidden = torch.zeros((len(rows), length, width))
        mask = torch.zeros((len(rows), length), dtype=torch.bool)
        for start, end, stored, part in parts:
            most = min(stored, length)
            hidden[start:end, :most] = part
            mask[start:end, :most] = kept.masks(stored, places[start:end])[:, :most]
        return hidden.to(self.device), mask.to(self.device)


def _frozen(model: CreditModel, tokens: Tokens, length: int) -> Iterator[Tensor]:
    """The frozen layers' output, (rows, length, hidden) half precision, by physical batch."""
    most = rows_of_texts(length, model.device.type)
    for start in range(0, len(tokens), most):
        own = tokens[start : start + most]
        ids, mask = model.padded([*own, *own[:1] * (most - len(own))], length)
        yield model.frozen(ids, mask)[: len(own)].half().cpu()


def _places(lengths: NDArray[np.int64]) -> NDArray[np.intp]:
    """Each text's number among those of its length."""
    places = np.zeros(len(lengths), np.intp)
    for length in set(lengths.tolist()):
        members = np.flatnonzero(lengths == length)
        places[members] = np.arange(len(members))
    return places


def _wide_rows(contract: Contract, records: Sequence[Record]) -> NDArray[np.float32]:
    """Wide features, (n, wide_width)."""
    rows = [wide_features(contract, record) for record in records]
    return np.asarray(rows, np.float32).reshape(len(records), wide_width(contract))
