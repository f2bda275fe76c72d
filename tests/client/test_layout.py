import dataclasses
from pathlib import Path

import pytest

from credit_client.layout import find_layout, names_to_show, sources
from credit_client.mapping import ShardMapping, Unit
from credit_common.errors import ShardError
from credit_common.fields import EventsField
from credit_common.record import make_record, parse_value
from credit_common.text import record_text, wide_features

FILLED = {
    "age": ("30", "70"),
    "income": ("20", "200"),
    "tenure": ("0", "30"),
    "home": ("P", "R"),
    "job": ("clerk", "driver"),
    "note": ("pays late", "pays early"),
    "at": ("2024-01-05", "2024-03-05"),
    "orders": ('[{"time": "2024-01-03", "value": 12}]', '[{"time": "2024-01-04", "value": 500}]'),
    "sex": ("f", "m"),
}


def by_name(contract, mapping=None):
    return {source.name: source for source in sources(contract, mapping or ShardMapping())}


def test_the_sources_are_the_fields_that_the_layout_reads(contract):
    columns = ("user", "defaulted", *FILLED)
    layout = find_layout(Path("shard"), columns, contract, ShardMapping(), require_label=True)
    found = sources(contract, ShardMapping())
    assert [source.name for source in found] == [name for name, _ in layout.readers]
    assert {s.name: s.kind for s in found}.items() <= {
        f.name: f.kind for f in contract.fields
    }.items()


@pytest.mark.parametrize("train", [("lora", "head", "wide"), ("head",), ("wide",)])
def test_a_field_is_used_as_text_and_as_numbers_where_it_changes_them(contract, train):
    contract = contract.training_only(*train)
    fields = {f.name: f for f in contract.fields}

    def seen(**changed):
        values = {}
        for name, (usual, other) in FILLED.items():
            values[name] = parse_value(fields[name], other if name in changed else usual)
        record = make_record(contract, values, 1.0)
        said = record_text(contract, record) if contract.model.reads_text else ""
        wide = wide_features(contract, record).tobytes() if "wide" in train else b""
        return said, wide

    text, wide = seen()
    for name, source in by_name(contract).items():
        if name == contract.record.time:
            assert source.uses == ("time",)
            continue
        other_text, other_wide = seen(**{name: True})
        found = {"text": other_text != text, "numbers": other_wide != wide}
        assert source.uses == tuple(use for use, changed in found.items() if changed), name


def test_a_time_that_nothing_is_ordered_by_has_no_use(contract):
    fields = tuple(f for f in contract.fields if not isinstance(f, EventsField))
    unordered = dataclasses.replace(
        contract, fields=fields, record=dataclasses.replace(contract.record, time="")
    )
    assert by_name(unordered)["at"].uses == ()
    ended = dataclasses.replace(contract, record=dataclasses.replace(contract.record, time=""))
    assert by_name(ended)["at"].uses == ("time",)  # windows of the events end at it


def test_column_constant_and_translation_are_the_mappings(contract):
    mapping = ShardMapping(
        columns={"age": "AGE_YEARS", "home": "HOUSING"},
        values={"home": {"owned": "P"}},
        units={"income": Unit(factor=0.001)},
        missing={"note": frozenset({"-"})},
        constants={"job": "clerk", "tenure": 0},
    )
    found = by_name(contract, mapping)
    assert {name: s.column for name, s in found.items() if s.column != name} == {
        "age": "AGE_YEARS",
        "home": "HOUSING",
        "job": None,
        "tenure": None,
    }
    assert {n: s.constant for n, s in found.items() if s.column is None} == {
        "job": "clerk",
        "tenure": 0,
    }
    assert {name for name, s in found.items() if s.translated} == {"home", "income", "note"}


NAMES = ["age", "_id", "Q3 2024", "TARGET_LABEL_BAD=1", "Größe in m²", "金额（元）", "a" * 64]  # noqa: RUF001


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_stand(name):
    assert names_to_show(["", name, "7"]) == (name,)


@pytest.mark.parametrize(
    "data",
    ["", "4711", "-3.5", "2024-01-05", "jane@example.com", "call 138 0013 8000", "id 123456789",
     "red\x1b[31m", "two\nlines", "\u202etxt.exe", "a" * 65],
)  # fmt: skip
def test_what_could_be_data_in_a_headers_place_is_not_shown(data):
    assert names_to_show(["age", data]) == ("age",)


def test_a_file_to_be_scored_may_leave_out_protected_fields_and_the_label(contract):
    columns = tuple(name for name in ("user", *FILLED) if name != "sex")
    scored = find_layout(Path("f"), columns, contract, ShardMapping(), require_label=False)
    assert "sex" not in dict(scored.readers)
    trained = (*columns, "defaulted")
    with pytest.raises(ShardError, match="column 'sex' is missing"):
        find_layout(Path("f"), trained, contract, ShardMapping(), require_label=True)
    fewer = tuple(name for name in columns if name != "age")
    with pytest.raises(ShardError, match="column 'age' is missing"):
        find_layout(Path("f"), fewer, contract, ShardMapping(), require_label=False)
