import dataclasses
import math
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_common.contract import Contract
from credit_common.fields import (
    CategoryField,
    DroppedField,
    EventEdges,
    EventsField,
    Field,
    NumberField,
    ProtectedField,
    TextField,
    TimeField,
)
from credit_common.record import (
    OTHER,
    RejectedValueError,
    aggregate_events,
    code_of,
    make_record,
    parse_label,
    parse_value,
)
from credit_common.sections import Task

CLIPPED = NumberField(name="x", range=(0, 10), edges=(5,))
JOB = CategoryField(name="job", values=("a", "none"))
STRICT = CategoryField(name="job", values=("a", "b"), unknown="reject", missing="reject")
EVENTS = EventsField(
    name="e",
    windows=(7, 30),
    aggregations=("sum", "count", "recency", "mean"),
    edges=EventEdges(sum=(1,), count=(1,), recency=(1,), mean=(1,)),
    until="at",
)
AT = TimeField(name="at")
MISSING = ["", "  ", "NA", "n/a", "NaN", "null", "None", None, math.nan]


def number(**options: object) -> NumberField:
    return NumberField(name="x", range=(0, 10), edges=(5,), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "value"),
    [("3", 3.0), (" 3.5 ", 3.5), (3, 3.0), (Decimal("3.25"), 3.25), ("1e1", 10.0), ("-0", 0.0)],
)
def test_a_number_inside_its_range_is_itself(raw: object, value: float) -> None:
    assert parse_value(CLIPPED, raw) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_outside_its_range_a_number_is_clipped_missing_imputed_or_rejected(value: float) -> None:
    inside = 0 <= value <= 10
    assert parse_value(CLIPPED, repr(value)) == min(max(value, 0.0), 10.0)
    assert parse_value(number(outside="missing"), value) == (value if inside else None)
    imputing = number(outside="missing", missing="impute", impute=4.0)
    assert parse_value(imputing, value) == (value if inside else 4.0)
    if inside:
        assert parse_value(number(outside="reject"), value) == value
    else:
        for refusing in (number(outside="reject"), number(outside="missing", missing="reject")):
            with pytest.raises(RejectedValueError):
                parse_value(refusing, value)


@pytest.mark.parametrize(
    "raw", ["1_0", "3,5", "three", "inf", "-Infinity", "1e999", 10**400, True, b"3", [3]]
)
def test_what_is_no_finite_number_is_rejected(raw: object) -> None:
    with pytest.raises(RejectedValueError, match=r"^x: (not|number)"):
        parse_value(CLIPPED, raw)


@pytest.mark.parametrize("raw", MISSING)
def test_missing_becomes_a_cell_a_constant_or_a_reject(raw: object) -> None:
    assert parse_value(number(), raw) is None
    assert parse_value(number(missing="impute", impute=7), raw) == 7
    assert parse_value(TextField(name="t"), raw) is None
    assert parse_value(AT, raw) is None
    assert parse_value(EVENTS, raw) is None
    for refusing in (number(missing="reject"), STRICT):
        with pytest.raises(RejectedValueError, match="missing"):
            parse_value(refusing, raw)
    imputing = CategoryField(name="c", values=("a", "b"), missing="impute", impute="b")
    assert parse_value(imputing, raw) == "b"


def test_a_declared_code_wins_over_a_missing_text() -> None:
    assert parse_value(JOB, "none") == "none"
    assert parse_value(JOB, None) is None
    assert parse_value(JOB, "") is None
    assert parse_value(ProtectedField(name="p", values=("na", "b")), "na") == "na"


def test_a_code_outside_the_vocabulary_is_other_or_rejected() -> None:
    assert parse_value(JOB, "z") == OTHER
    assert parse_value(ProtectedField(name="p", values=("f", "m")), "x") == OTHER
    with pytest.raises(RejectedValueError, match="category outside"):
        parse_value(STRICT, "z")


@pytest.mark.parametrize("raw", [2, 2.0, "2", " 2 ", Decimal("2.00")])
def test_a_code_is_the_same_in_text_and_typed_files(raw: object) -> None:
    assert code_of(raw) == "2"


