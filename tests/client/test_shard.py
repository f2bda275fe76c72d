import csv
import dataclasses
import gzip
import hashlib
import hmac
import io
import json
import logging
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_client.mapping import ShardMapping
from credit_client.shard import Example, Shard, is_holdout, read_shard, user_key, write_rejects
from credit_client.table import read_table
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.text import record_text, wide_features

COLUMNS = [
    "user", "phone", "age", "income", "tenure", "home", "job", "note", "at", "orders", "sex",
    "secret", "defaulted",
]  # fmt: skip
GOOD = {
    "user": "u1",
    "phone": "555",
    "age": "30",
    "income": "20",
    "tenure": "3",
    "home": "P",
    "job": "clerk",
    "note": "pays late",
    "at": "2024-01-05",
    "orders": '[{"time": "2024-01-03", "value": 12}]',
    "sex": "f",
    "secret": "s",
    "defaulted": "1",
}


def line(**cells: str) -> dict[str, str]:
    return {**GOOD, **cells}


def text_of(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str] = COLUMNS, delimiter: str = ","
) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return out.getvalue()


def examples(shard: Shard) -> tuple[Example, ...]:
    return shard.train + shard.holdout


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(content: str | bytes, name: str = "shard.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return save


def users(n: int) -> list[dict[str, str]]:
    return [line(user=f"u{i}", age=str(18 + i % 60), defaulted=str(i % 2)) for i in range(n)]


# Kinds of file


def test_every_kind_of_file_gives_the_same_records(write: Write, contract: Contract) -> None:
    rows = users(20)
    plain = text_of(rows)
    expected = read_shard(write(plain), contract)
    assert expected.users == 20
    for name, content in {
        "semicolons.csv": text_of(rows, delimiter=";").encode(),
        "tabs.txt": text_of(rows, delimiter="\t").encode(),
        "with_bom.csv": b"\xef\xbb\xbf" + plain.encode(),
        "old_lines.csv": plain.replace("\r\n", "\n").encode(),
        "packed.csv": gzip.compress(plain.encode()),  # told by content, not by its ending
        "blank_lines.csv": plain.replace("\r\n", "\r\n\r\n").encode(),
        "named_gz.csv.gz": plain.encode(),
    }.items():
        assert read_shard(write(content, name), contract) == expected, name


def test_a_typed_parquet_file_gives_the_records_of_the_csv(
    write: Write, tmp_path: Path, contract: Contract
) -> None:
    rows = [*users(20), line(user="7", age="", note="")]
    expected = read_shard(write(text_of(rows)), contract)
    columns: dict[str, Any] = {name: [row[name] or None for row in rows] for name in COLUMNS}
    columns["age"] = [None if x is None else float(x) for x in columns["age"]]
    columns["income"] = pa.array([Decimal(x) for x in columns["income"]])
    columns["at"] = pa.array(columns["at"]).cast(pa.timestamp("ns"))
    columns["home"] = pa.array(columns["home"]).dictionary_encode()
    columns["job"] = [x.encode() for x in columns["job"]]
    columns["defaulted"] = [int(x) for x in columns["defaulted"]]
    columns["orders"] = [json.loads(x) for x in columns["orders"]]
    path = tmp_path / "shard.bin"
    pq.write_table(pa.table(columns), path)
    assert read_shard(path, contract) == expected


def test_a_users_id_is_the_same_in_text_and_typed_files(
    write: Write, tmp_path: Path, contract: Contract
) -> None:
    path = tmp_path / "ids.parquet"
    columns: dict[str, Any] = {name: [GOOD[name]] for name in COLUMNS}
    keys = set()
    for ids in ([7], [7.0], ["7"], [" 7 "]):
        pq.write_table(pa.table({**columns, "user": ids}), path)
        keys |= {e.key for e in examples(read_shard(path, contract))}
    keys |= {e.key for e in examples(read_shard(write(text_of([line(user="7")])), contract))}
    assert keys == {user_key(contract.split.salt, "7")}


def test_the_delimiter_is_told_by_the_header_alone(write: Write, contract: Contract) -> None:
    rows = [line(note=",,,,,,,,,,,,,,,,,,,,,,,,,,,,")]
    assert read_shard(write(text_of(rows, delimiter=";")), contract).users == 1


def test_cells_may_hold_delimiters_quotes_lines_and_long_lists(
    write: Write, contract: Contract
) -> None:
    events = [{"time": "2024-01-04", "value": 1}] * 10_000
    note = 'said "no", then\nleft'
    shard = read_shard(write(text_of([line(note=note, orders=json.dumps(events))])), contract)
    (only,) = examples(shard)
    assert only.record.values["note"] == 'said "no", then left'
    assert only.record.values["orders_count_7d"] == 2000  # max_events


def test_a_cell_of_several_lines_may_hold_as_many_delimiters_as_are_not_a_row(
    write: Write, contract: Contract
) -> None:
    note = "late in May, June, July\nand then, all at once,\r\npaid, in full\r, with thanks"
    for columns in (COLUMNS, ["note", *(c for c in COLUMNS if c != "note")]):
        shard = read_shard(
            write(text_of([*users(3), line(user="n", note=note)], columns)), contract
        )
        assert (shard.users, shard.rejects) == (4, ())


def unquoted(rows: Sequence[Mapping[str, str]], delimiter: str) -> str:
    """A file whose writer knows of no quotes."""
    return "".join(
        delimiter.join(row) + "\n" for row in (COLUMNS, *([r[c] for c in COLUMNS] for r in rows))
    )


@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize("closed_by", ["note", "phone", "defaulted"])
@pytest.mark.parametrize("between", [0, 1, 5])
def test_no_users_cell_removes_other_users_from_a_file_without_quotes(
    write: Write, contract: Contract, delimiter: str, closed_by: str, between: int
) -> None:
    others = [line(user=f"u{i}", orders="[]") for i in range(between + 2)]
    others[-2][closed_by] += '"'
    assert len(csv_rows(unquoted(others, delimiter), delimiter)) == between + 3  # with the header
    for note in ('"late', '"', '"late\nagain'):
        rows = [line(user="new", note=note, orders="[]"), *others]
        content = unquoted(rows, delimiter)
        assert len(csv_rows(content, delimiter)) < between + 4  # what a plain reader would lose
        with pytest.raises(ShardError, match="data row 1 has an unclosed quote") as caught:
            read_shard(write(content), contract)
        assert "late" not in str(caught.value)


def test_two_quotes_before_an_open_one_hide_no_delimiter(write: Write, contract: Contract) -> None:
    columns = ["user", "a", "b", "note", "defaulted"]
    attack = ['u1,"p,q","late,1', 'u2,x,y",soon,0']
    path = write("\n".join([",".join(columns), "u0,a,b,c,1", *attack]))
    with pytest.raises(ShardError, match="data row 2 has an unclosed quote"):
        read_table(path)


def test_a_row_of_several_lines_and_another_length_is_refused(
    write: Write, contract: Contract
) -> None:
    with pytest.raises(ShardError, match="data row 1 has an unclosed quote"):
        read_table(write('user,note,defaulted\nu1,"late,1\nu2,x,y"\nu3,z,0\n'))


def csv_rows(content: str, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))


