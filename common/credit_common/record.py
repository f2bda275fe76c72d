"""One user's raw values -> validated values: types, ranges, units, missing.

Everything here reads one record and the contract, never other records (privacy specification, rows
4 and 17).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from credit_common.contract import Contract
from credit_common.fields import (
    EVENT_RANGE,
    CategoryField,
    EventsField,
    Field,
    NumberField,
    ProtectedField,
    TextField,
    TimeField,
)
from credit_common.masking import mask_identifiers

MISSING_TEXT = frozenset({"", "na", "n/a", "nan", "null", "none"})
DAY = 86_400.0
_NUMERIC = (int, float, str, Decimal)
_CODED = (CategoryField, ProtectedField)  # tuples: a union is built anew at each look
_SINGLE = (NumberField, CategoryField, TextField)

Value = float | str | tuple[tuple[float, float], ...] | None
"""A number or time (days since 1970, UTC), a code or text, events as (day, amount), or missing."""


class RejectedValueError(ValueError):
    """A value that makes its row unusable. Carries field and reason, never the value."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Record:
    """One user's validated values by field; event lists are already aggregated numbers.

    Attributes:
        values: Numbers and categories of `contract.wide_fields` and texts; None where missing.
        protected: Codes of the protected fields, for group gaps only.
        label: 0.0 or 1.0 (binary), the class index, the scaled target, or None where unknown.
    """

    values: Mapping[str, float | str | None]
    protected: Mapping[str, str | None]
    label: float | None


def parse_value(field: Field, raw: object) -> Value:
    """Check one raw value of a shard against its field.

    Args:
        field: A field of the contract that is read (not an identifier or dropped one).
        raw: A cell of a CSV (str) or Parquet file (str, number, bool, datetime, None).

    Returns:
        The value in the contract's terms, or None where it is missing.

    Raises:
        RejectedValueError: If the contract rejects the row for it.
    """
    if isinstance(field, _CODED):
        return _code(field, raw)
    if is_missing(raw):
        return _missing(field)
    if isinstance(field, NumberField):
        return _number(field, raw)
    if isinstance(field, TextField):
        text = re.sub(r"\s+", " ", str(raw)).strip()
        return mask_identifiers(text)[: field.max_chars]
    if isinstance(field, TimeField):
        return _day(field.name, raw, field.format)
    if isinstance(field, EventsField):
        return _events(field, raw)
    raise TypeError(f"{field.kind} fields are not read")


OTHER = "\x00other"
"""Code of a category outside the vocabulary; no shard can hold it (it has a NUL)."""


def is_missing(raw: object) -> bool:
    """Whether a raw cell counts as missing."""
    if isinstance(raw, str):
        return raw.strip().lower() in MISSING_TEXT
    return raw is None or (isinstance(raw, float) and math.isnan(raw))


def code_of(raw: object) -> str:
    """A category's code as text: 2.0 and 2 of a typed file are both "2"."""
    if isinstance(raw, str):
        return raw.strip()
    if isinstance(raw, float | Decimal) and math.isfinite(raw) and raw == int(raw):
        raw = int(raw)
    return str(raw).strip()


def parse_label(contract: Contract, raw: object) -> float:
    """The label of a row as a number (see `Record.label`).

    Raises:
        RejectedValueError: If it is missing or outside the contract's set.
    """
    task = contract.task
    declared = (*task.positive, *task.negative, *task.classes)
    if is_missing(raw) and not (isinstance(raw, str) and raw.strip() in declared):
        raise RejectedValueError(task.label, "label missing")
    if task.kind == "regression":
        assert task.range is not None  # Task checks it
        low, high = task.range
        value = _float(task.label, raw)
        if not low <= value <= high:
            raise RejectedValueError(task.label, "label outside its range")
        return (value - low) / (high - low)
    code = code_of(raw)
    if task.kind == "multiclass" and code in task.classes:
        return float(task.classes.index(code))
    if code in task.positive:
        return 1.0
    if code in task.negative:
        return 0.0
    raise RejectedValueError(task.label, "label outside its set")


