"""docs/contract.md names every key of a contract with its default, and its example is whole."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from credit_common.contract import Contract, parse_contract
from credit_common.fields import KINDS
from credit_common.privacy import mechanism_plan
from credit_common.quantiles import Quantiles

PAGE = (Path(__file__).parents[1] / "docs" / "contract.md").read_text(encoding="utf-8")
TABLES = [f.name for f in dataclasses.fields(Contract) if f.name not in ("fields", "reasons")]
NOT_A_KEY = {"name", "kind", "quantiles"}
"""Of a field: told once for all of them, or not in the file."""


def told(part):
    """Key -> its default as the page has it, of the tables in a part of the page."""
    rows = re.findall(r"^\| (\w+) \| (.+?) \| .+? \| .+? \|$", part, re.M)
    return {key: default for key, default in rows if key != "key"}


def parts():
    """Heading -> what stands under it."""
    found = re.split(r"^### (.+)$", PAGE, flags=re.M)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def default_of(field):
    """A dataclass field's default, as a value of TOML would be read."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = field.default
    return "-" if value is dataclasses.MISSING else plain(value)


def plain(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, tuple) and value and all(isinstance(each, tuple) for each in value):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def read(shown):
    if shown in ("-", "none"):
        return {"-": "-", "none": None}[shown]
    return tomllib.loads(f"x = {shown}")["x"]


def same(shown, default):
    return read(shown) == default or (read(shown) in ({}, []) and default in ({}, []))


@pytest.mark.parametrize("name", TABLES)
def test_every_key_of_a_table_stands_there_with_its_default(name, contract):
    cls = type(getattr(contract, name))
    shown = told(parts()[f"[{name}]"])
    fields = {f.name: f for f in dataclasses.fields(cls)}
    assert set(shown) == set(fields)
    for key, field in fields.items():
        assert same(shown[key], default_of(field)), key


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_field_stands_there_with_its_default(kind):
    shown = told(parts()[kind])
    fields = {f.name: f for f in dataclasses.fields(KINDS[kind]) if f.name not in NOT_A_KEY}
    if kind == "number":
        fields |= {f.name: f for f in dataclasses.fields(Quantiles)}
    assert set(shown) == set(fields)
    for key, field in fields.items():
        assert same(shown[key], default_of(field)), key


def test_the_smallest_contract_is_one():
    (text,) = re.findall(r"```toml\n(.+?)```", PAGE, re.S)
    contract = parse_contract(text)
    assert contract.privacy.epsilon == 8
    assert [f.kind for f in contract.fields] == ["identifier", "number", "category"]
    assert mechanism_plan(contract, contract.privacy.size_classes[0][0])
