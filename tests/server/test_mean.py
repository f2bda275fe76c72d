import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_common.errors import CreditError, WireError
from credit_server import mean
from credit_server.mean import BOUND, MOST, ExactSum, WeightedMean

TERMS = st.lists(
    st.floats(-BOUND, BOUND, exclude_min=True, exclude_max=True), min_size=1, max_size=40
)


def summed(terms) -> float:
    total = ExactSum(1)
    for term in terms:
        total.add(np.array([term]))
    return float(total.value()[0])


@given(TERMS, st.randoms())
def test_a_sum_has_the_same_bits_in_any_order(terms, random):
    shuffled = terms.copy()
    random.shuffle(shuffled)
    assert summed(terms) == summed(shuffled)


@given(TERMS)
def test_a_sum_is_within_its_bound_of_the_true_one(terms):
    true = sum(map(Fraction, terms))
    bound = len(terms) * Fraction(1, 2**58)
    found = Fraction(summed(terms))
    assert abs(found - true) <= bound + (abs(true) + bound) * Fraction(1, 2**52)


@given(st.lists(st.integers(-(2**90), 2**90).map(lambda k: k * 2.0**-57), min_size=1, max_size=40))
def test_a_sum_of_what_lies_on_the_grid_is_the_one_of_fsum(terms):
    terms = [math.copysign(min(abs(term), BOUND / 2), term) for term in terms]
    assert summed(terms) == pytest.approx(math.fsum(terms), rel=2**-52, abs=0)


def test_what_cancels_leaves_no_rounding_of_what_was_large():
    half = 2.0**-11  # goes into the low part whole, up to 2^16 times
    assert summed([half * (1 - 2**-40)] * 4096 + [-2.0, 2.0**-57]) == math.fsum(
        [half * (1 - 2**-40)] * 4096 + [-2.0, 2.0**-57]
    )


def test_the_largest_terms_as_often_as_allowed_do_not_overflow():
    total = ExactSum(2)
    largest = np.nextafter(BOUND, 0)
    total.add(np.array([largest, -largest]))
    # The rest at once, as that many additions would make it.
    total._high *= MOST
    total._low *= MOST
    np.testing.assert_array_equal(total.value(), [largest * MOST, -largest * MOST])


def test_there_is_an_end_to_how_many_are_summed(monkeypatch):
    monkeypatch.setattr(mean, "MOST", 3)
    with pytest.raises(CreditError, match="more than 3"):
        summed([1.0] * 4)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, BOUND, -BOUND, 3.4e38])
def test_what_is_beyond_the_range_is_refused_and_leaves_no_trace(odd):
    both = WeightedMean({"w": (2,)})
    both.add({"w": np.array([1.0, 3.0], np.float32)}, 2.0)
    with pytest.raises(WireError, match="beyond the range"):
        both.add({"w": np.array([7.0, odd], np.float32)}, 1.0)
    np.testing.assert_array_equal(both.value()["w"], [1.0, 3.0])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_weight_is_positive(weight):
    with pytest.raises(WireError, match="weight"):
        WeightedMean({"w": (2,)}).add({"w": np.ones(2, np.float32)}, weight)


@pytest.mark.parametrize(
    "other", [{"v": (2,)}, {"w": (1, 2)}, {"w": (3,)}, {}, {"w": (2,), "v": (2,)}]
)
def test_arrays_of_another_schema_are_refused(other):
    with pytest.raises(WireError, match="names or shapes"):
        WeightedMean({"w": (2,)}).add({n: np.ones(s, np.float32) for n, s in other.items()}, 1.0)


def test_nobodys_arrays_set_the_schema():
    with pytest.raises(WireError, match="names or shapes"):
        WeightedMean({}).add({"w": np.ones(2, np.float32)}, 1.0)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.floats(-(2.0**20), 2.0**20, width=32),
            st.floats(2.0**-6, 2.0**14, exclude_min=True),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_mean_is_the_true_one_to_float32s_rounding(pairs):
    found = WeightedMean({"w": (1,)})
    for value, weight in pairs:
        found.add({"w": np.array([value], np.float32)}, weight)
    weights = [Fraction(weight) for _, weight in pairs]
    values = [Fraction(value) for value, _ in pairs]
    whole = sum(weights)
    true = sum(w * v for w, v in zip(weights, values, strict=True)) / whole
    size = sum(w * abs(v) for w, v in zip(weights, values, strict=True)) / whole
    before = size / 2**50 + len(pairs) / whole / 2**57
    (got,) = found.value()["w"]
    half = Fraction(float(np.spacing(np.float32(max(abs(float(true)), abs(float(got)))))) / 2)
    assert abs(Fraction(float(got)) - true) <= half + before


def test_equal_values_have_themselves_as_mean():
    draw = np.random.default_rng(0)
    arrays = {"b": draw.normal(size=(3, 5)), "a": draw.normal(size=7) * 1e-3}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    found = WeightedMean({name: array.shape for name, array in arrays.items()})
    for weight in (17.0, 30.0, 6400.0):
        found.add(arrays, weight)
    assert list(found.value()) == ["a", "b"]
    for name, array in found.value().items():
        np.testing.assert_array_equal(array, arrays[name])