def make_record(contract: Contract, values: Mapping[str, Value], label: float | None) -> Record:
    """Aggregate event lists and sort one user's checked values into a record."""
    kept: dict[str, float | str | None] = {}
    protected: dict[str, str | None] = {}
    for field in contract.fields:
        value = values.get(field.name)
        if isinstance(field, EventsField):
            assert isinstance(value, tuple | None)
            until = values.get(field.until)
            assert isinstance(until, float | None)
            kept.update(aggregate_events(field, value or (), until))
        elif isinstance(field, ProtectedField):
            assert isinstance(value, str | None)
            protected[field.name] = value
        elif isinstance(field, _SINGLE):
            assert not isinstance(value, tuple)
            kept[field.name] = value
    return Record(values=kept, protected=protected, label=label)


def aggregate_events(
    field: EventsField, events: tuple[tuple[float, float], ...], until: float | None
) -> dict[str, float | None]:
    """Window aggregations of one user's events.

    Args:
        field: The event list's declaration.
        events: (day, amount) pairs of all rows in any order; those after `until` are not counted,
            nor are those beyond the `field.max_events` latest ones before it.
        until: Day that the windows end at; None leaves every number missing.

    Returns:
        One entry for each of `field.numbers()`. Sum and count of an empty window are 0, its mean
        and the recency of an empty list are missing.
    """
    out: dict[str, float | None] = {}
    past: list[tuple[float, float]] = []
    if until is not None:
        past = sorted((until - day, amount) for day, amount in events if day <= until)
    past = past[: field.max_events]
    for number in field.numbers():
        name, _, window = number.name.removeprefix(f"{field.name}_").partition("_")
        if until is None:
            out[number.name] = None
        elif name == "recency":
            out[number.name] = min((age for age, _ in past), default=None)
        else:
            amounts = [amount for age, amount in past if age < float(window.removesuffix("d"))]
            if name == "count":
                out[number.name] = float(len(amounts))
            elif name == "sum":
                out[number.name] = math.fsum(amounts)
            else:
                out[number.name] = math.fsum(amounts) / len(amounts) if amounts else None
    return out


def _missing(field: Field) -> Value:
    if isinstance(field, NumberField | CategoryField):
        if field.missing == "reject":
            raise RejectedValueError(field.name, "missing")
        return field.impute if field.missing == "impute" else None
    return None


def _code(field: CategoryField | ProtectedField, raw: object) -> str | None:
    code = code_of(raw)
    if code in field.values and (isinstance(raw, str) or not is_missing(raw)):
        return code  # before missing texts: "none" can be a declared code
    if is_missing(raw):
        missing = _missing(field)
        assert isinstance(missing, str | None)
        return missing
    if isinstance(field, CategoryField) and field.unknown == "reject":
        raise RejectedValueError(field.name, "category outside the contract's values")
    return OTHER


def _float(name: str, raw: object) -> float:
    underscore = isinstance(raw, str) and "_" in raw  # float() would read 1_000
    if underscore or not isinstance(raw, _NUMERIC) or isinstance(raw, bool):
        raise RejectedValueError(name, "not a number")
    try:
        value = float(raw)
    except ValueError:
        raise RejectedValueError(name, "not a number") from None
    except OverflowError:
        raise RejectedValueError(name, "number out of bounds") from None
    if not math.isfinite(value):
        raise RejectedValueError(name, "not finite")
    return value


def _number(field: NumberField, raw: object) -> float | None:
    value = _float(field.name, raw)
    low, high = field.range
    if low <= value <= high:
        return value
    if field.outside == "reject":
        raise RejectedValueError(field.name, "outside its range")
    if field.outside == "missing":
        missing = _missing(field)
        assert isinstance(missing, float | None)
        return missing
    return min(max(value, low), high)


def _day(name: str, raw: object, form: str) -> float:
    if isinstance(raw, datetime):
        moment = raw
    elif isinstance(raw, date):  # of a Parquet file
        moment = datetime(raw.year, raw.month, raw.day)
    else:
        try:
            text = str(raw).strip()
            moment = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
        except ValueError:
            raise RejectedValueError(name, "not a time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() / DAY


def _events(field: EventsField, raw: object) -> tuple[tuple[float, float], ...]:
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            raise RejectedValueError(field.name, "not a JSON list of events") from None
    if not hasattr(raw, "__iter__") or isinstance(raw, Mapping | str):
        raise RejectedValueError(field.name, "not a list of events")
    events = []
    for item in raw:
        if not isinstance(item, Mapping) or not {"time", "value"} <= set(item):
            raise RejectedValueError(field.name, "an event without time and value")
        amount = min(max(_float(field.name, item["value"]), EVENT_RANGE[0]), EVENT_RANGE[1])
        events.append((_day(field.name, item["time"], ""), amount))
    return tuple(events)
