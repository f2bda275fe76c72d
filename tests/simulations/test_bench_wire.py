"""The benchmark of the wire on real data and real weights, small: German credit, two holders."""

import dataclasses

import pytest
import torch

from credit_common.errors import ContractError
from credit_common.upload import upload_bytes
from credit_simulations.bench.measured import Measured
from credit_simulations.bench.wire import ENCODINGS, MOST_AUC, MOST_LORA, MOST_MODEL, measure_wire
from credit_simulations.packaged import packaged_contract

pytestmark = pytest.mark.slow

MINILM_PARAMETERS = 22_565_376  # without its pooler
A, B, HEAD = 2 * 8 * 384, 2 * 384 * 8, 385


@pytest.fixture(scope="module")
def measured() -> Measured:
    torch.set_num_threads(1)
    return measure_wire("german", holders=2, seeds=1)


def test_the_leanest_encoding_is_within_what_it_is_held_to(measured: Measured) -> None:
    figures = measured.figures
    assert figures["encoding"] == "int8"
    for name, most in (
        ("bytes_over_fp32_lora", MOST_LORA),
        ("bytes_over_model", MOST_MODEL),
        ("auc_difference", MOST_AUC),
    ):
        value = figures[name]
        assert isinstance(value, float)
        assert 0 <= value <= most, name


def test_bytes_are_those_of_the_numbers_a_header_and_a_signed_head(measured: Measured) -> None:
    contract = packaged_contract("german")
    wide = {f.name: f for f in contract.wide_fields}
    assert wide
    for kind, row in zip(ENCODINGS, measured.rows, strict=True):
        assert row["encoding"] == kind
        text = upload_bytes(kind, {"A": (16, 384), "B": (384, 16), "w": (1, 384), "b": (1,)})
        assert isinstance(row["bytes_up"], int)
        assert text < row["bytes_up"] < text + 2500
        assert row["up_over_fp32_lora"] == row["bytes_up"] / (4 * (A + B + HEAD))
        assert row["bytes_down"] == measured.rows[0]["bytes_down"]
        over_model = row["bytes_up"] / (4 * MINILM_PARAMETERS)
        assert row["up_over_model"] == pytest.approx(over_model, rel=1e-4)  # head and wide part


def test_auc_is_that_of_a_federation_that_learns(measured: Measured) -> None:
    aucs = [row["auc"] for row in measured.rows]
    assert all(isinstance(auc, float) and auc > 0.6 for auc in aucs)
    assert measured.rows[0]["auc_difference"] == 0.0


def test_a_contract_without_lora_has_nothing_to_compare_with() -> None:
    contract = packaged_contract("german").training_only("wide")
    with pytest.raises(ContractError, match="LoRA"):
        measure_wire(dataclasses.replace(contract))