def test_free_text_is_masked_before_it_is_cut() -> None:
    field = TextField(name="t", max_chars=30)
    assert parse_value(field, "a" * 22 + "\n 138 0013 8000") == "a" * 22 + " [phone]"
    assert parse_value(TextField(name="t", max_chars=8), "13800138000") == "[phone]"


@pytest.mark.parametrize(
    ("raw", "form"),
    [
        ("2024-02-29", ""),
        ("2024-02-29T00:00:00Z", ""),
        ("2024-02-29 02:00:00+02:00", ""),
        ("29/02/2024", "%d/%m/%Y"),
        (date(2024, 2, 29), ""),
        (datetime(2024, 2, 29), ""),
        (datetime(2024, 2, 29, tzinfo=UTC), ""),
    ],
)
def test_a_time_is_days_since_1970_whatever_its_spelling(raw: object, form: str) -> None:
    assert parse_value(TimeField(name="at", format=form), raw) == 19782.0


@pytest.mark.parametrize("raw", ["29/02/2024", "2023-02-29", "yesterday", 5, "0000-01-01"])
def test_what_is_no_time_is_rejected(raw: object) -> None:
    with pytest.raises(RejectedValueError, match="at: not a time"):
        parse_value(AT, raw)


@pytest.mark.parametrize(
    "raw",
    [
        "5",
        '"text"',
        "{",
        "[" * 100_000,
        '{"time": "2024-01-01", "value": 1}',
        '[{"time": "2024-01-01"}]',
        '[{"time": "2024-01-01", "value": NaN}]',
        '[{"time": "2024-01-01", "value": "Jane"}]',
        '[{"time": null, "value": 1}]',
        "[[1, 2]]",
        b"[]",
        7,
    ],
)
def test_what_is_no_list_of_events_is_rejected(raw: object) -> None:
    with pytest.raises(RejectedValueError, match=r"^e: "):
        parse_value(EVENTS, raw)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()))
def test_any_cell_is_a_value_or_a_reject_that_does_not_quote_it(raw: object) -> None:
    for field in (CLIPPED, JOB, STRICT, TextField(name="t"), AT, EVENTS):
        told = ""
        try:
            parse_value(field, raw)
        except RejectedValueError as rejected:
            told = f"{rejected} ({rejected.field})"
        assert told in {"", *(f"{field.name}: {reason} ({field.name})" for reason in REASONS)}


REASONS = (
    "missing",
    "not a number",
    "number out of bounds",
    "not finite",
    "category outside the contract's values",
    "not a time",
    "not a JSON list of events",
    "not a list of events",
    "an event without time and value",
)


def test_identifiers_and_dropped_columns_are_never_read(contract: Contract) -> None:
    unread: list[Field] = [DroppedField(name="d"), contract.fields[0]]
    for field in unread:
        with pytest.raises(TypeError, match="not read"):
            parse_value(field, "x")


def naive(events: list[tuple[float, float]], until: float) -> dict[str, float | None]:
    """The windows of `EVENTS` by counting, one event after the other."""
    out: dict[str, float | None] = {}
    for days in (7, 30):
        amounts = [a for day, a in events if until - days < day <= until]
        out[f"e_sum_{days}d"] = sum(amounts)
        out[f"e_count_{days}d"] = float(len(amounts))
        out[f"e_mean_{days}d"] = sum(amounts) / len(amounts) if amounts else None
    ages = [until - day for day, _ in events if day <= until]
    out["e_recency"] = min(ages) if ages else None
    return out


@given(
    st.lists(st.tuples(st.integers(-60, 20).map(float), st.integers(-99, 99).map(float))),
    st.integers(-5, 5).map(float),
)
def test_windows_agree_with_counting(events: list[tuple[float, float]], until: float) -> None:
    made = aggregate_events(EVENTS, tuple(events), until)
    expected = naive(events, until)
    assert list(made) == [n.name for n in EVENTS.numbers()]
    assert made == pytest.approx(expected)


