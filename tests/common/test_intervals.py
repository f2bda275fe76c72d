import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_common import intervals, metrics
from credit_common.accountant import epsilon
from credit_common.evaluation import relative_score
from credit_common.events import Histogram

HOLDERS = 10
SIGMA = {0.25: 13.29, 0.5: 7.04, 1.0: 3.74, 8.0: 0.601}  # ε of one evaluation at δ = 1e-5
SHARES = ("auc", "gini", "ks", "brier", "mean", "default_rate")


def users(number, *, rate=0.2, spread=0.7, gap=0.6, seed=0):
    """Relative scores and labels as a credit model gives them: AUC .73 unless told otherwise."""
    draw = np.random.default_rng(seed)
    labels = (draw.random(number) < rate).astype(int)
    logits = draw.normal(math.log(rate / (1 - rate)) - 0.15, spread, number) + gap * labels
    return relative_score(logits, rate), labels


def covered(ends, truth):
    ends = np.array(ends)
    return ((ends[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[:, 1])).mean()


def releases(counts, noise, number, seed=0):
    draw = np.random.default_rng(seed)
    return counts + noise * draw.standard_normal((number, *counts.shape))


def test_the_noise_of_the_settings_is_that_of_their_epsilon():
    for spent, sigma in SIGMA.items():
        assert epsilon([Histogram(noise_multiplier=sigma)], 1e-5) == pytest.approx(spent, rel=0.005)


@pytest.mark.parametrize("spent", SIGMA)
@pytest.mark.parametrize("each", [1000, 3000])
def test_the_auc_interval_covers_the_pooled_auc_of_the_scores(spent, each):
    """5,000 releases of ten holders' sum; the truth is over the scores, not over the bins."""
    scores, labels = users(HOLDERS * each, seed=each)
    exact = metrics.auc_exact(scores, labels)
    counts = metrics.score_histogram(scores, labels, 50)
    noise = SIGMA[spent] * math.sqrt(HOLDERS)
    ends = [intervals.auc(c, noise) for c in releases(counts, noise, 5000)]
    assert 0.93 <= covered(ends, exact) <= 0.98  # wider would be easy
    # gini is the same statement
    assert intervals.gini(counts, noise) == pytest.approx(
        tuple(2 * end - 1 for end in intervals.auc(counts, noise))
    )


@pytest.mark.parametrize("bins", [10, 20, 50, 200])
@pytest.mark.parametrize(
    "kind",
    [
        {"spread": 1.2, "gap": 1.8},
        {"spread": 0.15, "gap": 0.1},
        {"spread": 0.02, "gap": 0.02},
        {"rate": 0.03},
        {"gap": -0.5},
    ],
    ids=["strong", "narrow", "all in one bin", "rare", "inverted"],
)
@pytest.mark.parametrize("spent", [0.25, 8.0])
def test_few_bins_and_crowded_ones_are_allowed_for(bins, kind, spent):
    scores, labels = users(20_000, **kind)
    exact = metrics.auc_exact(scores, labels)
    counts = metrics.score_histogram(scores, labels, bins)
    noise = SIGMA[spent] * math.sqrt(HOLDERS)
    ends = [intervals.auc(c, noise) for c in releases(counts, noise, 200)]
    assert covered(ends, exact) >= 0.9  # of 200: three standard deviations below


def test_without_the_allowance_bins_alone_would_miss():
    """The broken variant: the binned AUC is not that of the scores, and noise is small at ε = 8."""
    scores, labels = users(20_000)
    exact = metrics.auc_exact(scores, labels)
    counts = metrics.score_histogram(scores, labels, 10)
    noise = SIGMA[8.0] * math.sqrt(HOLDERS)
    rows = [metrics.by_label(c) for c in releases(counts, noise, 300)]
    plain = [intervals._auc(g, b, 0.5, 0.0, noise, 0.95) for g, b in rows]
    assert covered(plain, exact) < 0.5
    assert covered(plain, metrics.auc(counts)) >= 0.92


@pytest.mark.parametrize("spent", SIGMA)
@pytest.mark.parametrize("each", [1000, 3000])
def test_the_other_intervals_cover_what_the_counts_say_without_noise(spent, each):
    scores, labels = users(HOLDERS * each, seed=each)
    counts = metrics.score_histogram(scores, labels, 50)
    noise = SIGMA[spent] * math.sqrt(HOLDERS)
    noised = releases(counts, noise, 700)
    for name in ("ks", "brier", "mean", "default_rate"):
        ends = [getattr(intervals, name)(c, noise) for c in noised]
        assert covered(ends, getattr(metrics, name)(counts)) >= 0.93, name
    exact = {"brier": metrics.brier_exact(scores, labels), "mean": scores.mean()}
    for name, truth in exact.items():
        assert covered([getattr(intervals, name)(c, noise) for c in noised], truth) >= 0.93, name
    assert covered([intervals.default_rate(c, noise) for c in noised], labels.mean()) <= 0.975


def test_each_row_of_a_calibration_table_is_covered():
    scores, labels = users(30_000)
    counts = metrics.score_histogram(scores, labels, 52)
    noise, groups = 20.0, 10
    table = metrics.calibration(metrics.merged(counts, groups)[0])
    found = [intervals.calibration(c, noise, groups) for c in releases(counts, noise, 1000)]
    assert len(found[0]) == len(table) == groups
    for row, true in enumerate(table):
        if true.users:
            assert covered([ends[row] for ends in found], true.observed) >= 0.93


@pytest.mark.parametrize(
    ("number", "rate"),
    [(0, 0.5), (1, 1.0), (20, 0.2), (300, 0.2), (1000, 0.01), (1000, 0.99), (500, 0.0)],
)
@pytest.mark.parametrize("noise", [1.0, 5.0, 20.0])
def test_where_noise_swamps_the_counts_nothing_is_excluded(number, rate, noise):
    draw = np.random.default_rng(number)
    labels = (draw.random(number) < rate).astype(int)
    scores = relative_score(draw.normal(0, 0.7, number) + 0.6 * labels, 0.5)
    counts = metrics.score_histogram(scores, labels, 50)
    noised = releases(counts, noise, 250)
    for name in ("auc", "ks", "brier", "default_rate"):
        true = getattr(metrics, name)(counts)
        ends = [getattr(intervals, name)(c, noise) for c in noised]
        assert all(0 <= low <= high <= 1 for low, high in ends)
        if not math.isnan(true):
            assert covered(ends, true) >= 0.9, name


def test_of_noise_alone_the_whole_range_is_told():
    for counts in releases(np.zeros((2, 50)), 20.0, 200):
        assert intervals.auc(counts, 1e6) == intervals.ks(counts, 1e6) == (0, 1)
        assert intervals.default_rate(counts, 1e6) == intervals.brier(counts, 1e6) == (0, 1)
        assert intervals.gini(counts, 1e6) == (-1, 1)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_empty_counts_and_empty_classes_say_nothing_and_do_not_crash(noise):
    none, one = np.zeros((2, 5)), np.array([[4.0, 3, 0, 0, 1], [0] * 5])
    for counts in (none, one, one[::-1]):
        assert intervals.auc(counts, noise) == intervals.ks(counts, noise) == (0, 1)
    for name in ("brier", "mean", "default_rate"):
        assert getattr(intervals, name)(none, noise) == (0, 1)
    assert intervals.default_rate(one, 0.0) == (0, 0)


def test_without_noise_the_interval_is_the_point_and_what_bins_hide():
    scores, labels = users(5000)
    counts = metrics.score_histogram(scores, labels, 50)
    for name in ("ks", "default_rate"):
        low, high = getattr(intervals, name)(counts, 0.0)
        assert low == pytest.approx(high) == pytest.approx(getattr(metrics, name)(counts))
    low, high = intervals.auc(counts, 0.0)
    assert low <= metrics.auc_exact(scores, labels) <= high <= low + 0.005
    low, high = intervals.brier(counts, 0.0)
    assert low <= metrics.brier_exact(scores, labels) <= high <= low + 0.025
    low, high = intervals.mean(counts, 0.0)
    assert low <= scores.mean() <= high == pytest.approx(low + 1 / 50)


def test_a_single_bin_says_nothing_of_order():
    assert intervals.auc(np.array([[5.0], [7.0]]), 0.0) == (0, 1)
    assert intervals.ks(np.array([[50.0], [70.0]]), 1.0) == (0, 0)


@pytest.mark.parametrize("number", [200, 1000, 20_000])
def test_by_chance_too_scores_inside_a_bin_are_in_some_order(number):
    """Without noise: samples of users, whose AUC over the scores is not that over the bins."""
    inside = []
    for seed in range(300):
        scores, labels = users(number, seed=seed)
        low, high = intervals.auc(metrics.score_histogram(scores, labels, 50), 0.0)
        inside.append(low <= metrics.auc_exact(scores, labels) <= high)
    assert np.mean(inside) >= 0.92


counted = st.lists(st.integers(0, 300), min_size=4, max_size=40).map(
    lambda row: np.array(row[: len(row) // 2 * 2], float).reshape(2, -1)
)


@settings(max_examples=150)
@given(counted, st.floats(0, 60), st.integers(0, 2**32 - 1))
def test_the_figure_lies_in_its_interval(counts, noise, seed):
    noised = releases(counts, noise, 1, seed)[0]
    for name in SHARES:
        value, (low, high) = getattr(metrics, name)(noised), getattr(intervals, name)(noised, noise)
        assert -1 <= low <= high <= 1
        assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9, name


@settings(max_examples=60)
@given(
    st.integers(0, 50),
    st.integers(2, 60),
    st.floats(0, 12),
    st.floats(1.01, 3),
    st.sampled_from([0.5, 0.8, 0.95, 0.99]),
)
def test_more_noise_and_a_higher_level_only_widen(seed, bins, noise, more, level):
    scores, labels = users(6000, seed=seed)
    counts = metrics.score_histogram(scores, labels, bins)
    for name in SHARES:
        interval = getattr(intervals, name)
        low, high = interval(counts, noise, level)
        for wider in (interval(counts, noise * more, level), interval(counts, noise, 0.999)):
            assert wider[0] <= low + 1e-9, name
            assert high <= wider[1] + 1e-9, name


def test_the_moments_are_those_of_the_matrices():
    """The polynomials in closed form against the matrices of the docstring."""
    draw = np.random.default_rng(5)
    z, noise = 1.959963985, 3.0
    for bins, tie, slope in ((5, 0.5, 2.0), (7, 0.0, 0.0), (6, 1.0, 0.0), (2, 0.5, 1.0)):
        good, bad = draw.random((2, bins)) * 100
        k = np.tril(np.ones((bins, bins)), -1) + tie * np.eye(bins)
        k += slope / 12 * (np.eye(bins, k=-1) - np.eye(bins, k=1))
        passes = []
        for a in np.linspace(0, 1, 4001):
            m = k - a
            own = noise**4 * (m * m).sum()
            seen = noise**2 * ((m @ good) @ (m @ good) + (m.T @ bad) @ (m.T @ bad))
            chance = (good * bad @ (good + bad + 1)) / 12 if tie == 0.5 else 0
            if (bad @ m @ good) ** 2 <= z**2 * (max(seen - own, own) + chance):
                passes.append(a)
        found = intervals._auc(good, bad, tie, slope, noise, 0.95)
        assert found == pytest.approx((min(passes), max(passes)), abs=3e-4)


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_noise_that_is_no_deviation_is_an_error(noise):
    for name in SHARES:
        with pytest.raises(ValueError, match="noise"):
            getattr(intervals, name)(np.ones((2, 4)), noise)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_a_level_out_of_range_is_an_error(level):
    for name in SHARES:
        with pytest.raises(ValueError, match="level"):
            getattr(intervals, name)(100 * np.ones((2, 4)), 1.0, level)


def test_edges_must_fit_the_bins():
    with pytest.raises(ValueError, match="4 bins have 5"):
        intervals.brier(np.ones((2, 4)), 1.0, edges=[0, 0.5, 1])
