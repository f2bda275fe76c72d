from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_common.contract import Contract, parse_contract
from credit_common.errors import WireError
from credit_common.record import Record
from credit_common.statistics import (
    check_statistics,
    count_cells,
    edge_arrays,
    quantile_edges,
    statistics_shapes,
    take_edges,
)

SHAPES = {"statistics.age": (41,), "statistics.income": (200,)}


def user(**values: float | None) -> Record:
    return Record(values=values, protected={}, label=0.0)


def counted(contract: Contract, **values: np.ndarray) -> dict[str, np.ndarray]:
    return count_cells(
        contract,
        [user(**dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)],
    )


values = st.one_of(
    st.none(), st.floats(allow_nan=False), st.sampled_from([18.0, 100.0, 0.0, 500.0])
)


@given(others=st.lists(st.tuples(values, values), max_size=5), age=values, income=values)
def test_one_user_more_changes_one_cell_of_each_field_by_one_at_most(
    federated, others, age, income
):
    """L2 sensitivity sqrt(F), for values that are missing or out of their range too."""
    before = [user(age=a, income=i) for a, i in others]
    without = count_cells(federated, before)
    with_ = count_cells(federated, [*before, user(age=age, income=income)])
    moved = [with_[name] - without[name] for name in with_]
    assert sum(float(np.square(m).sum()) for m in moved) <= len(federated.federated_fields) == 2
    for change, value in zip(moved, (age, income), strict=True):
        assert sorted(change)[:-1] == [0.0] * (change.size - 1)
        assert change.max() == (0.0 if value is None else 1.0)


def test_a_user_without_the_field_is_in_no_cell(federated):
    found = count_cells(federated, [user(), user(age=None, income=None), user(home=1.0)])
    assert {name: cells.sum() for name, cells in found.items()} == dict.fromkeys(SHAPES, 0.0)


def test_a_boundary_belongs_to_the_cell_above_it_as_an_edge_to_its_bin(federated):
    inner = federated.federated_fields[0].grid.inner
    cells = count_cells(federated, [user(age=x) for x in inner])["statistics.age"]
    assert cells.tolist() == [0.0] + [1.0] * 40


def test_only_federated_fields_are_counted_in_shapes_that_the_contract_sets(contract, federated):
    assert statistics_shapes(contract) == {} == count_cells(contract, [user(age=20.0)])
    assert statistics_shapes(federated) == SHAPES
    assert {n: c.shape for n, c in count_cells(federated, []).items()} == SHAPES


@pytest.mark.parametrize("draw", ["normal", "skewed", "uniform", "two humps"])
def test_exact_counts_give_numpys_quantiles_within_one_cell(federated, draw):
    random = np.random.default_rng(3)
    age = {
        "normal": lambda: random.normal(45, 12, 5000),
        "skewed": lambda: 18 + random.gamma(1.5, 10, 5000),
        "uniform": lambda: random.uniform(18, 100, 5000),
        "two humps": lambda: np.concatenate(
            [random.normal(30, 3, 3000), random.normal(80, 3, 2000)]
        ),
    }[draw]().clip(18, 100)
    income = random.lognormal(3, 1, 5000).clip(0, 500)
    edges = quantile_edges(federated, counted(federated, age=age, income=income))
    for field, exact in zip(federated.federated_fields, (age, income), strict=True):
        wanted = np.quantile(exact, np.arange(1, field.bins) / field.bins)
        bounds = np.array([field.range[0], *field.grid.inner, field.range[1]])
        cell = np.searchsorted(bounds, wanted, side="right") - 1
        near = [bounds[cell], bounds[np.minimum(cell + 1, len(bounds) - 1)]]
        for edge, low, high in zip(edges[field.name], *near, strict=True):
            assert low <= edge <= high


def test_noise_of_the_contracts_size_moves_few_users_to_another_bin(federated):
    random = np.random.default_rng(4)
    income = random.lognormal(3, 1, 6000).clip(0, 500)
    exact = counted(federated, age=np.full(6000, 40.0), income=income)
    for _ in range(20):
        noise = {n: sum(random.normal(0, 8, c.size) for _ in range(5)) for n, c in exact.items()}
        noised = {n: c + noise[n] for n, c in exact.items()}
        edges = quantile_edges(federated, noised)["income"]
        shares = np.histogram(income, [-1, *edges, 501])[0] / 6000
        # 200 cells of five holders' noise of 8: a random walk of 250 users at its end.
        assert np.abs(shares - 0.2).max() < 0.06


