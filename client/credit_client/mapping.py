"""A merchant's own columns, codes and units -> the contract's: the file of `--mapping`.

    [columns]              # contract's name = merchant's column; the same name where left out
    age = "AGE_YEARS"

    [values.home]          # merchant's code = contract's code; works for the label too
    owned = "P"

    [units.income]         # contract's value = merchant's value * factor + offset
    factor = 0.001

    [constants]            # a column that the merchant does not have: one value for all rows
    country = "BR"

    [missing]              # merchant's codes that mean missing
    age = ["-999"]

A merchant's value is first compared with the missing codes, then recoded, then converted. Nothing
is learned from the rows: each cell is translated by itself.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from credit_common.checked import build
from credit_common.contract import Contract
from credit_common.errors import ContractError, ShardError
from credit_common.fields import (
    CategoryField,
    DroppedField,
    IdentifierField,
    NumberField,
    ProtectedField,
)
from credit_common.record import code_of

Constant = str | int | float
TABLES = ("columns", "values", "units", "constants", "missing")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """contract's value = merchant's value * factor + offset."""

    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ShardMapping:
    """How a merchant's file is read in the contract's terms; without entries, as it stands.

    Attributes:
        columns: Contract's name -> merchant's column.
        values: Contract's name -> merchant's code -> contract's code.
        units: Contract's name -> conversion of numbers.
        constants: Contract's name -> the value of all rows, in the contract's terms.
        missing: Contract's name -> merchant's codes that mean missing.
        missing_numbers: The same for number fields, so that "-999" also finds -999.00.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    units: Mapping[str, Unit] = field(default_factory=dict)
    constants: Mapping[str, Constant] = field(default_factory=dict)
    missing: Mapping[str, frozenset[str]] = field(default_factory=dict)
    missing_numbers: Mapping[str, frozenset[float]] = field(default_factory=dict)

    def column(self, name: str) -> str:
        """The merchant's column of a contract's name."""
        return self.columns.get(name, name)

    def touches(self, name: str) -> bool:
        """Whether `translate` does anything for the field."""
        return name in self.values or name in self.units or name in self.missing

    def translate(self, name: str, raw: object) -> object:
        """One cell of the merchant's file in the contract's terms.

        A cell that cannot be converted comes back as it is, for the record's checks to reject.
        """
        code = code_of(raw)
        if code in self.missing.get(name, ()):
            return None
        if name in self.missing_numbers and _number(raw) in self.missing_numbers[name]:
            return None
        if name in self.values:
            raw = self.values[name].get(code, raw)
        if name in self.units:
            number = _number(raw)
            unit = self.units[name]
            return raw if number is None else number * unit.factor + unit.offset
        return raw


def load_mapping(path: str | Path, contract: Contract) -> ShardMapping:
    """Read a mapping file and check it against the contract.

    Raises:
        ShardError: If the file cannot be read, or names a table, field or code that the contract
            does not have. A mapping is the holder's own text, so its entries are quoted.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ShardError(f"cannot read the mapping {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ShardError(f"the mapping {path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ShardError(f"{path}: not valid TOML: {error}") from None
    try:
        return _checked(tables, contract)
    except (ContractError, ShardError) as error:
        raise ShardError(f"{path}: {error}") from None


def _checked(tables: Mapping[str, object], contract: Contract) -> ShardMapping:
    for table in tables:
        if table not in TABLES:
            raise ShardError(f"unknown table [{table}]; known: {', '.join(TABLES)}")
    fields = {f.name: f for f in contract.fields}
    label, user = contract.task.label, contract.record.user
    read = {n for n, f in fields.items() if not isinstance(f, IdentifierField | DroppedField)}
    numbers = {n for n, f in fields.items() if isinstance(f, NumberField)}
    targets = numbers | ({label} if contract.task.kind == "regression" else set())
    named = {table: _entries(tables, table) for table in TABLES}
    for table, names, what in (
        ("columns", read | {label, user}, "a field or the label"),
        ("values", read | {label}, "a field that is read, or the label"),
        ("units", targets, "a number field"),
        ("constants", read, "a field that is read"),  # one user or one label for all rows is none
        ("missing", read | {label}, "a field that is read, or the label"),
    ):
        for name in named[table]:
            if name not in names:
                raise ShardError(f"[{table}] {name!r} is not the name of {what} of the contract")
    for name in named["constants"]:
        for table in ("columns", "values", "units", "missing"):
            if name in named[table]:
                raise ShardError(f"[constants] {name!r} is also in [{table}]; give one of them")
    missing = {name: _codes(f"missing.{name}", codes) for name, codes in named["missing"].items()}
    return ShardMapping(
        columns={name: _text(f"columns.{name}", to) for name, to in named["columns"].items()},
        values={name: _recoding(contract, name, to) for name, to in named["values"].items()},
        units={name: _unit(f"units.{name}", table) for name, table in named["units"].items()},
        constants={name: _constant(name, to) for name, to in named["constants"].items()},
        missing=missing,
        missing_numbers={
            name: frozenset(n for n in map(_number, missing[name]) if n is not None)
            for name in missing.keys() & targets
        },
    )


def _entries(tables: Mapping[str, object], name: str) -> Mapping[str, object]:
    table = tables.get(name, {})
    if not isinstance(table, Mapping):
        raise ShardError(f"[{name}] must be a table, not {table!r}")
    return table


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ShardError(f"{where} = {value!r}: must be a text that is not empty")
    return value.strip()


def _constant(name: str, value: object) -> Constant:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ShardError(f"constants.{name} = {value!r}: must be a text or a number")
    return value


def _codes(where: str, codes: object) -> frozenset[str]:
    ok = isinstance(codes, list) and all(
        isinstance(code, str | int | float) and not isinstance(code, bool) for code in codes
    )
    if not ok:
        raise ShardError(f"{where} = {codes!r}: must be a list of codes")
    assert isinstance(codes, list)
    return frozenset(map(code_of, codes))


def _unit(where: str, table: object) -> Unit:
    unit = build(Unit, table, where)
    if unit.factor == 0:
        raise ShardError(f"{where}.factor = {unit.factor!r}: must not be 0")
    return unit


def _recoding(contract: Contract, name: str, table: object) -> Mapping[str, str]:
    if not isinstance(table, Mapping):
        raise ShardError(f"[values.{name}] must be a table, not {table!r}")
    task = contract.task
    known: tuple[str, ...] = (*task.positive, *task.negative, *task.classes)
    for declared in contract.fields:
        if declared.name == name:
            known = declared.values if isinstance(declared, CategoryField | ProtectedField) else ()
    codes = {code_of(old): _text(f"values.{name}.{old}", new) for old, new in table.items()}
    for old, new in codes.items():
        if known and new not in known:
            raise ShardError(
                f"values.{name}.{old} = {new!r}: must be one of the contract's codes, "
                + ", ".join(map(repr, known))
            )
    return codes


def _number(raw: object) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float | Decimal):
        return None
    if isinstance(raw, str) and "_" in raw:  # float() would read 1_000
        return None
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
