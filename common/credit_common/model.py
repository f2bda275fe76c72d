"""The credit model: frozen BERT, LoRA on its top layers, a head on its text, and a wide part.

`frozen` computes the layers that nothing trains, once per example; `forward` goes on from there, so
that training touches only the top k layers. The last layer is computed for the [CLS] token alone,
in another order of the same products (see `_read_layer`).
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from credit_common.backbone import (
    Backbone,
    load_bert,
    load_tokenizer,
    token_ids,
    write_out_attention,
)
from credit_common.contract import Contract
from credit_common.device import Precision, computes_in_bf16, keep_in_bf16, mixed
from credit_common.errors import BackboneError, WireError
from credit_common.lora import Tap as Tap
from credit_common.lora import factors, merge, schema_name, tapped, with_lora
from credit_common.padding import bucket_length, padded
from credit_common.text import reference_texts, wide_width

Arrays = Mapping[str, NDArray[np.float32]]
"""An adapter: name -> float32 array, in `CreditModel.schema` order."""


class CreditModel(nn.Module):
    """One resident model for all holders of a process; `load_adapter` moves it between them.

    Args:
        contract: Sets layers, rank, factors and which groups train.
        backbone: Checked weights; None where the contract reads no text.
        device: Where the model lives.
        precision: Of BERT's matrix products; "auto" takes bfloat16 where there are matrix units for
            it. Trained and fixed factors, head, and the reference record stay float32.

    The score of a record is head(text) + wide(features) + offset, one logit (binary), logits by
    class, or a value in [0, 1] (regression). `text` is the [CLS] vector, plus the contract's
    mean_weight times the mean of the last layer's input tokens, less the same of the contract's
    reference record (the mean of several where it has examples of its texts), over the latter's
    norm: all records share most of the vector, and what they share would only cost clipping. It is
    a public constant.
    """

    def __init__(
        self,
        contract: Contract,
        backbone: Backbone | None,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        super().__init__()
        spec, task = contract.model, contract.task
        self.contract = contract
        self.device = torch.device(device)
        self.bf16 = False  # until the reference is made
        self.reads_text = spec.reads_text
        self.backbone = backbone if spec.reads_text else None
        # Public initial weights alone; the noise and the sampling have no seed.
        generator = torch.Generator().manual_seed(spec.seed)
        if self.reads_text:
            if backbone is None:
                raise BackboneError("a contract that reads text needs a backbone")
            self.tokenizer = load_tokenizer(backbone)
            bert = load_bert(backbone)
            depth: int = bert.config.num_hidden_layers
            if spec.layers > depth:
                raise BackboneError(f"model.layers = {spec.layers}: the backbone has {depth}")
            # Without LoRA every layer is frozen, and only what the head reads is kept.
            self.trained_layers = spec.layers if "lora" in spec.train else 0
            self.frozen_layers = depth - self.trained_layers
            self.bert = with_lora(bert, spec, generator) if self.trained_layers else bert
            hidden: int = bert.config.hidden_size
            self.hidden = hidden
            self.head = nn.Linear(hidden, task.outputs, bias=spec.head_bias)
            with torch.no_grad():
                self.head.weight.normal_(0.0, 0.02, generator=generator)
                if spec.head_bias:
                    self.head.bias.zero_()
        if "wide" in spec.train:
            self.wide = nn.Linear(wide_width(contract), task.outputs, bias=False)
            nn.init.zeros_(self.wide.weight)
        self.offset = {
            "binary": math.log(task.base_rate / (1 - task.base_rate)),
            "multiclass": 0.0,
            "regression": 0.5,
        }[task.kind]
        self.to(self.device)
        self.reference = self._reference(contract) if self.reads_text else None
        if self.reads_text and computes_in_bf16(precision, self.device):
            self.bf16 = True
            keep_in_bf16(self.bert)
            if self.device.type == "cpu":  # fused attention's backward pass is slow there
                write_out_attention(self.bert)
        named = [(schema_name(name) or name, p) for name, p in self.named_parameters()]
        self._trained = sorted((name, p) for name, p in named if p.requires_grad)
        self._fixed = sorted(
            (name, p) for name, p in named if name.startswith("lora.") and not p.requires_grad
        )
        self._initial = {name: p.detach().clone() for name, p in self.trained()}

    def _reference(self, contract: Contract) -> Tensor:
        read = []
        for own in self.tokens(list(reference_texts(contract))):
            ids, mask = self.padded([own], bucket_length(len(own), contract.model.tokens))
            with torch.no_grad():
                read.append(self.read(self.frozen(ids, mask), mask).detach())
        return torch.stack(read).mean(0)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Trained tensors by short name, in a fixed order.

        Names: lora.LAYER.TARGET.A and .B, head.weight, head.bias if there is one, wide.weight.
        """
        return self._trained

    def schema(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every array of an adapter; all are float32."""
        return {name: tuple(p.shape) for name, p in self.trained()}

    def initial_adapter(self) -> dict[str, NDArray[np.float32]]:
        """The public adapter that every federation under this contract starts from."""
        return {name: p.cpu().numpy().copy() for name, p in self._initial.items()}

    def adapter(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the trained tensors as they are now."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.trained()}

    def load_adapter(self, arrays: Arrays) -> None:
        """Write an adapter into the model.

        Raises:
            WireError: If a name or shape is not the schema's, or a value is not finite.
        """
        check_adapter(self.schema(), arrays)
        with torch.no_grad():
            for name, parameter in self.trained():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))

    def fixed(self) -> dict[str, NDArray[np.float32]]:
        """LoRA factors that keep their public initial value: A under "ffa", otherwise none."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self._fixed}

    def load_fixed(self, arrays: Arrays) -> None:
        """Write the fixed factors of a release, whichever torch drew them, into the model.

        Raises:
            WireError: As `load_adapter`.
        """
        check_adapter({name: tuple(p.shape) for name, p in self._fixed}, arrays)
        with torch.no_grad():
            for name, parameter in self._fixed:
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))

    def merged(self) -> "CreditModel":
        """A copy for scoring alone, whose LoRA is part of the backbone's weights."""
        own = copy.deepcopy(self)
        if own.reads_text:
            merge(own.bert)
        return own

    def tokens(self, texts: list[str]) -> list[NDArray[np.int64]]:
        """Token ids of each text, cut at the contract's length."""
        return token_ids(self.tokenizer, texts, self.contract.model.tokens)

    def padded(self, tokens: list[NDArray[np.int64]], length: int) -> tuple[Tensor, Tensor]:
        """Ids (n, length) int64 and mask (n, length) bool on the model's device."""
        ids, mask = padded(tokens, length, self.tokenizer.pad_token_id)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    @torch.no_grad()
    def frozen(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Output of the layers that nothing trains.

        Returns:
            (n, length, hidden), or (n, 1, hidden), what `read` gives, where no layer is trained.
        """
        hidden: Tensor = self.bert.embeddings(input_ids=ids)
        bias = _attention_bias(mask)
        before = hidden
        with mixed(self.bf16, self.device):
            for layer in self.bert.encoder.layer[: self.frozen_layers]:
                before, hidden = hidden, _only(layer(hidden, bias))
        if self.trained_layers:
            return hidden
        return self._pooled(hidden[:, 0].float(), before, mask)[:, None]

    def read(self, hidden: Tensor, mask: Tensor, taps: list[Tap] | None = None) -> Tensor:
        """What the head reads of texts, (n, hidden), from `frozen`'s output.

        Args:
            hidden: (n, length, hidden) float.
            mask: (n, length) bool, False at padding.
            taps: Filled with one Tap for each LoRA projection, where it is given.
        """
        if not self.trained_layers:
            return hidden[:, 0]
        layers = self.bert.encoder.layer[self.frozen_layers :]
        bias = _attention_bias(mask)
        with mixed(self.bf16, self.device):
            with tapped(layers[:-1], taps):
                for layer in layers[:-1]:
                    hidden = _only(layer(hidden, bias))
            cls = _read_layer(layers[-1], hidden, mask, taps).float()
        return self._pooled(cls, hidden, mask)

    def _pooled(self, cls: Tensor, last: Tensor, mask: Tensor) -> Tensor:
        """[CLS] (n, hidden) + weighted mean of the last layer's input (n, length, hidden)."""
        weight = self.contract.model.mean_weight
        if weight == 0:
            return cls
        total = (mask.float()[:, None] @ last.float())[:, 0]
        return cls + weight * total / mask.sum(1, keepdim=True)

    def forward(self, hidden: Tensor | None, mask: Tensor | None, wide: Tensor | None) -> Tensor:
        """Scores from `frozen`'s output and the wide features.

        Args:
            hidden: (n, length, hidden) float; None where the contract reads no text.
            mask: (n, length) bool, False at padding.
            wide: (n, wide_width) float; None where the wide part does not train.

        Returns:
            (n, outputs) float32.
        """
        cls = self.text_features(hidden, mask) if self.reads_text else None
        return self.score(cls, wide)

    def text_features(
        self, hidden: Tensor | None, mask: Tensor | None, taps: list[Tap] | None = None
    ) -> Tensor:
        """The head's input, (n, hidden): what is read less the reference, scaled."""
        assert hidden is not None
        assert mask is not None
        assert self.reference is not None
        centred = (self.read(hidden, mask, taps) - self.reference) / self.reference.norm()
        scaled: Tensor = centred * self.contract.model.text_scale
        return scaled

    def score(self, cls: Tensor | None, wide: Tensor | None) -> Tensor:
        """Scores (n, outputs) float32 from the head's input and the wide features."""
        score: Tensor | float = self.offset
        if cls is not None:
            score = score + self.head(cls)
        if wide is not None:
            score = score + self.wide(wide)
        assert isinstance(score, Tensor)
        return score.float()


def check_adapter(schema: Mapping[str, tuple[int, ...]], arrays: Arrays) -> None:
    """Refuse arrays that are not an adapter of this schema.

    Raises:
        WireError: Naming the array and what is wrong with it.
    """
    if set(arrays) != set(schema):
        odd = sorted(set(arrays) ^ set(schema))
        raise WireError(f"adapter arrays {odd} are missing or not in the schema")
    for name, shape in schema.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != shape:
            raise WireError(
                f"adapter array {name}: {array.dtype} {array.shape}, must be float32 {shape}"
            )
        if not np.isfinite(array).all():
            raise WireError(f"adapter array {name}: has values that are not finite")


def _only(output: Any) -> Tensor:
    """A BERT layer's hidden states; some versions of transformers wrap them in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def _attention_bias(mask: Tensor) -> Tensor:
    zero = torch.zeros((), device=mask.device)
    return torch.where(mask, zero, torch.finfo(torch.float32).min)[:, None, None, :]


def _read_layer(layer: Any, hidden: Tensor, mask: Tensor, taps: list[Tap] | None) -> Tensor:
    """The [CLS] output of one BERT layer with LoRA on query or value, (n, hidden).

    Attention reads all tokens but is needed for [CLS] only, so keys and values are never projected
    token by token: with x the tokens, q the query of a head and p its attention weights,
    q . (W_k x) = (W_k^T q) . x and sum(p W_v x) = W_v (sum p x); the key's bias adds the same to
    every token and cancels in the softmax. Exact algebra, about 20 times fewer products.
    """
    own = layer.attention.self
    heads, size = own.num_attention_heads, own.attention_head_size
    n, width = hidden.shape[0], hidden.shape[2]
    first = hidden[:, 0]
    query = own.query(first)
    if taps is not None and hasattr(own.query, "lora_A"):
        A, B, scale = factors(own.query)
        x, out = first.detach()[:, None], query
        taps.append(Tap(A=A, B=B, x=x, low=x @ A.detach().T, out=out, scale=scale))
    keys = own.key.weight.view(heads, size, width)
    asked = query.view(n, heads, size) / math.sqrt(size)
    looked = torch.einsum("nhd,hdx->nhx", asked, keys)
    scores = looked @ hidden.transpose(1, 2)
    scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32)
    pooled = weights @ hidden  # (n, heads, width): the tokens as each head sees them
    value = getattr(own.value, "base_layer", own.value)
    context = torch.einsum("nhx,hdx->nhd", pooled, value.weight.view(heads, size, width))
    if value is not own.value:
        A, B, scale = factors(own.value)
        low = pooled @ A.T
        context = context + scale * torch.einsum("nhr,hdr->nhd", low, B.view(heads, size, -1))
        if taps is not None:
            x, low = pooled.detach(), low.detach()
            taps.append(Tap(A=A, B=B, x=x, low=low, out=context, scale=scale, headwise=True))
    attended = context.reshape(n, width) + value.bias
    attended = layer.attention.output(attended, first)
    output: Tensor = layer.output(layer.intermediate(attended), attended)
    return output