# Files that cannot be used


def damaged(kind: str) -> bytes:
    plain = text_of(users(50)).encode()
    table = pa.table({name: [GOOD[name]] for name in COLUMNS})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    parquet = sink.getvalue()
    return {
        "empty": b"",
        "blank": b"\n\n",
        "header only": text_of([]).encode(),
        "latin-1": plain + "Müller".encode("latin-1"),
        "utf-16": plain.decode().encode("utf-16"),
        "cut gzip": gzip.compress(plain)[:-20],
        "broken gzip": gzip.compress(plain)[:40] + b"\xff" * 40 + gzip.compress(plain)[80:],
        "empty gzip": gzip.compress(b""),
        "cut parquet": parquet[:-30],
        "broken parquet": parquet[:4] + b"\x00" * 600 + parquet[604:],
        "repeated column": text_of(users(1), [*COLUMNS, "age"]).encode(),
        "no age": text_of(users(1), [c for c in COLUMNS if c != "age"]).encode(),
        "no user": text_of(users(1), [c for c in COLUMNS if c != "user"]).encode(),
        "no sex": text_of(users(1), [c for c in COLUMNS if c != "sex"]).encode(),
        "no label": text_of(users(1), [c for c in COLUMNS if c != "defaulted"]).encode(),
        "no header": b"\r\n".join(plain.split(b"\r\n")[1:]),
        "open quote": plain + b'"u50,555\r\nu51,555\r\n',
        "open header": b'"' + plain,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "empty"),
        ("blank", "empty"),
        ("header only", "no data row"),
        ("latin-1", "not UTF-8"),
        ("utf-16", "not UTF-8"),
        ("cut gzip", "truncated gzip"),
        ("broken gzip", "damaged or truncated gzip"),
        ("empty gzip", "empty"),
        ("cut parquet", "damaged Parquet"),
        ("broken parquet", "damaged Parquet"),
        ("repeated column", "'age' stands twice"),
        ("no age", "column 'age' is missing"),
        ("no user", "column 'user' is missing"),
        ("no sex", "column 'sex' is missing"),
        ("no label", "column 'defaulted' is missing"),
        ("no header", "column 'user' is missing"),
        ("open quote", "unclosed quote"),
        ("open header", "quote"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error_that_names_it(
    write: Write, contract: Contract, kind: str, said: str
) -> None:
    path = write(damaged(kind), "damaged.file")
    with pytest.raises(ShardError) as caught:
        read_shard(path, contract)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_missing_file_and_a_directory_are_one_error(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(ShardError, match=r"none\.csv: cannot be read: No such file"):
        read_shard(tmp_path / "none.csv", contract)
    with pytest.raises(ShardError, match="is a directory"):
        read_shard(tmp_path, contract)


def test_a_parquet_file_without_rows_or_with_a_repeated_column_is_refused(
    tmp_path: Path, contract: Contract
) -> None:
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS}), path)
    with pytest.raises(ShardError, match="no data row"):
        read_shard(path, contract)
    arrays = [pa.array([GOOD[name]]) for name in [*COLUMNS, "age"]]
    pq.write_table(pa.Table.from_arrays(arrays, names=[*COLUMNS, "age"]), path)
    with pytest.raises(ShardError, match="'age' stands twice"):
        read_shard(path, contract)


