import pytest
import torch
from torch import nn

from credit_common.device import computes_in_bf16, device_of, keep_in_bf16

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


def test_the_device_is_the_one_that_is_asked_for():
    assert device_of("cpu") == CPU
    assert device_of("cuda") == CUDA
    assert device_of("auto").type in {"cpu", "cuda", "mps"}


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_units_for_it(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert computes_in_bf16("auto", CPU) is expected
    assert computes_in_bf16("float32", CPU) is False
    assert computes_in_bf16("bfloat16", CPU) is True


def test_an_older_torch_that_does_not_tell_stays_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_in_bf16("auto", CPU) is False


@pytest.mark.parametrize("units", [True, False])
def test_cuda_is_asked_without_its_emulation(monkeypatch, units):
    def supported(including_emulation=True):
        return units or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert computes_in_bf16("auto", CUDA) is units


def test_mps_stays_in_float32():
    assert computes_in_bf16("auto", MPS) is False


def test_the_backbones_linear_layers_alone_are_kept_in_bf16():
    model = nn.ModuleDict(
        {"query": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "lora_A": nn.Linear(3, 3)}
    )
    model.requires_grad_(False)
    keep_in_bf16(model)
    assert {p.dtype for p in model["query"].parameters()} == {torch.bfloat16}
    for name in ("norm", "lora_A"):
        assert {p.dtype for p in model[name].parameters()} == {torch.float32}
