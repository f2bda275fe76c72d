import csv
import dataclasses
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_client.mapping import ShardMapping, Unit, load_mapping
from credit_client.shard import read_shard
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.sections import Task

MAPPING = """
[columns]
user = "CUSTOMER"
age = "AGE_YEARS"
defaulted = "BAD"

[values.home]
owned = "P"
"2" = "R"

[values.defaulted]
Y = "1"
N = "0"

[units.income]
factor = 0.001

[constants]
sex = "f"
tenure = 2

[missing]
age = ["-999", 0]
note = ["-"]
"""


@pytest.fixture
def load(tmp_path: Path, contract: Contract) -> Any:
    def make(text: str) -> ShardMapping:
        path = tmp_path / "mapping.toml"
        path.write_text(text, encoding="utf-8")
        return load_mapping(path, contract)

    return make


def test_a_merchants_file_is_read_in_the_contracts_terms(
    load: Any, tmp_path: Path, contract: Contract
) -> None:
    header = ["CUSTOMER", "AGE_YEARS", "income", "home", "job", "note", "at", "orders", "BAD"]
    rows = [
        ["a", "30", "20000", "owned", "clerk", "fine", "2024-01-01", "", "Y"],
        ["b", "-999.0", "500000", "2", "driver", "-", "2024-01-01", "", "N"],
        ["c", "0", "many", "P", "clerk", "x", "2024-01-01", "", "Y"],
        ["d", "40", "500001", "?", "clerk", "x", "2024-01-01", "", "Y"],
    ]
    path = tmp_path / "shard.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "age"], *([*row, "99"] for row in rows)])
    shard = read_shard(path, contract, mapping=load(MAPPING))
    by_row = {e.row: e.record for e in shard.train + shard.holdout}
    assert by_row.keys() == {1, 2}
    first, second = by_row[1], by_row[2]
    assert (first.values["age"], second.values["age"]) == (30, None)
    assert (first.values["income"], second.values["income"]) == (20, 500)
    assert (first.values["home"], second.values["home"]) == ("P", "R")
    assert (first.values["note"], second.values["note"]) == ("fine", None)
    assert (first.values["tenure"], second.values["tenure"]) == (2, 2)
    assert (first.label, second.label) == (1.0, 0.0)
    assert first.protected == second.protected == {"sex": "f"}
    assert [(r.row, r.field, r.reason) for r in shard.rejects] == [
        (3, "income", "not a number"),
        (4, "income", "outside its range"),
    ]
    assert shard.ignored_columns == ("age",)  # AGE_YEARS stands for it


def test_without_entries_a_file_is_read_as_it_stands(load: Any) -> None:
    assert load("") == ShardMapping()
    assert load("").column("age") == "age"
    assert not load("").touches("age")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[column]\nage = "A"', "unknown table [column]; known: columns, values"),
        ('[columns]\nagee = "A"', "[columns] 'agee' is not the name of a field or the label"),
        ('[columns]\nsecret = "A"', "[columns] 'secret'"),
        ("[columns]\nage = 3", "columns.age = 3: must be a text"),
        ('[columns]\nage = " "', "columns.age = ' ': must be a text that is not empty"),
        ('columns = "A"', "[columns] must be a table"),
        ('[values.phone]\na = "b"', "[values] 'phone'"),
        ('[values.home]\na = "X"', "values.home.a = 'X': must be one of the contract's codes, 'P'"),
        ('[values.sex]\na = "X"', "values.sex.a = 'X': must be one of the contract's codes, 'f'"),
        ('[values.defaulted]\nY = "yes"', "values.defaulted.Y = 'yes'"),
        ('[values]\nhome = "P"', "[values.home] must be a table"),
        ("[values.home]\na = 1", "values.home.a = 1: must be a text"),
        ("[units.home]\nfactor = 2", "[units] 'home' is not the name of a number field"),
        ("[units.defaulted]\nfactor = 2", "[units] 'defaulted'"),
        ("[units.age]\nfactor = 0", "units.age.factor = 0.0: must not be 0"),
        ("[units.age]\nfactor = nan", "units.age.factor = nan: must be a finite number"),
        ("[units.age]\nscale = 2", "[units.age] unknown key 'scale'; known keys: factor, offset"),
        ("[units]\nage = 2", "[units.age] must be a table"),
        ('[constants]\nuser = "a"', "[constants] 'user'"),
        ('[constants]\ndefaulted = "1"', "[constants] 'defaulted'"),
        ("[constants]\nage = true", "constants.age = True: must be a text or a number"),
        ('[constants]\nage = 3\n[columns]\nage = "A"', "[constants] 'age' is also in [columns]"),
        ("[missing]\nuser = ['x']", "[missing] 'user'"),
        ("[missing]\nage = '-999'", "missing.age = '-999': must be a list of codes"),
        ("[missing]\nage = [true]", "missing.age = [True]: must be a list of codes"),
        ("[columns", "not valid TOML"),
    ],
)
def test_what_the_contract_does_not_have_is_refused_by_name(
    load: Any, text: str, said: str
) -> None:
    with pytest.raises(ShardError) as caught:
        load(text)
    assert said in str(caught.value)
    assert "mapping.toml" in str(caught.value)


def test_an_unreadable_mapping_is_one_error(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(ShardError, match=r"none\.toml: No such file"):
        load_mapping(tmp_path / "none.toml", contract)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ShardError, match=r"latin\.toml is not UTF-8"):
        load_mapping(tmp_path / "latin.toml", contract)


def test_the_target_of_a_regression_can_be_converted(tmp_path: Path, contract: Contract) -> None:
    task = Task(kind="regression", label="loss", range=(0, 1))
    other = dataclasses.replace(contract, task=task)
    path = tmp_path / "mapping.toml"
    path.write_text("[units.loss]\nfactor = 0.01")
    assert load_mapping(path, other).translate("loss", "50") == 0.5


@pytest.mark.parametrize("raw", ["12,5", "1_0", "many", "", None, True, "inf", "nan", b"1", [1]])
def test_what_cannot_be_converted_comes_back_as_it_is(raw: object) -> None:
    mapping = ShardMapping(units={"x": Unit(factor=2)})
    assert mapping.translate("x", raw) is raw


@given(st.floats(-1e9, 1e9), st.floats(-1e3, 1e3).filter(bool), st.floats(-1e3, 1e3))
def test_a_unit_is_the_same_for_text_and_numbers(
    value: float, factor: float, offset: float
) -> None:
    mapping = ShardMapping(units={"x": Unit(factor=factor, offset=offset)})
    expected = value * factor + offset
    assert mapping.translate("x", value) == expected
    assert mapping.translate("x", f" {value!r} ") == expected
    assert mapping.translate("x", Decimal(repr(value))) == expected


def test_codes_are_compared_before_units_and_in_every_spelling() -> None:
    mapping = ShardMapping(
        values={"x": {"low": "1"}},
        units={"x": Unit(factor=10)},
        missing={"x": frozenset({"-999"})},
        missing_numbers={"x": frozenset({-999.0})},
    )
    assert mapping.translate("x", "low") == 10.0
    for raw in ("-999", -999, -999.0, " -999 ", "-999.00", Decimal("-999.0")):
        assert mapping.translate("x", raw) is None
    assert mapping.translate("x", -99.9) == -999.0