def test_the_csv_modules_own_limit_is_left_as_it_was(write: Write, contract: Contract) -> None:
    before = csv.field_size_limit()
    read_shard(write(text_of(users(2))), contract)
    assert csv.field_size_limit() == before


# Columns


def test_identifiers_and_dropped_columns_may_be_absent_and_others_are_listed(
    write: Write, contract: Contract
) -> None:
    columns = [c for c in COLUMNS if c not in ("phone", "secret")]
    shard = read_shard(write(text_of(users(3), [*columns, "extra", "more"])), contract)
    assert shard.users == 3
    assert shard.ignored_columns == ("extra", "more")
    assert read_shard(write(text_of(users(3))), contract).ignored_columns == ()


# Rows


def test_a_bad_row_is_listed_and_the_other_rows_count(write: Write, contract: Contract) -> None:
    rows = [line(user=f"u{i}") for i in range(7)]
    rows[0]["income"] = "many"
    rows[1]["income"] = "501"
    rows[2]["job"] = "pilot"
    rows[3]["defaulted"] = "maybe"
    rows[4]["user"] = ""
    rows[5]["at"] = "soon"
    shard = read_shard(write(text_of(rows)), contract)
    assert [(r.row, r.field, r.reason) for r in shard.rejects] == [
        (1, "income", "not a number"),
        (2, "income", "outside its range"),
        (3, "job", "category outside the contract's values"),
        (4, "defaulted", "label outside its set"),
        (5, "user", "user id missing"),
        (6, "at", "not a time"),
    ]
    assert [e.row for e in examples(shard)] == [7]


