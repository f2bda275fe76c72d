import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_common.contract import Contract
from credit_common.record import OTHER, Record, RejectedValueError, make_record, parse_value
from credit_common.text import record_text, wide_features, wide_names, wide_width

SENTINEL = "Zaphod-4242"


def record(contract: Contract, **raw: object) -> Record:
    """A record of raw cells; the fields that are left out are missing."""
    cells = {"income": "20", **raw}
    values = {
        f.name: parse_value(f, cells.get(f.name))
        for f in contract.fields
        if f.kind not in ("identifier", "dropped")
    }
    return make_record(contract, values, None)


def lit(contract: Contract, made: Record) -> set[str]:
    """Names of the wide features that are not zero, positions left out."""
    row = wide_features(contract, made)
    names = wide_names(contract)
    return {n for n, x in zip(names, row, strict=True) if x and not n.endswith("position")}


def test_each_field_says_its_own_phrase_in_the_contracts_order(contract: Contract) -> None:
    made = record(contract, age=30, income=12.5, home="P", job="clerk", note="on 138 0013 8000")
    text = record_text(contract, made)
    assert text == "age 30 income 12.5 who owns a home works as clerk on [phone]"


def test_missing_unknown_and_unnamed_values_say_nothing(contract: Contract) -> None:
    assert record_text(contract, record(contract)) == "income 20"
    for home in ("none", "somewhere", None):
        assert record_text(contract, record(contract, home=home)) == "income 20"


def test_event_lists_speak_through_their_windows(contract: Contract) -> None:
    orders = '[{"time": "2024-01-03", "value": 12}, {"time": "2023-12-20", "value": 8}]'
    text = record_text(contract, record(contract, at="2024-01-05", orders=orders))
    assert "orders sum 7d 12 orders sum 30d 20" in text
    assert "orders recency 2" in text
    assert "orders mean 30d 10" in text


def test_braces_in_a_users_text_are_only_text(contract: Contract) -> None:
    assert record_text(contract, record(contract, note="{} {age}")).endswith("{} {age}")


def test_text_and_numbers_are_the_same_with_and_without_a_label(contract: Contract) -> None:
    scored = record(contract, age=44, home="R", note="late twice", sex="f")
    for label, sex in ((0.0, "f"), (1.0, "m"), (1.0, None)):
        trained = dataclasses.replace(scored, label=label, protected={"sex": sex})
        assert record_text(contract, trained) == record_text(contract, scored)
        assert np.array_equal(wide_features(contract, trained), wide_features(contract, scored))


def test_what_is_no_input_reaches_neither_text_nor_names(contract: Contract) -> None:
    values = {"user": SENTINEL, "phone": SENTINEL, "secret": SENTINEL, "sex": SENTINEL}
    made = make_record(contract, values, 1.0)
    assert SENTINEL not in record_text(contract, made)
    without = make_record(contract, {}, 0.0)
    assert np.array_equal(wide_features(contract, made), wide_features(contract, without))
    for name in wide_names(contract):
        assert not name.startswith(("user", "phone", "secret", "sex", "defaulted"))


@pytest.mark.parametrize(
    ("age", "cell"),
    [
        (18, "age [, 25)"),
        (24.999, "age [, 25)"),
        (25, "age [25, 40)"),
        (60, "age [60, )"),
        (1000, "age [60, )"),
        (None, "age missing"),
    ],
)
def test_a_number_lights_its_bin_alone(contract: Contract, age: object, cell: str) -> None:
    found = {n for n in lit(contract, record(contract, age=age)) if n.startswith("age ")}
    assert found == {cell}


@pytest.mark.parametrize(
    ("home", "cell"), [("P", "P"), ("none", "none"), ("x", "other"), (None, "missing")]
)
def test_a_category_lights_its_code_alone(contract: Contract, home: object, cell: str) -> None:
    found = {n for n in lit(contract, record(contract, home=home)) if n.startswith("home ")}
    assert found in ({f"home = {cell}"}, {f"home {cell}"})


def test_positions_rise_with_the_bins_from_minus_to_plus(contract: Contract) -> None:
    place = wide_names(contract).index("age position")
    row = [wide_features(contract, record(contract, age=a)) for a in (20, 30, 50, 70)]
    positions = [float(r[place] / r[0]) for r in row]
    assert positions == pytest.approx([-1, -1 / 3, 1 / 3, 1])


def test_names_and_width_agree(contract: Contract) -> None:
    names = wide_names(contract)
    assert len(names) == len(set(names)) == wide_width(contract)
    assert wide_features(contract, record(contract)).shape == (wide_width(contract),)
    assert wide_features(contract, record(contract)).dtype == np.float32


NUMBER = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@given(st.data())
def test_no_record_has_a_wide_row_longer_than_one(contract: Contract, data: st.DataObject) -> None:
    values: dict[str, float | str | None] = {}
    for field in contract.wide_fields:
        codes = getattr(field, "values", None)
        values[field.name] = data.draw(
            NUMBER if codes is None else st.sampled_from([*codes, OTHER, None])
        )
    row = wide_features(contract, Record(values=values, protected={}, label=None))
    assert np.linalg.norm(row.astype(np.float64)) <= 1.0
    assert row[0] > 0


def test_the_longest_wide_row_uses_the_bound(contract: Contract) -> None:
    values: dict[str, float | str | None] = {
        f.name: (1e9 if f.kind == "number" else f.values[0]) for f in contract.wide_fields
    }
    row = wide_features(contract, Record(values=values, protected={}, label=None))
    assert 0.9999 < np.linalg.norm(row.astype(np.float64)) <= 1.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_cells_make_a_text_or_a_reject(contract: Contract, note: str, home: str) -> None:
    try:
        made = record(contract, note=note, home=home)
    except RejectedValueError as rejected:
        pytest.fail(f"neither field of this contract rejects: {rejected}")
    assert "\n" not in record_text(contract, made)
    assert np.isfinite(wide_features(contract, made)).all()