@given(
    st.lists(st.tuples(st.integers(-60, 20).map(float), st.just(1.0)), max_size=12), st.randoms()
)
def test_the_order_of_events_means_nothing(
    events: list[tuple[float, float]], source: random.Random
) -> None:
    turned = list(events)
    source.shuffle(turned)
    assert aggregate_events(EVENTS, tuple(turned), 0.0) == aggregate_events(
        EVENTS, tuple(events), 0.0
    )


def test_only_the_latest_events_before_the_time_are_read() -> None:
    few = EventsField(
        name="e",
        windows=(30,),
        aggregations=("sum", "count"),
        edges=EventEdges(sum=(1,), count=(1,)),
        until="at",
        max_events=2,
    )
    events = ((5.0, 100.0), (-1.0, 1.0), (-9.0, 4.0), (-2.0, 2.0))
    assert aggregate_events(few, events, 0.0) == {"e_sum_30d": 3.0, "e_count_30d": 2.0}


def test_without_a_time_every_number_of_an_event_list_is_missing() -> None:
    assert set(aggregate_events(EVENTS, ((1.0, 1.0),), None).values()) == {None}


def test_huge_amounts_stay_finite() -> None:
    raw = [{"time": "1970-01-01", "value": 1e308}] * 5
    events = parse_value(EVENTS, raw)
    assert isinstance(events, tuple)
    total = aggregate_events(EVENTS, events, 0.0)["e_sum_7d"]
    assert total is not None
    assert math.isfinite(total)


def test_events_of_text_and_of_typed_files_agree() -> None:
    moment = datetime(2024, 1, 1, 12, tzinfo=UTC)
    typed = [{"time": moment + timedelta(days=i), "value": float(i)} for i in range(3)]
    text = (
        '[{"time": "2024-01-01T12:00Z", "value": 0}, {"time": "2024-01-02T12:00Z", "value": "1"},'
        ' {"time": "2024-01-03T12:00Z", "value": 2.0}]'
    )
    assert parse_value(EVENTS, typed) == parse_value(EVENTS, text)


@pytest.mark.parametrize(("raw", "label"), [("1", 1.0), (1, 1.0), (1.0, 1.0), (" 0", 0.0)])
def test_a_binary_label_is_one_for_the_event(contract: Contract, raw: object, label: float) -> None:
    assert parse_label(contract, raw) == label


@pytest.mark.parametrize("raw", ["2", "yes", True, *MISSING])
def test_a_label_outside_its_set_is_rejected(contract: Contract, raw: object) -> None:
    with pytest.raises(RejectedValueError, match=r"^defaulted: label (missing|outside its set)$"):
        parse_label(contract, raw)


def test_classes_are_numbered_and_targets_scaled(contract: Contract) -> None:
    several = Task(kind="multiclass", label="y", classes=("low", "none", "high"))
    many = dataclasses.replace(contract, task=several)
    assert [parse_label(many, raw) for raw in several.classes] == [0.0, 1.0, 2.0]
    ranged = dataclasses.replace(
        contract, task=Task(kind="regression", label="y", range=(10.0, 20.0))
    )
    assert [parse_label(ranged, raw) for raw in ("10", 15, "20")] == [0.0, 0.5, 1.0]
    for raw in ("9.99", "inf", "x", True):
        with pytest.raises(RejectedValueError, match=r"^y: "):
            parse_label(ranged, raw)


def test_a_record_holds_inputs_and_protected_codes_apart(contract: Contract) -> None:
    values = {"user": "U", "phone": "P", "secret": "S", "age": 30.0, "sex": "f", "at": 1.0}
    record = make_record(contract, values, 1.0)
    assert record.protected == {"sex": "f"}
    assert record.label == 1.0
    assert record.values["age"] == 30.0
    assert {"user", "phone", "secret", "sex", "at", "orders"}.isdisjoint(record.values)
    assert {f.name for f in contract.wide_fields} | {"note"} == set(record.values)