def test_rows_of_another_length_are_rejects_with_both_lengths(
    write: Write, contract: Contract
) -> None:
    lines = text_of(users(4)).split("\r\n")
    lines[2] += ",surplus"
    lines[3] = lines[3].rpartition(",")[0]
    lines[4] = lines[4].replace("pays late", '"pays" late')
    shard = read_shard(write("\r\n".join(lines)), contract)
    assert [(r.row, r.reason) for r in shard.rejects] == [
        (2, "row has 14 cells, header has 13"),
        (3, "row has 12 cells, header has 13"),
        (4, "a quote in the row is never closed or misplaced"),
    ]
    assert (shard.rows, shard.users) == (4, 1)


def test_a_users_bad_row_leaves_their_good_row(write: Write, contract: Contract) -> None:
    rows = [line(age="30"), line(age="40", income="bad", at="2024-02-01")]
    shard = read_shard(write(text_of(rows)), contract)
    assert examples(shard)[0].record.values["age"] == 30
    assert [r.row for r in shard.rejects] == [2]


def test_rejects_are_written_for_their_owner_alone(
    write: Write, tmp_path: Path, contract: Contract
) -> None:
    shard = read_shard(write(text_of([line(), line(user="", income="bad")])), contract)
    path = tmp_path / "rejects.csv"
    path.write_text("an older and much longer file\n" * 9)
    path.chmod(0o644)
    write_rejects(path, shard.rejects)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["row", "field", "reason"],
            ["2", "user", "user id missing"],
        ]
    with pytest.raises(ShardError, match="cannot write the rejects"):
        write_rejects(tmp_path / "no" / "rejects.csv", shard.rejects)


# One user's rows only


def test_exact_duplicates_go_within_a_user_and_never_across(
    write: Write, contract: Contract
) -> None:
    rows = [line(user=u) for u in ("a", "b", "a", "c", "a")]
    shard = read_shard(write(text_of(rows)), contract)
    assert (shard.users, shard.duplicates) == (3, 2)
    for example in examples(shard):
        assert example.record.values["orders_count_7d"] == 1  # not counted again


def test_a_row_that_differs_anywhere_is_no_duplicate(write: Write, contract: Contract) -> None:
    rows = [line(secret="1"), line(secret="2")]
    shard = read_shard(write(text_of(rows)), contract)
    assert (shard.users, shard.duplicates) == (1, 0)
    assert examples(shard)[0].record.values["orders_count_7d"] == 2


@pytest.mark.parametrize(
    ("rule", "time", "age"),
    [("last", "at", 41), ("first", "at", 42), ("last", "", 43), ("first", "", 41)],
)
def test_the_contract_says_which_row_gives_the_record(
    write: Write, contract: Contract, rule: Any, time: str, age: int
) -> None:
    rows = [
        line(age="41", at="2024-03-01"),
        line(age="42", at="2024-01-01"),
        line(age="43", at=""),
    ]
    record = dataclasses.replace(contract.record, several_rows=rule, time=time)
    shard = read_shard(write(text_of(rows)), dataclasses.replace(contract, record=record))
    assert examples(shard)[0].record.values["age"] == age


def test_event_lists_of_all_rows_are_joined_up_to_the_chosen_rows_time(
    write: Write, contract: Contract
) -> None:
    def events(day: str, value: int) -> str:
        return json.dumps([{"time": day, "value": value}])

    rows = [
        line(at="2024-01-05", orders=events("2024-01-03", 10)),
        line(at="2024-01-06", orders=""),
        line(at="2024-01-04", orders=events("2024-01-02", 5)),
        line(at="2024-01-01", orders=events("2024-01-09", 999)),  # after the last row's time
    ]
    values = examples(read_shard(write(text_of(rows)), contract))[0].record.values
    assert values["orders_sum_7d"] == 15
    assert values["orders_recency"] == 3


