"""A contract -> the pydantic model of a record to score, and what OpenAPI says of it.

The model looks at the types of JSON alone. Ranges, codes and missing values are the contract's
business, see `reading`; the JSON schema of a field says all that both will have, no more and no
less.
"""

import sys
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema, create_model

from credit_common.contract import Contract
from credit_common.fields import (
    CategoryField,
    EventsField,
    NumberField,
    TextField,
    TimeField,
)

LONGEST_TEXT = 20_000
"""Characters of a text; a contract keeps no more."""
MOST_EVENTS = 100_000
"""Events of a list; a contract reads no more."""

Scored = NumberField | CategoryField | TextField | EventsField | TimeField
_MISSING = (
    r"^[\s\x1c-\x1f\x85]*"
    r"([nN]/?[aA]|[nN][aA][nN]|[nN][uU][lL][lL]|[nN][oO][nN][eE])?"
    r"[\s\x1c-\x1f\x85]*$"
)
"""The texts that a shard's cell is missing by, `credit_common.record.MISSING_TEXT`."""
_ANY_NUMBER = {
    "type": "number",
    "minimum": -sys.float_info.max,
    "maximum": sys.float_info.max,
}
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
_DIRECTIVES = {
    "%Y": "[0-9]{4}",
    "%m": "(0[1-9]|1[0-2])",
    "%d": "(0[1-9]|[12][0-9]|3[01])",
    "%H": "([01][0-9]|2[0-3])",
    "%M": "[0-5][0-9]",
    "%S": "[0-5][0-9]",
}
_ISO: list[dict[str, Any]] = [
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
]


class Event(BaseModel):
    """An event of a list: ISO 8601 date or time (UTC where it names no zone), and its amount."""

    model_config = _STRICT
    time: Annotated[str, StringConstraints(max_length=100), WithJsonSchema({"anyOf": _ISO})]
    value: Annotated[float, WithJsonSchema(_ANY_NUMBER)]


def read_fields(contract: Contract) -> tuple[Scored, ...]:
    """What a record is scored by; of the times only those that windows of events end at."""
    ends = {field.until for field in contract.fields if isinstance(field, EventsField)}
    return tuple(
        field
        for field in contract.fields
        if isinstance(field, NumberField | CategoryField | TextField | EventsField)
        or (isinstance(field, TimeField) and field.name in ends)
    )


def record_model(contract: Contract) -> type[BaseModel]:
    """The model of one record's JSON; its attributes are f0, f1, ... of `read_fields`.

    A field that may be missing may be null or left out. No other field is taken.
    """
    made: dict[str, Any] = {}
    for i, field in enumerate(read_fields(contract)):
        kind, schema, words = _told(field)
        if isinstance(field, EventsField):
            told = Field(default=None, alias=field.name, title=field.name, description=words)
            made[f"f{i}"] = (kind | None, told)
        elif required(field):
            made[f"f{i}"] = (
                Annotated[kind, WithJsonSchema(schema)],
                Field(alias=field.name, title=field.name, description=words),
            )
        else:
            options = [*schema.get("anyOf", [schema]), {"type": "null"}]
            made[f"f{i}"] = (
                Annotated[kind | None, WithJsonSchema({"anyOf": options})],
                Field(default=None, alias=field.name, title=field.name, description=words),
            )
    words = f"A record of {contract.federation.name}. {contract.federation.description}".strip()
    return create_model("Record", __config__=_STRICT, __doc__=words, **made)


def required(field: Scored) -> bool:
    """Whether a record without the field is refused."""
    return isinstance(field, NumberField | CategoryField) and field.missing == "reject"


def _told(field: Scored) -> tuple[Any, dict[str, Any], str]:
    """Type, JSON schema of what is not null, and description."""
    if isinstance(field, NumberField):
        return float, _number(field), _number_words(field)
    if isinstance(field, CategoryField):
        return _text(), _category(field), _category_words(field)
    if isinstance(field, TextField):
        words = f"Text; the first {field.max_chars} characters are read, identifiers masked. "
        schema = {"type": "string", "maxLength": LONGEST_TEXT}
        return _text(), schema, words + _missing_words(field)
    if isinstance(field, TimeField):
        form = f"in the format {field.format}" if field.format else "in ISO 8601"
        words = f"A time {form}, UTC where it names no zone. Events are counted back from it. "
        empty = {"type": "string", "pattern": _MISSING}
        return _text(), {"anyOf": [*_times(field.format), empty]}, words + _missing_words(field)
    words = f"Events in any order; the {field.max_events} latest ones up to {field.until} count. "
    kind = Annotated[list[Event], Field(max_length=MOST_EVENTS, fail_fast=True)]
    return kind, {}, words + _missing_words(field)


def _text() -> Any:
    return Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]


def _number(field: NumberField) -> dict[str, Any]:
    unread = field.outside == "missing" and field.missing == "reject"
    if field.outside != "reject" and not unread:
        return _ANY_NUMBER
    return {"type": "number", "minimum": field.range[0], "maximum": field.range[1]}


def _category(field: CategoryField) -> dict[str, Any]:
    codes = {"type": "string", "enum": list(field.values)}
    empty = {"type": "string", "pattern": _MISSING}
    anything: dict[str, Any] = {"type": "string", "maxLength": LONGEST_TEXT}
    if field.missing == "reject":
        other = {**anything, "not": {"pattern": _MISSING}}
        return codes if field.unknown == "reject" else {"anyOf": [codes, other]}
    return {"anyOf": [codes, empty]} if field.unknown == "reject" else anything


def _times(form: str) -> list[dict[str, Any]]:
    """What a time looks like; a format with names of days or months says nothing of it."""
    if not form:
        return _ISO
    pattern = "".join(f"\\{c}" if c in r".\/-+*?()[]{}|^$" else c for c in form)
    for directive, digits in _DIRECTIVES.items():
        pattern = pattern.replace(directive, digits)
    if "%" in pattern:
        return [{"type": "string", "maxLength": LONGEST_TEXT}]
    return [{"type": "string", "pattern": f"^{pattern}$"}]


def _number_words(field: NumberField) -> str:
    low, high = field.range
    unit = f" {field.unit}" if field.unit else ""
    outside = {
        "clip": "is moved to its nearer end",
        "missing": "counts as missing",
        "reject": "is refused",
    }[field.outside]
    words = f"Number from {low:g} to {high:g}{unit}; what lies outside {outside}. "
    return words + _missing_words(field)


def _category_words(field: CategoryField) -> str:
    labels = field.labels or ("",) * len(field.values)
    said = [
        f"{code!r} ({label})" if label else repr(code)
        for code, label in zip(field.values, labels, strict=True)
    ]
    unknown = "another code is refused" if field.unknown == "reject" else "another code is `other`"
    return f"One of {', '.join(said)}; {unknown}. " + _missing_words(field)


def _missing_words(field: Scored) -> str:
    if required(field):
        return "It must be given."
    if isinstance(field, NumberField | CategoryField) and field.missing == "impute":
        return f"Null or left out, it counts as {field.impute!r}."
    return "Null or left out, it is missing."