def test_many_users_of_one_value_take_one_edge_and_the_others_share_the_rest(federated):
    random = np.random.default_rng(5)
    income = np.concatenate([np.zeros(7000), random.uniform(100, 400, 3000)])
    exact = counted(federated, age=np.full(10_000, 40.0), income=income)
    edges = quantile_edges(federated, exact)["income"]
    field = federated.federated_fields[1]
    assert edges[0] == field.grid.inner[0]  # those without an income stand alone
    above = income[income > 0]
    shares = np.histogram(above, [1, *edges[1:], 501])[0] / above.size
    assert np.abs(shares - 0.25).max() < 0.05


@settings(max_examples=300, deadline=None)
@given(
    bins=st.integers(2, 41),
    kind=st.sampled_from(["noise", "one cell", "empty", "negative", "huge", "last", "first"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_edges_are_valid_whatever_the_counts_are(federated_text, bins, kind, seed):
    contract = parse_contract(federated_text.replace("bins = 4", f"bins = {bins}"))
    random = np.random.default_rng(seed)
    made = {
        "noise": lambda n: random.normal(0, 10, n),
        "one cell": lambda n: np.eye(n)[random.integers(n)] * 1000 + random.normal(0, 1, n),
        "empty": np.zeros,
        "negative": lambda n: -np.abs(random.normal(0, 10, n)),
        "huge": lambda n: random.normal(0, 1e300, n),
        "last": lambda n: np.eye(n)[-1] * 100,
        "first": lambda n: np.eye(n)[0] * 100,
    }[kind]
    counts = {name: np.asarray(made(n), np.float64) for name, (n,) in SHAPES.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        edges = quantile_edges(contract, counts)
    resolved = contract.with_edges(edges)  # checks number, order and range
    for field in resolved.federated_fields:
        assert set(field.edges) <= set(field.grid.inner)
        assert all(a < b for a, b in pairwise(field.edges))


def test_nobody_at_all_gives_edges_at_equal_distances(federated):
    edges = quantile_edges(federated, {name: np.zeros(n) for name, (n,) in SHAPES.items()})
    inner = federated.federated_fields[0].grid.inner
    places = [inner.index(edge) for edge in edges["age"]]
    assert np.abs(np.diff([-1, *places, 40]) - 41 / 4).max() < 1


def test_edges_pass_a_request_unchanged_beside_the_adapter(federated):
    exact = counted(federated, age=np.linspace(18, 100, 500), income=np.linspace(0, 500, 500))
    edges = quantile_edges(federated, exact)
    adapter = {"wide.weight": np.ones((1, 3), np.float32)}
    rest, back = take_edges(federated, {**adapter, **edge_arrays(edges)})
    assert back == edges
    assert rest.keys() == adapter.keys()


@pytest.mark.parametrize(
    "bad",
    [
        {"edges.age": None},
        {"edges.age": np.ones((3, 1), np.float32)},
        {"edges.age": np.float32(3)},
        {"edges.age": np.ones(3, np.float64)},
    ],
)
def test_a_request_without_its_edges_is_refused(federated, bad):
    right = edge_arrays({"age": (25.0, 40.0, 60.0), "income": (1.0, 10.0, 50.0, 100.0)})
    arrays = {name: array for name, array in {**right, **bad}.items() if array is not None}
    with pytest.raises(WireError, match=r"edges\.age"):
        take_edges(federated, arrays)


@pytest.mark.parametrize(
    "bad",
    [
        {"statistics.age": None},
        {"statistics.users": np.ones(1)},
        {"statistics.age": np.zeros(40)},
        {"statistics.age": np.zeros((41, 1))},
        {"statistics.age": np.zeros(41, np.float32)},
        {"statistics.age": np.zeros(41, np.int64)},
        {"statistics.age": np.full(41, np.nan)},
        {"statistics.age": np.full(41, np.inf)},
    ],
)
def test_statistics_of_another_form_are_refused(contract, federated, bad):
    right = {name: np.zeros(n) for name, (n,) in SHAPES.items()}
    check_statistics(statistics_shapes(federated), right)
    arrays = {name: array for name, array in {**right, **bad}.items() if array is not None}
    with pytest.raises(WireError, match=r"statistics"):
        check_statistics(statistics_shapes(federated), arrays)
    with pytest.raises(WireError, match="does not ask"):
        check_statistics(statistics_shapes(contract), {})
