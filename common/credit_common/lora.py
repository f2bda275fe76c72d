"""LoRA on BERT's attention projections: added by PEFT, tapped for gradients, kept in PEFT's format.

Names in this project are lora.LAYER.TARGET.A and .B; PEFT has its own for the same tensors, in a
model and in a file. Reading a file and translating names need neither torch nor peft, so that a
release is opened without them.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from credit_common.errors import WireError
from credit_common.sections import Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_ADAPTER = "default"  # peft's own name of the only adapter
_FACTOR = re.compile(r"\bencoder\.layer\.(\d+)\.attention\.self\.(query|value)\.lora_([AB])\.")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where one LoRA projection entered a forward pass, for per-sample gradients.

    With x the projection's input, y = W x + scale * B A x its output. Over positions (tokens, or
    heads where the projection is `headwise`), all tensors keep one row an example.

    Attributes:
        A, B: The factors, (rank, in) and (out, rank).
        x: (n, positions, in), no gradient needed.
        low: (n, positions, rank), A x.
        out: Tensor of the graph whose gradient is that of y: (n, positions, out); of a headwise
            projection (n, heads, out / heads), each head keeping its own part.
        scale: LoRA's alpha / rank.
    """

    A: nn.Parameter
    B: nn.Parameter
    x: Tensor
    low: Tensor
    out: Tensor
    scale: float
    headwise: bool = False


def with_lora(bert: Any, spec: Model, generator: torch.Generator) -> Any:
    """The BERT with LoRA on its top layers, in place.

    Args:
        bert: A frozen BertModel.
        spec: Rank, scale, layers, projections, and whether A trains.
        generator: Public randomness of A's initial values; B starts at zero.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**_settings(spec, bert.config.num_hidden_layers))
    with warnings.catch_warnings():
        # peft asks transformers for a name that the latter is about to rename.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        inner = get_peft_model(bert, config).base_model.model
    for name, parameter in inner.named_parameters():
        if "lora_A" in name:  # PEFT's own initial law, from the contract's seed
            bound = math.sqrt(1.0 / parameter.shape[1])
            with torch.no_grad():
                parameter.uniform_(-bound, bound, generator=generator)
            parameter.requires_grad_(spec.factors != "ffa")
    return inner


def factors(projection: Any) -> tuple[nn.Parameter, nn.Parameter, float]:
    """A, B and alpha / rank of a projection with LoRA."""
    A, B = projection.lora_A[_ADAPTER].weight, projection.lora_B[_ADAPTER].weight
    return A, B, float(projection.scaling[_ADAPTER])


def merge(bert: Any) -> None:
    """Add each LoRA product to the weights of its projection, in place; no LoRA is left."""
    import torch

    for layer in bert.encoder.layer:
        own = layer.attention.self
        for target in ("query", "value"):
            projection = getattr(own, target)
            if hasattr(projection, "lora_A"):
                A, B, scale = factors(projection)
                with torch.no_grad():
                    projection.base_layer.weight += scale * (B @ A)
                setattr(own, target, projection.base_layer)


@contextmanager
def tapped(layers: Any, taps: list[Tap] | None) -> Iterator[None]:
    """Record every LoRA projection of whole layers while the block runs."""
    handles = []
    if taps is not None:
        for layer in layers:
            own = layer.attention.self
            for projection in (own.query, own.value):
                if hasattr(projection, "lora_A"):
                    handles.append(projection.register_forward_hook(_recorder(taps)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def schema_name(name: str) -> str | None:
    """This project's name of a LoRA factor, from PEFT's; None for other tensors.

    Example:
        >>> schema_name("bert.encoder.layer.5.attention.self.query.lora_A.default.weight")
        'lora.5.query.A'
        >>> schema_name(peft_name("lora.5.query.A"))
        'lora.5.query.A'
    """
    found = _FACTOR.search(name)
    return "lora.{}.{}.{}".format(*found.groups()) if found else None


def peft_name(name: str) -> str:
    """PEFT's name of a LoRA factor in a file, from this project's.

    Example:
        >>> peft_name("lora.5.query.A")
        'base_model.model.encoder.layer.5.attention.self.query.lora_A.weight'
    """
    _, layer, target, factor = name.split(".")
    return f"base_model.model.encoder.layer.{layer}.attention.self.{target}.lora_{factor}.weight"


def peft_files(
    spec: Model, depth: int, base_model: str, arrays: Mapping[str, NDArray[np.float32]]
) -> dict[str, bytes]:
    """The files that `PeftModel.from_pretrained` opens on the backbone's BertModel.

    Args:
        spec: Rank, scale, layers and projections.
        depth: Layers of the backbone.
        base_model: Where the backbone is had: a hub id or a folder.
        arrays: Every factor, A and B, by this project's names.

    Returns:
        File name -> content, the same bytes for the same arguments. The configuration has only keys
        that PEFT has had for long, so that older versions open it too.
    """
    config = {
        **_settings(spec, depth),
        "auto_mapping": {
            "base_model_class": "BertModel",
            "parent_library": "transformers.models.bert.modeling_bert",
        },
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "peft_type": "LORA",
        "task_type": None,
    }
    named = {peft_name(name): np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    return {
        CONFIG_FILE: json.dumps(config, indent=2, sort_keys=True).encode() + b"\n",
        WEIGHTS_FILE: save_tensors(named, metadata={"format": "pt"}),
    }


def from_peft(
    spec: Model, tensors: Mapping[str, NDArray[Any]], where: str
) -> dict[str, NDArray[Any]]:
    """Tensors of a PEFT file by this project's names.

    Args:
        spec: How many layers and which projections there must be.
        tensors: What the file holds.
        where: The file, for error messages.

    Raises:
        WireError: If a factor is missing, or something else is there.
    """
    named = {schema_name(name): array for name, array in tensors.items()}
    layers = {int(name.split(".")[1]) for name in named if name}
    top = max(layers, default=0)
    expected = {
        f"lora.{layer}.{target}.{factor}"
        for layer in range(top - spec.layers + 1, top + 1)
        for target in spec.targets
        for factor in "AB"
    }
    exact = {peft_name(name) for name in expected} == set(tensors)
    if not exact:
        raise WireError(
            f"{where}: must hold LoRA's A and B on {' and '.join(spec.targets)} "
            f"of {spec.layers} neighbouring layers, and nothing else"
        )
    return {name: named[name] for name in sorted(expected)}


def _settings(spec: Model, depth: int) -> dict[str, Any]:
    return {
        "bias": "none",
        "layers_pattern": "layer",
        "layers_to_transform": list(range(depth - spec.layers, depth)),
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "r": spec.rank,
        "target_modules": sorted(spec.targets),
    }


def _recorder(taps: list[Tap]) -> Any:
    def record(projection: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        A, B, scale = factors(projection)
        x = inputs[0].detach()
        taps.append(Tap(A=A, B=B, x=x, low=x @ A.detach().T, out=out, scale=scale))

    return record
