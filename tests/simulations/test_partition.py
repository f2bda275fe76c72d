import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_common.errors import CreditError
from credit_simulations.partition import biggest, by_column, dirichlet, iid, quantity, write_shards


def made(rows: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "client_id": [f"c-{i:05d}" for i in range(rows)],
            "bad": (random.random(rows) < 0.3).astype(int),
            "shop": [f"shop {i}" for i in random.integers(0, 5, rows)],
        },
        index=random.permutation(rows),  # positions and labels differ on purpose
    )


def ids(parts: dict[str, pd.DataFrame]) -> list[str]:
    return sorted(i for part in parts.values() for i in part["client_id"])


def draw(kind: str, frame: pd.DataFrame, holders: int, alpha: float, seed: int):
    if kind == "iid":
        return iid(frame, holders, seed)
    if kind == "quantity":
        return quantity(frame, holders, alpha, seed)
    return dirichlet(frame, "bad", holders, alpha, seed)


KINDS = ["iid", "quantity", "dirichlet"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(60, 300),
    holders=st.integers(1, 6),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 2**31),
)
def test_every_row_is_in_exactly_one_holder_unchanged(kind, rows, holders, alpha, seed):
    frame = made(rows, seed)
    parts = draw(kind, frame, holders, alpha, seed)
    assert len(parts) == holders
    assert all(len(part) for part in parts.values())
    assert ids(parts) == sorted(frame["client_id"])
    joined = pd.concat(parts.values()).set_index("client_id").sort_index()
    pd.testing.assert_frame_equal(joined, frame.set_index("client_id").sort_index())


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_column_puts_every_row_at_the_holder_that_it_names(rows, seed):
    frame = made(rows, seed)
    parts = by_column(frame, "shop")
    assert ids(parts) == sorted(frame["client_id"])
    assert all(set(part["shop"]) == {name} for name, part in parts.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_partition_is_its_seeds_alone(kind):
    frame = made(400)
    np.random.seed(1)  # noqa: NPY002  # the global generator must have no part
    one = draw(kind, frame, 5, 1.0, 7)
    np.random.seed(2)  # noqa: NPY002
    two = draw(kind, frame, 5, 1.0, 7)
    other = draw(kind, frame, 5, 1.0, 8)
    for name in one:
        pd.testing.assert_frame_equal(one[name], two[name])
    assert any(not one[name].equals(other[name]) for name in one)


def test_iid_sizes_differ_by_one_row_at_most():
    sizes = [len(part) for part in iid(made(103), 10, 0).values()]
    assert max(sizes) - min(sizes) == 1


def spread(parts: dict[str, pd.DataFrame]) -> float:
    return float(np.std([part["bad"].mean() for part in parts.values()]))


def test_a_small_alpha_makes_labels_unlike_and_a_large_one_alike():
    frame = made(5000)
    skewed = np.mean([spread(dirichlet(frame, "bad", 8, 0.3, seed)) for seed in range(5)])
    alike = np.mean([spread(dirichlet(frame, "bad", 8, 1000, seed)) for seed in range(5)])
    assert skewed > 0.15
    assert alike < 0.05


def test_quantity_makes_sizes_unlike_and_leaves_labels_alike():
    parts = quantity(made(5000), 8, 0.5, 3, min_rows=50)
    sizes = [len(part) for part in parts.values()]
    assert min(sizes) >= 50
    assert max(sizes) > 4 * min(sizes)
    for part in parts.values():
        bound = 5 * np.sqrt(0.3 * 0.7 / len(part))  # five standard deviations
        assert abs(part["bad"].mean() - 0.3) < bound + 0.02


def test_min_rows_leaves_small_holders_out_and_none_left_is_refused():
    frame = pd.DataFrame({"client_id": list("abcdef"), "shop": list("xxxyyz")})
    assert list(by_column(frame, "shop", min_rows=2)) == ["x", "y"]
    with pytest.raises(CreditError, match="no holder has 4 rows"):
        by_column(frame, "shop", min_rows=4)


def test_the_biggest_come_in_order_of_size_and_then_of_name():
    frame = pd.DataFrame({"client_id": list("abcdefg"), "shop": list("zzybbca")})
    assert list(biggest(frame, "shop", 3)) == ["b", "z", "a"]
    for n in (0, 6):
        with pytest.raises(CreditError, match="must be between 1 and 5"):
            biggest(frame, "shop", n)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_concentration_is_refused(alpha):
    for kind in ("quantity", "dirichlet"):
        with pytest.raises(CreditError, match="alpha"):
            draw(kind, made(50), 3, alpha, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holders", [0, -1, 51])
def test_a_number_of_holders_that_cannot_be_is_refused(kind, holders):
    with pytest.raises(CreditError, match="holders = "):
        draw(kind, made(50), holders, 1.0, 0)


def test_a_partition_that_no_draw_can_give_is_given_up_with_advice(monkeypatch):
    monkeypatch.setattr("credit_simulations.partition.DRAWS", 3)
    with pytest.raises(CreditError, match="fewer holders"):
        dirichlet(made(50), "bad", 4, 1.0, 0, min_rows=40)
    with pytest.raises(CreditError, match="fewer holders"):
        quantity(made(50), 4, 1.0, 0, min_rows=40)


def test_missing_columns_are_named():
    with pytest.raises(CreditError, match="'store'"):
        by_column(made(10), "store")
    with pytest.raises(CreditError, match="'default'"):
        dirichlet(made(10), "default", 2, 1.0, 0)


def test_shards_hold_the_parts_and_stay_inside_the_folder(tmp_path):
    frame = pd.DataFrame({"client_id": list("abc"), "shop": ["../../etc", "radio/tv", "radio/tv"]})
    parts = by_column(frame, "shop")
    paths = write_shards(parts, tmp_path / "shards")
    assert {p.relative_to(tmp_path / "shards").as_posix() for p in paths.values()} == {
        "etc.parquet",
        "radio-tv.parquet",
    }
    for name, path in paths.items():
        assert pd.read_parquet(path)["client_id"].tolist() == parts[name]["client_id"].tolist()


def test_two_holders_never_share_a_file(tmp_path):
    frame = pd.DataFrame({"client_id": list("ab"), "shop": ["a b", "a-b"]})
    with pytest.raises(CreditError, match="would be one"):
        write_shards(by_column(frame, "shop"), tmp_path)
    assert not list(tmp_path.iterdir())