def test_users_with_several_rows_can_be_rejected(write: Write, contract: Contract) -> None:
    record = dataclasses.replace(contract.record, several_rows="reject")
    strict = dataclasses.replace(contract, record=record)
    rows = [line(user=u, age=a) for u, a in (("a", "20"), ("b", "30"), ("a", "21"), ("b", "30"))]
    shard = read_shard(write(text_of(rows)), strict)
    assert (shard.users, shard.duplicates) == (1, 1)
    assert [(r.row, r.reason) for r in shard.rejects] == [
        (1, "the user has several rows"),
        (3, "the user has several rows"),
    ]


CELLS = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["a", "b", "c", "d", ""]),
        "age": st.sampled_from(["20", "50", "", "x"]),
        "at": st.sampled_from(["2024-01-01", "2024-02-01", ""]),
        "defaulted": st.sampled_from(["0", "1", "2"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=12), st.sampled_from(["a", "b", "c", "d"]))
def test_removing_a_user_changes_nobody_else(
    tmp_path_factory: pytest.TempPathFactory,
    contract: Contract,
    cells: list[dict[str, str]],
    gone: str,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows = [*(line(**c) for c in cells), line(user="z")]
    (folder / "all.csv").write_text(text_of(rows))
    (folder / "less.csv").write_text(text_of([r for r in rows if r["user"] != gone]))
    everyone, fewer = (read_shard(folder / f, contract) for f in ("all.csv", "less.csv"))

    def records(found: Iterable[Example]) -> dict[str, Any]:
        return {e.key: e.record for e in found if e.key != user_key(contract.split.salt, gone)}

    assert records(everyone.train) == records(fewer.train)
    assert records(everyone.holdout) == records(fewer.holdout)


@settings(max_examples=40, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=12))
def test_every_row_is_used_a_duplicate_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, contract: Contract, cells: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("shards") / "shard.csv"
    path.write_text(text_of([line(**c) for c in cells]))
    shard = read_shard(path, contract)
    rejected = [r.row for r in shard.rejects]
    used = [e.row for e in examples(shard)]
    assert shard.rows == len(cells)
    assert rejected == sorted(set(rejected))
    assert set(used).isdisjoint(rejected)
    assert shard.users == len(used) <= shard.rows - shard.duplicates - len(rejected)


# Keys, split and order


def test_a_key_is_the_hmac_of_the_id_under_the_salt() -> None:
    expected = hmac.new("sält".encode(), "用户1".encode(), hashlib.sha256).hexdigest()
    assert user_key("sält", "用户1") == expected
    assert len(expected) == 64


def test_the_split_follows_the_published_rule(write: Write, contract: Contract) -> None:
    shard = read_shard(write(text_of(users(60))), contract)
    keys = [user_key(contract.split.salt, f"u{i}") for i in range(60)]
    held_out = {k for k in keys if int.from_bytes(bytes.fromhex(k)[:8], "big") / 2**64 < 0.25}
    assert 0 < len(held_out) < 60
    assert [e.key for e in shard.holdout] == sorted(held_out)
    assert [e.key for e in shard.train] == sorted(set(keys) - held_out)


def test_a_user_stays_held_out_as_the_fraction_grows() -> None:
    ids = [f"user-{i}" for i in range(2000)]
    parts = [{i for i in ids if is_holdout("a salt", f, i)} for f in (0, 0.1, 0.2, 0.5)]
    assert parts[0] == set()
    assert parts[0] < parts[1] < parts[2] < parts[3]
    for part, fraction in zip(parts, (0, 0.1, 0.2, 0.5), strict=True):
        assert abs(len(part) / 2000 - fraction) < 0.05  # four standard deviations and more
    assert parts[2] != {i for i in ids if is_holdout("b salt", 0.2, i)}


