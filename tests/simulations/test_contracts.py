import pandas as pd
import pytest

from credit_client.scoring.reasons import scored_fields
from credit_client.shard import read_shard
from credit_common.contract import Contract, load_contract
from credit_common.fields import DroppedField, NumberField, ProtectedField
from credit_common.privacy import check_plan, mechanism_plan
from credit_simulations.data import DATA_SETS, SOURCES, contract_path, prepare

LENDERS_SCORE = {"int_rate", "grade", "sub_grade", "installment"}
SENSITIVE = {
    "pakdd2009": {"SEX", "MARITAL_STATUS"},
    "taiwan": {"SEX", "MARRIAGE"},
    "german": {"personal_status_and_sex", "foreign_worker"},
    "gmsc": set(),
    "completejourney": {"marital_status"},
    "reviews": set(),
    "lendingclub": set(),
    "simulated-shops": {"age_band", "sex"},
}


@pytest.fixture(params=DATA_SETS)
def name(request) -> str:
    return request.param


@pytest.fixture
def contract(name) -> Contract:
    return load_contract(contract_path(name))


def inputs(contract: Contract) -> set[str]:
    text = {f.name for f in contract.fields if f.kind == "text"}
    return {f.name for f in contract.wide_fields} | text


def test_a_contract_is_named_after_its_data_set(name, contract):
    assert contract.federation.name == name


def test_digests_and_split_salts_differ():
    contracts = [load_contract(contract_path(n)) for n in DATA_SETS]
    assert len({c.digest for c in contracts}) == len(DATA_SETS)
    assert len({c.split.salt for c in contracts}) == len(DATA_SETS)


def test_the_whole_schedule_fits_the_budget_of_every_size_class(contract):
    for size_class, _ in contract.privacy.size_classes:
        check_plan(mechanism_plan(contract, size_class))


def test_protected_fields_are_declared_and_never_inputs(name, contract):
    assert {f.name for f in contract.fields if isinstance(f, ProtectedField)} == SENSITIVE[name]
    assert not SENSITIVE[name] & inputs(contract)


@pytest.mark.parametrize("credit", sorted(set(DATA_SETS) - {"completejourney", "reviews"}))
def test_every_field_that_is_scored_has_words_for_the_applicant(credit):
    contract = load_contract(contract_path(credit))
    assert {field for field, _ in contract.reasons} == set(scored_fields(contract))


def test_no_lenders_score_and_no_holder_is_an_input(contract):
    assert not (LENDERS_SCORE | {"holder", "ID_SHOP", "addr_state", "zip_code"}) & inputs(contract)
    assert contract.task.label not in inputs(contract)


def test_the_lenders_score_is_declared_as_dropped():
    contract = load_contract(contract_path("lendingclub"))
    dropped = {f.name for f in contract.fields if isinstance(f, DroppedField)}
    assert dropped >= LENDERS_SCORE


def test_edges_are_round_figures(contract):
    for field in contract.fields:
        if isinstance(field, NumberField):
            for edge in field.edges:  # three figures at most: nobody's quantile
                assert edge == float(f"{edge:.3g}"), field.name


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_every_column_of_the_prepared_set_is_declared_and_every_field_is_there(name, contract):
    columns = set(pd.read_parquet(prepare(name)).columns)
    declared = {f.name for f in contract.fields} | {contract.task.label}
    assert columns == declared


RARE = {"PROFESSION_CODE": 100, "AREA_CODE_RESIDENCIAL_PHONE": 50}
"""Codes of pakdd2009 that fewer applicants have are one category together, as its contract says."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_vocabularies_cover_the_data_but_for_undocumented_codes(name, contract):
    frame = pd.read_parquet(prepare(name))
    undocumented = {"EDUCATION": {"0", "5", "6"}, "MARRIAGE": {"0"}} if name == "taiwan" else {}
    for field in contract.fields:
        if hasattr(field, "values"):
            counts = frame[field.name].astype(str).value_counts()
            rare = set(counts.index[counts < RARE.get(field.name, 0)])
            left_out = undocumented.get(field.name, set()) | rare
            assert set(counts.index) - {""} - set(field.values) == left_out, field.name
    label = set(frame[contract.task.label].astype(str))
    assert label == {*contract.task.positive, *contract.task.negative}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_every_prepared_row_becomes_a_user(name, contract):
    shard = read_shard(prepare(name), contract)
    assert shard.rejects == ()
    assert shard.users == shard.rows
    assert shard.duplicates == 0
    part = len(shard.holdout) / shard.users
    assert part == pytest.approx(contract.split.holdout, abs=3 / shard.users**0.5)
