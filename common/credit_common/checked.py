"""Frozen dataclasses from TOML tables, with errors that name table, key, value and bound."""

import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from credit_common.errors import ContractError

T = TypeVar("T")


def build(cls: type[T], table: object, where: str) -> T:
    """Make the dataclass `cls` from a TOML table.

    Args:
        cls: A frozen, keyword-only dataclass whose annotations are str, bool, int, float, Literal,
            tuples of these, a nested dataclass, or an optional of one of them.
        table: The parsed TOML value, which must be a table.
        where: Name of the table for error messages, for example "training.learning_rate".

    Raises:
        ContractError: On an unknown or missing key, or a value of another type.
    """
    if not isinstance(table, Mapping):
        raise ContractError(f"[{where}] must be a table, not {table!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    unknown = sorted(set(table) - set(fields))
    if unknown:
        known = ", ".join(sorted(fields))
        raise ContractError(f"[{where}] unknown key {unknown[0]!r}; known keys: {known}")
    hints = get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _coerce(hints[name], table[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ContractError(f"[{where}] key {name!r} is missing")
    return cls(**values)


def require(ok: bool, where: str, value: object, bound: str) -> None:
    """Raise a ContractError that names the key, its value and the bound unless `ok`."""
    if not ok:
        raise ContractError(f"{where} = {value!r}: must be {bound}")


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [h for h in get_args(hint) if h is not type(None)]
        for option in options[:-1]:
            try:
                return _coerce(option, value, where)
            except ContractError:
                continue
        return _coerce(options[-1], value, where)
    if origin is Literal:
        allowed = get_args(hint)
        require(value in allowed, where, value, "one of " + ", ".join(map(repr, allowed)))
        return value
    if origin is tuple:
        item, *rest = get_args(hint)
        require(isinstance(value, list | tuple), where, value, "a list")
        if rest and rest[0] is not Ellipsis:
            kinds = (item, *rest)
            require(len(value) == len(kinds), where, value, f"a list of {len(kinds)} values")
            return tuple(_coerce(k, v, where) for k, v in zip(kinds, value, strict=True))
        return tuple(_coerce(item, v, where) for v in value)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where) if not isinstance(value, hint) else value  # type: ignore[arg-type]
    if hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        ok = ok and abs(value) <= sys.float_info.max  # false for nan, and for integers too large
        require(ok, where, value, "a finite number")
        return float(value) + 0.0  # -0.0 becomes 0.0: one meaning, one digest
    if hint is int:
        require(isinstance(value, int) and not isinstance(value, bool), where, value, "an integer")
        return value
    require(isinstance(value, hint), where, value, f"of type {hint.__name__}")
    return value