def test_the_order_of_the_file_does_not_show(write: Write, contract: Contract) -> None:
    rows = users(30)
    there = read_shard(write(text_of(rows)), contract)
    back = read_shard(write(text_of(rows[::-1])), contract)

    def seen(shard: Shard) -> list[Any]:
        return [(e.key, e.record) for e in examples(shard)]

    assert seen(there) == seen(back)


# Scoring


def test_scoring_needs_no_label(write: Write, contract: Contract) -> None:
    rows = [line(user="a"), line(user="b", defaulted=""), line(user="c", defaulted="pending")]
    shard = read_shard(write(text_of(rows)), contract, require_label=False)
    labels = {e.row: e.record.label for e in examples(shard)}
    assert labels == {1: 1.0, 2: None, 3: None}
    without = [c for c in COLUMNS if c != "defaulted"]
    shard = read_shard(write(text_of(rows, without)), contract, require_label=False)
    assert [e.record.label for e in examples(shard)] == [None] * 3


def test_text_and_numbers_are_the_same_in_training_and_scoring(
    write: Write, contract: Contract
) -> None:
    path = write(text_of(users(10)))
    pairs = zip(
        examples(read_shard(path, contract)),
        examples(read_shard(path, contract, require_label=False)),
        strict=True,
    )
    for trained, scored in pairs:
        assert record_text(contract, trained.record) == record_text(contract, scored.record)
        wide = wide_features(contract, trained.record), wide_features(contract, scored.record)
        assert wide[0].tobytes() == wide[1].tobytes()


# Nothing of a user leaves this module but their record

SENTINELS = {
    "user": "SENTINELUSER",
    "phone": "SENTINELPHONE",
    "secret": "SENTINELSECRET",
    "extra": "SENTINELEXTRA",
    "age": "SENTINELAGE",
    "income": "SENTINELINCOME",
    "job": "SENTINELJOB",
    "home": "SENTINELHOME",
    "sex": "SENTINELSEX",
    "at": "SENTINELTIME",
    "orders": '[{"time": "SENTINELEVENT", "value": 1}]',
    "defaulted": "SENTINELLABEL",
    "note": "call 138 0013 8000 or SENTINELMAIL@example.com",
}
SECRETS = ["SENTINEL", "0013", "8000", "example.com"]


def shards_with_sentinels(write: Write) -> Path:
    always = ("user", "phone", "secret", "extra", "home", "sex", "note")
    base = line(**{name: SENTINELS[name] for name in always})
    rows = [{**base, "user": "SENTINELUSER0"}]
    for i, name in enumerate(("age", "income", "job", "at", "orders", "defaulted"), start=1):
        rows.append({**base, "user": f"SENTINELUSER{i}", name: SENTINELS[name]})
    text = text_of(rows, [*COLUMNS, "extra"])
    return write(text + "SENTINELSHORT,SENTINELROW\r\n")


def test_planted_sentinels_reach_no_output(
    write: Write,
    tmp_path: Path,
    contract: Contract,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG):
        shard = read_shard(shards_with_sentinels(write), contract)
        write_rejects(tmp_path / "rejects.csv", shard.rejects)
    assert shard.users == 1
    assert len(shard.rejects) == 7
    captured = capfd.readouterr()
    (only,) = examples(shard)
    outputs = {
        "repr": repr(shard) + shard.summary() + repr(only),
        "record": repr(only.record),
        "text": record_text(contract, only.record),
        "wide": repr(wide_features(contract, only.record).tolist()),
        "rejects": repr(shard.rejects) + (tmp_path / "rejects.csv").read_text(),
        "log": caplog.text + captured.out + captured.err,
    }
    assert "[phone]" in outputs["text"]
    assert "[email]" in outputs["text"]
    for name, output in outputs.items():
        for secret in SECRETS:
            assert secret not in output, name


