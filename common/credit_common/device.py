"""Where a model computes: the device, and in which precision."""

import contextlib
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]


def device_of(choice: str) -> torch.device:
    """The device for `--device`: auto takes CUDA, then MPS, then the CPU."""
    if choice != "auto":
        return torch.device(choice)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def computes_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether matrix products are made in bfloat16: "auto" asks for matrix units that have it.

    A processor without such units emulates it, slower than float32.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    units = torch.cpu.get_capabilities()
    return bool(units.get("amx_bf16") or units.get("avx512_bf16"))


def mixed(bf16: bool, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Matrix products in bfloat16, the sums between layers in float32; or no change.

    Products with LoRA's factors are made in it too; the factors themselves stay float32. No
    backward pass runs in it: autograd keeps the precision that each product had.
    """
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def keep_in_bf16(frozen: nn.Module) -> None:
    """Keep the backbone's linear layers in bfloat16, in place; LoRA's factors stay as they are.

    autocast would convert them at each use, which costs as much as the product with a small batch.
    A factor that does not train is public and part of a release, to the last bit.
    """
    for name, module in frozen.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            module.to(torch.bfloat16)
