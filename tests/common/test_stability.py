import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_common.stability import psi, psi_band, psi_interval


def test_psi_follows_its_formula_and_bands():
    expected, actual = np.array([40.0, 30, 20, 10]), np.array([10.0, 20, 30, 40])
    by_hand = sum(
        (b - a) * np.log(b / a) for a, b in zip(expected / 100, actual / 100, strict=True)
    )
    assert psi(expected, actual) == pytest.approx(by_hand)
    assert psi(np.stack([expected, 0 * expected]), actual) == pytest.approx(by_hand)
    assert psi(expected, 7 * expected) == pytest.approx(0)
    assert [psi_band(v) for v in (0, 0.0999, 0.1, 0.2499, 0.25, 9)] == [
        "stable",
        "stable",
        "shift",
        "shift",
        "large",
        "large",
    ]
    with pytest.raises(ValueError, match="4 and 3 bins"):
        psi(expected, actual[:3])
    with pytest.raises(ValueError, match="shape"):
        psi(np.ones((3, 4)), np.ones((3, 4)))


def histogram(users, shift, seed):
    """Ten bins of scores whose logits are shifted."""
    draw = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-draw.normal(shift, 0.8, users)))
    labels = draw.random(users) < scores
    return np.stack([np.histogram(scores[labels == y], 10, (0, 1))[0] for y in (0, 1)]).astype(
        float
    )


@pytest.mark.parametrize("users", [3000, 30_000])
@pytest.mark.parametrize("shift", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("noise", [5.0, 30.0, 90.0])
def test_the_interval_covers_the_index_without_noise(users, shift, noise):
    first, second = histogram(users, 0.0, 1), histogram(users, shift, 2)
    true = psi(first, second)
    draw = np.random.default_rng(3)
    ends = np.array(
        [
            psi_interval(
                first + draw.normal(0, noise, first.shape),
                second + draw.normal(0, noise, first.shape),
                noise,
                noise,
            )
            for _ in range(150)
        ]
    )
    assert ((ends[:, 0] <= true) & (true <= ends[:, 1])).mean() >= 0.9


def test_a_large_shift_is_told_from_none_where_the_noise_allows_it():
    first, draw = histogram(30_000, 0.0, 1), np.random.default_rng(4)

    def noised(counts):
        return counts + draw.normal(0, 30, counts.shape)

    _, same = psi_interval(noised(first), noised(histogram(30_000, 0, 2)), 30, 30)
    moved, _ = psi_interval(noised(first), noised(histogram(30_000, 0.6, 2)), 30, 30)
    assert psi_band(same) == "stable"
    assert psi_band(moved) == "large"


def test_without_noise_the_interval_is_the_index():
    first, second = histogram(500, 0.0, 1), histogram(500, 0.3, 2)
    assert psi_interval(first, second, 0, 0) == (psi(first, second),) * 2


def test_the_same_histograms_have_the_same_interval_and_noise_may_differ_by_bin():
    first, second = histogram(5000, 0.0, 1), histogram(5000, 0.3, 2)
    one = psi_interval(first, second, 20, 30)
    assert one == psi_interval(first, second, np.full(10, 20.0), np.full(10, 30.0))
    assert one != psi_interval(first, second, np.linspace(1, 40, 10), 30)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1000))
def test_no_counts_and_no_noise_break_it(seed, noise):
    draw = np.random.default_rng(seed)
    first, second = draw.normal(0, noise, (2, 2, 7))
    low, high = psi_interval(first, second, noise, noise)
    assert 0 <= low <= high < np.inf
    assert psi(first, second) >= 0


@pytest.mark.parametrize("noise", [-1.0, np.nan, np.inf, np.array([1, -1, 1.0])])
def test_noise_that_is_no_deviation_is_an_error(noise):
    with pytest.raises(ValueError, match="standard deviation"):
        psi_interval(np.ones((2, 3)), np.ones((2, 3)), noise, 1.0)
