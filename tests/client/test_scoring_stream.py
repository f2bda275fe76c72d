import json

import numpy as np
import pandas as pd
import pytest

from credit_client.mapping import ShardMapping
from credit_client.scoring.stream import Stream
from credit_client.shard import read_shard
from credit_common.errors import ShardError


@pytest.fixture
def messy(rows_of, write_rows):
    """A file of users with one, two and many rows, repetitions, rejects and missing ids."""

    def make(path, seed):
        draw = np.random.default_rng(seed)
        rows = []
        for i, row in enumerate(rows_of(60, seed)):
            rows.append(row)
            for _ in range(int(draw.integers(0, 3)) * int(draw.integers(0, 2))):
                later = {
                    "at": f"2025-0{draw.integers(1, 9)}-01",
                    "age": str(draw.integers(18, 99)),
                    "orders": json.dumps([{"time": "2024-12-31", "value": float(i)}]),
                }
                rows.append({**row, **(later if draw.random() < 0.7 else {})})
            if draw.random() < 0.1:
                rows.append({**row, "income": "x"})
            if draw.random() < 0.1:
                rows.append({**row, "user": " "})
        order = draw.permutation(len(rows))
        return write_rows(path, [rows[i] for i in order])

    return make


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("several", ["last", "first", "reject"])
def test_users_are_those_that_the_shard_reads(tmp_path, variant, messy, seed, several):
    contract = variant(record={"several_rows": several})
    path = messy(tmp_path / "shard.csv", seed)
    whole = read_shard(path, contract, require_label=False)
    stream = Stream(path, contract, ShardMapping())
    blocks = list(stream.blocks(7))
    assert all(len(block) == 7 for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= 7
    users = [one for block in blocks for one in block]
    expected = {e.key: (e.row, e.record) for e in (*whole.train, *whole.holdout)}
    assert {u.example.key: (u.example.row, u.example.record) for u in users} == expected
    assert len(users) == len(expected)
    counts = stream.counts
    assert (counts.rows, counts.all_rows) == (whole.rows, whole.rows)
    assert counts.duplicates == whole.duplicates
    assert sorted(counts.rejects, key=lambda r: r.row) == list(whole.rejects)
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)["user"]
    assert all(cells[u.example.row - 1] == u.user for u in users)


def test_users_with_one_row_come_before_the_file_is_read_to_its_end(
    tmp_path, variant, rows_of, write_rows
):
    rows = rows_of(50)
    rows += [{**rows[0], "age": "44"}, {**rows[1], "income": "x"}]  # two users have a second row
    stream = Stream(write_rows(tmp_path / "shard.csv", rows), variant(), ShardMapping())
    blocks = stream.blocks(10)
    first = next(blocks)
    assert [u.user for u in first] == [row["user"] for row in rows[2:12]]
    assert stream.counts.rows == 12
    rest = [u.user for block in blocks for u in block]
    assert rest[-2:] == [rows[0]["user"], rows[1]["user"]]


def test_a_damaged_end_is_told_where_it_is_reached(tmp_path, variant, rows_of, write_rows):
    path = write_rows(tmp_path / "shard.csv", rows_of(5))
    with path.open("a") as file:
        file.write('"u 9,')
        file.write("\n".join(["open"] * 3))
    with pytest.raises(ShardError, match=r"data row 6 has an unclosed quote"):
        Stream(path, variant(), ShardMapping())


def test_two_ids_that_share_a_mark_stay_two_users(
    tmp_path, variant, rows_of, write_rows, monkeypatch
):
    from credit_client.scoring import stream as module

    monkeypatch.setattr(module, "_mark", lambda layout, cells: 7)
    path = write_rows(tmp_path / "shard.csv", rows_of(5))
    stream = Stream(path, variant(), ShardMapping())
    assert [u.user for block in stream.blocks(9) for u in block] == [
        row["user"] for row in rows_of(5)
    ]
