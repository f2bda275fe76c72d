"""Flower's robust strategies on the changes of a round, against oracles."""

import dataclasses
import itertools

import numpy as np
import pytest

from credit_common.contract import Contract, parse_contract
from credit_common.errors import ContractError, WireError
from credit_common.privacy import mechanism_plan
from credit_common.wire import SERVER_NODE, set_identity
from credit_server.plausible import bounds
from credit_server.quarantine import Quarantine
from credit_server.robust import KeptChanges, _strategy

SHAPES = {"head.weight": (1, 4), "wide.weight": (2, 3)}
AGGREGATIONS = ("trimmed_mean", "median", "multi_krum")


@pytest.fixture
def robust(contract: Contract):
    """The small contract under an aggregation, f of 9 holders may lie."""

    def make(aggregation: str, byzantine: int = 2) -> Contract:
        set_identity(1, SERVER_NODE)
        return dataclasses.replace(
            contract,
            federation=dataclasses.replace(contract.federation, min_holders=9),
            training=dataclasses.replace(
                contract.training, aggregation=aggregation, byzantine=byzantine
            ),
        )

    return make


def drawn(seed, holders=9):
    draw = np.random.default_rng(seed)
    return [
        {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(holders)
    ]


BASE = drawn(99, 1)[0]


def combined(contract, adapters, weights=None, aside=0, order=None, quarantine=None):
    kept = KeptChanges(contract, BASE, quarantine or Quarantine(contract))
    for i in order if order is not None else range(len(adapters)):
        kept.add(2 + int(i), adapters[i], 1.0 if weights is None else weights[i])
    return kept.value(aside)


@pytest.mark.parametrize("byzantine", [1, 2, 4])
def test_the_trimmed_mean_is_that_of_sorted_values(robust, byzantine):
    adapters = drawn(0)
    found = combined(robust("trimmed_mean", byzantine), adapters)
    for name in SHAPES:
        rows = np.sort([a[name].astype(np.float64) for a in adapters], axis=0)
        want = rows[byzantine : len(rows) - byzantine].mean(0)
        np.testing.assert_allclose(found[name], want, atol=1e-6)


@pytest.mark.parametrize("holders", [8, 9])
def test_the_median_is_that_of_values(robust, holders):
    adapters = drawn(1, holders)
    found = combined(robust("median"), adapters, np.arange(1.0, holders + 1))
    for name in SHAPES:
        np.testing.assert_allclose(
            found[name], np.median([a[name] for a in adapters], 0), atol=1e-6
        )


def krum(vectors, liars):
    """Indices that Multi-Krum chooses, by the paper."""
    n = len(vectors)
    scores = []
    for i in range(n):
        apart = sorted(float(np.square(vectors[i] - vectors[j]).sum()) for j in range(n) if j != i)
        scores.append(sum(apart[: n - liars - 2]))
    return sorted(np.argsort(scores)[: n - liars])


@pytest.mark.parametrize("seed", range(5))
def test_multi_krum_averages_the_closest_by_weight_in_units_of_the_learning_rates(robust, seed):
    contract, adapters = robust("multi_krum"), drawn(seed)
    weights = np.random.default_rng(seed).choice([30.0, 300.0], 9)
    rates = contract.training.learning_rate
    vectors = [
        np.concatenate(
            [
                (a[name].astype(np.float64) - BASE[name]).ravel() / getattr(rates, name[:4])
                for name in SHAPES
            ]
        )
        for a in adapters
    ]
    chosen = krum(vectors, 2)
    found = combined(contract, adapters, weights)
    for name in SHAPES:
        rows = [adapters[i][name].astype(np.float64) for i in chosen]
        want = np.average(rows, axis=0, weights=weights[chosen])
        np.testing.assert_allclose(found[name], want, atol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_order_of_arrival_does_not_change_a_bit(robust, aggregation):
    contract, adapters = robust(aggregation), drawn(3)
    weights = np.linspace(1, 5, 9)
    first = combined(contract, adapters, weights)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(9)
        other = combined(contract, adapters, weights, order=order)
        assert all(first[name].tobytes() == other[name].tobytes() for name in SHAPES)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("lie", [1e6, -1e6, 1e30])
def test_liars_cannot_move_a_coordinate_beyond_the_honest(robust, aggregation, lie):
    contract, honest = robust(aggregation), drawn(4, 7)
    liars = [{n: np.full(s, lie, np.float32) for n, s in SHAPES.items()} for _ in range(2)]
    weights = [1.0] * 7 + [1000.0] * 2
    found = combined(contract, honest + liars, weights)
    for name in SHAPES:
        rows = np.stack([a[name] for a in honest])
        assert (rows.min(0) - 1e-5 <= found[name]).all()
        assert (found[name] <= rows.max(0) + 1e-5).all()


@pytest.mark.parametrize("aside", [0, 1, 2, 3])
def test_liars_that_were_found_are_not_trimmed_for_again(robust, aside):
    adapters = drawn(5, 9 - aside)
    found = combined(robust("trimmed_mean"), adapters, aside=aside)
    cut = max(0, 2 - aside)
    for name in SHAPES:
        rows = np.sort([a[name].astype(np.float64) for a in adapters], axis=0)
        np.testing.assert_allclose(found[name], rows[cut : len(rows) - cut].mean(0), atol=1e-6)


def test_what_is_cut_is_f_at_each_end_for_every_number_of_holders(robust):
    training = robust("trimmed_mean").training
    for holders, liars in itertools.product(range(1, 120), range(60)):
        if holders > 2 * liars:
            beta = _strategy(training, holders, liars).beta
            assert int(beta * holders) == liars


def test_a_change_beyond_what_is_usual_is_shortened_to_it(robust):
    contract = robust("median")
    quarantine = Quarantine(contract, SHAPES)
    usual = bounds(contract, mechanism_plan(contract, "small"), SHAPES)
    one = np.float32(1 / np.sqrt(6))
    for times, want in ((0.5, 0.5), (2.0, 1.0)):
        length = np.float32(times * usual["wide"].usual)
        sent = {
            "head.weight": BASE["head.weight"],
            "wide.weight": BASE["wide.weight"] + length * one,
        }
        found = combined(contract, [sent] * 3, [30.0] * 3, quarantine=quarantine)
        moved = np.linalg.norm(found["wide.weight"] - BASE["wide.weight"])
        assert moved == pytest.approx(want * usual["wide"].usual, rel=1e-4)
        np.testing.assert_array_equal(found["head.weight"], BASE["head.weight"])


def test_what_cannot_be_compared_is_refused(robust):
    kept = KeptChanges(robust("median"), BASE, Quarantine(robust("median")))
    good = drawn(0, 1)[0]
    for bad, weight in (
        ({"head.weight": good["head.weight"]}, 1.0),
        ({**good, "wide.weight": good["head.weight"]}, 1.0),
        ({**good, "head.weight": np.full((1, 4), np.nan, np.float32)}, 1.0),
        (good, 0.0),
        (good, float("nan")),
    ):
        with pytest.raises(WireError):
            kept.add(2, bad, weight)


@pytest.mark.parametrize(
    ("aggregation", "byzantine", "holders", "message"),
    [
        ("mean", 1, 5, r"training\.byzantine = 1: must be 0 where aggregation is mean"),
        ("median", 0, 5, r"training\.byzantine = 0: must be at least 1 for median"),
        ("trimmed_mean", -1, 5, r"training\.byzantine = -1: must be at least 1"),
        (
            "trimmed_mean",
            2,
            4,
            r"min_holders = 4: must be at least 5 for .*'trimmed_mean' with .* 2",
        ),
        ("median", 1, 2, r"min_holders = 2: must be at least 3"),
        ("multi_krum", 1, 4, r"min_holders = 4: must be at least 5 for .*'multi_krum'"),
        ("bulyan", 1, 9, r"aggregation = 'bulyan': must be one of 'mean', 'trimmed_mean', 'med"),
    ],
)
def test_a_contract_says_what_it_can_bear(contract_text, aggregation, byzantine, holders, message):
    text = contract_text.replace(
        "[training]", f'[training]\naggregation = "{aggregation}"\nbyzantine = {byzantine}'
    ).replace("[federation]", f"[federation]\nmin_holders = {holders}")
    with pytest.raises(ContractError, match=message):
        parse_contract(text)


@pytest.mark.parametrize(("aggregation", "least"), [("median", 5), ("multi_krum", 7)])
def test_a_contract_with_enough_holders_is_accepted(contract_text, aggregation, least):
    text = contract_text.replace(
        "[training]", f'[training]\naggregation = "{aggregation}"\nbyzantine = 2'
    ).replace("[federation]", f"[federation]\nmin_holders = {least}")
    found = parse_contract(text)
    assert (found.training.byzantine, found.training.least_answers) == (2, least)
    plain = text.replace(f'aggregation = "{aggregation}"\nbyzantine = 2', "")
    assert parse_contract(plain).digest != found.digest
