"""What runs under faults are made on: a valid contract, and a BERT that the model loads."""

from pathlib import Path

import pytest

from credit_common.backbone import resolve_backbone
from credit_common.contract import parse_contract
from credit_common.model import CreditModel
from credit_common.privacy import check_plan, mechanism_plan
from credit_simulations.chaos.ground import HIDDEN, Terms, contract_text, small_bert
from credit_simulations.data import contract_path

BASE = contract_path("pakdd2009").read_text("utf-8")
WIDE = 'train = ["wide"]'


@pytest.mark.parametrize("private", [True, False])
def test_the_contract_keeps_task_and_fields_and_takes_the_rest_from_its_terms(
    private: bool,
) -> None:
    made, base = parse_contract(contract_text(BASE, Terms(private=private), WIDE)), None
    base = parse_contract(BASE)
    assert (made.task, made.record, made.split) == (base.task, base.record, base.split)
    assert made.fields == base.fields
    assert made.training.rounds == 10
    assert made.privacy.private == private
    for size_class, _ in made.privacy.size_classes:
        check_plan(mechanism_plan(made, size_class))  # its schedule stays within its budget


def test_the_schedule_of_many_kill_points_stays_within_its_budget() -> None:
    terms = Terms(rounds=66, steps=1, private=True, noise_multiplier=4.0, reads_text=False)
    check_plan(mechanism_plan(parse_contract(contract_text(BASE, terms, WIDE)), "small"))


def test_the_small_bert_is_the_same_everywhere_and_the_model_reads_it(tmp_path: Path) -> None:
    sha256 = small_bert(tmp_path / "bert")
    assert small_bert(tmp_path / "again") == sha256
    model = (
        f'backbone = "{tmp_path / "bert"}"\nbackbone_sha256 = "{sha256}"\ntokens = 16\nlayers = 1'
    )
    contract = parse_contract(contract_text(BASE, Terms(private=True), model))
    made = CreditModel(contract, resolve_backbone(contract.model), precision="float32")
    schema = made.schema()
    assert schema["head.weight"] == (1, HIDDEN)
    assert any(name.startswith("lora.1.") for name in schema)
    assert not any(name.startswith(("lora.0.", "lora.2.")) for name in schema)