def test_a_shards_repr_shows_counts_and_no_record(write: Write, contract: Contract) -> None:
    shard = read_shard(write(text_of(users(3))), contract)
    assert "pays late" in repr(examples(shard)[0].record)
    assert "pays late" not in repr(shard) + repr(examples(shard))


def broken_with_sentinels(kind: str) -> bytes:
    text = text_of([line(**SENTINELS), line(**{**SENTINELS, "user": "2"})])
    header, _, body = text.partition("\r\n")
    table = pa.table({name: ["SENTINEL"] for name in COLUMNS})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none")
    stray = pa.table({name: [b"SENTINEL\xff"] for name in COLUMNS})
    other = io.BytesIO()
    pq.write_table(stray, other)
    return {
        "no header": body.encode(),
        "doubled no header": ("SENTINEL,SENTINEL\r\n" + body).encode(),
        "not UTF-8": text.encode() + b"SENTINEL\xff",
        "cut gzip": gzip.compress(text.encode())[:-9],
        "open quote": (text + '"SENTINEL' + "\r\nSENTINEL" * 9).encode(),
        "missing column": text.replace("age", "ages", 1).encode(),
        "cut parquet": sink.getvalue()[:-9],
        "broken parquet": sink.getvalue().replace(b"SENTINEL", b"\xffENTINEL")[:-20],
        "bytes in parquet": other.getvalue(),
        "repeated column": (header + ",age\r\n" + body).encode(),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "no header", "doubled no header", "not UTF-8", "cut gzip", "open quote", "missing column",
        "cut parquet", "broken parquet", "bytes in parquet", "repeated column",
    ],
)  # fmt: skip
def test_an_errors_whole_traceback_quotes_no_data(
    write: Write, contract: Contract, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(broken_with_sentinels(kind), "broken")
    try:
        read_shard(path, contract)
    except ShardError as error:
        hidden = error.__context__ is None or error.__suppress_context__
        logging.getLogger("holder").exception("the shard cannot be used")
        told = "".join(traceback.format_exception(*sys.exc_info()))
    else:
        pytest.fail("the file was read")
    assert hidden  # the reader's own error may quote a cell
    told = (told + caplog.text).replace(str(path.parent), "")  # it has a number
    for secret in SECRETS:
        assert secret not in told


def test_a_mapping_that_does_not_fit_the_file_is_an_error_that_names_the_column(
    write: Write, contract: Contract
) -> None:
    mapping = ShardMapping(columns={"age": "AGE_YEARS"})
    with pytest.raises(ShardError, match=r"column 'AGE_YEARS' \(the mapping's column for 'age'\)"):
        read_shard(write(text_of(users(2))), contract, mapping=mapping)


# How well the fields are filled


def test_missing_values_are_counted_by_user_in_the_row_that_gives_the_record(
    write: Write, contract: Contract
) -> None:
    rows = [
        line(user="a", age="", at="2024-01-01"),  # an earlier row: what it lacks does not count
        line(user="a", at="2024-02-01"),
        line(user="b", age="", note="n/a", sex=""),
        line(user="c", age="200", at="", home=""),  # clipped, not missing
        line(user="d", orders="[]", tenure=""),
        line(user="e", orders=""),
        line(user="f", income=""),  # rejected: not a user
    ]
    shard = read_shard(write(text_of(rows)), contract)
    assert shard.users == 5
    assert shard.missing == {
        "age": 1, "income": 0, "tenure": 0, "home": 1, "job": 0, "note": 1, "at": 1, "orders": 2,
        "sex": 1,
    }  # fmt: skip  # tenure is filled in by the contract


def test_events_of_any_row_of_a_user_count_as_events(write: Write, contract: Contract) -> None:
    rows = [
        line(user="a", at="2024-01-01"),
        line(user="a", at="2024-02-01", orders=""),
        line(user="b", at="2024-01-01", orders="[]"),
        line(user="b", at="2024-02-01", orders=""),
    ]
    assert read_shard(write(text_of(rows)), contract).missing["orders"] == 1
