import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from credit_common import metrics


def scored(users=600, seed=0, grid=None):
    """Informative scores with ties where a grid is given."""
    rng = np.random.default_rng(seed)
    labels = rng.random(users) < 0.3
    logits = rng.normal(-0.8, 1, users) + 1.2 * labels
    scores = 1 / (1 + np.exp(-logits))
    if grid:
        scores = np.round(scores * grid) / grid
    return scores, labels.astype(int)


@pytest.mark.parametrize("grid", [None, 200, 10, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_metrics_agree_with_scikit_learn(grid, seed):
    scores, labels = scored(seed=seed, grid=grid)
    fpr, tpr, _ = sk.roc_curve(labels, scores)
    assert metrics.auc_exact(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores))
    assert metrics.ks_exact(scores, labels) == pytest.approx(np.abs(tpr - fpr).max())
    assert metrics.brier_exact(scores, labels) == pytest.approx(sk.brier_score_loss(labels, scores))
    assert metrics.log_loss_exact(scores, labels) == pytest.approx(sk.log_loss(labels, scores))
    precision = sk.average_precision_score(labels, scores)
    assert metrics.average_precision_exact(scores, labels) == pytest.approx(precision)


def test_rmse_and_accuracy_agree_with_scikit_learn():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert metrics.rmse(a, b) == pytest.approx(sk.root_mean_squared_error(a, b))
    c, d = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    assert metrics.accuracy(c, d) == pytest.approx(sk.accuracy_score(c, d))


def test_a_perfectly_wrong_certain_score_has_a_finite_log_loss():
    loss = metrics.log_loss_exact([0.0, 1.0], [1, 0])
    assert loss == pytest.approx(sk.log_loss([1, 0], [0.0, 1.0]))


@pytest.mark.parametrize("bins", [20, 50, 1000])
def test_histogram_metrics_are_within_the_binning_bias_of_the_exact_ones(bins):
    scores, labels = scored(users=4000)
    counts = metrics.score_histogram(scores, labels, bins)
    width = 1 / bins
    tied = (counts[0] * counts[1]).sum() / (counts[0].sum() * counts[1].sum())
    assert abs(metrics.auc(counts) - metrics.auc_exact(scores, labels)) <= tied / 2
    assert abs(metrics.auc(counts) - metrics.auc_exact(scores, labels)) < 0.2 * width
    assert -0.02 <= metrics.ks(counts) - metrics.ks_exact(scores, labels) <= 1e-12
    bias = abs(metrics.brier(counts) - metrics.brier_exact(scores, labels))
    assert bias <= width + width**2 / 4
    assert metrics.gini(counts) == pytest.approx(2 * metrics.auc(counts) - 1)
    assert metrics.default_rate(counts) == pytest.approx(labels.mean())


def test_brier_of_calibrated_scores_is_high_by_a_twelfth_of_the_squared_bin_width():
    rng = np.random.default_rng(5)
    scores = rng.random(400_000)
    labels = (rng.random(scores.size) < scores).astype(int)
    counts = metrics.score_histogram(scores, labels, 5)
    excess = metrics.brier(counts) - metrics.brier_exact(scores, labels)
    assert excess == pytest.approx(1 / (12 * 5**2), rel=0.15)


def test_the_noised_auc_is_nearly_unbiased_and_clamps_only_at_the_end():
    scores, labels = scored(users=1000)
    counts = metrics.score_histogram(scores, labels, 20)
    rng = np.random.default_rng(1)
    noised = [metrics.auc(counts + rng.normal(0, 4, counts.shape)) for _ in range(4000)]
    spread = np.std(noised)
    assert 0.003 < spread < 0.05
    assert np.mean(noised) == pytest.approx(metrics.auc(counts), abs=4 * spread / 4000**0.5 + 5e-4)


def test_negative_counts_are_not_clipped_before_the_sums():
    counts = np.array([[30.0, -10.0, 0.0], [0.0, -5.0, 15.0]])
    # by hand: Σ bad x (good below + half of good beside) = -5 x 25 + 15 x 20, over 20 x 10
    assert metrics.auc(counts) == pytest.approx((-5 * (30 - 5) + 15 * 20) / 200)
    assert metrics.default_rate(counts) == pytest.approx(10 / 30)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100))
def test_any_noise_leaves_results_in_range_or_nan(seed, sigma):
    counts = np.random.default_rng(seed).normal(0, sigma, (2, 7))
    for metric in (metrics.auc, metrics.ks, metrics.brier, metrics.mean, metrics.default_rate):
        value = metric(counts)
        assert np.isnan(value) or 0 <= value <= 1


@given(st.data())
def test_one_user_more_changes_one_cell_by_one(data):
    bins = data.draw(st.integers(1, 60))
    users = data.draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), max_size=30))
    extra = data.draw(st.tuples(st.floats(0, 1), st.integers(0, 1)))

    def histogram(rows):
        return metrics.score_histogram([s for s, _ in rows], [y for _, y in rows], bins)

    change = histogram([*users, extra]) - histogram(users)
    assert np.abs(change).sum() == 1
    assert change[extra[1]].sum() == 1
    assert histogram(users).sum() == len(users)


def test_histograms_of_holders_add_up():
    scores, labels = scored()
    whole = metrics.score_histogram(scores, labels, 50)
    parts = metrics.score_histogram(scores[:200], labels[:200], 50)
    parts = parts + metrics.score_histogram(scores[200:], labels[200:], 50)
    assert np.array_equal(whole, parts)


def test_the_ends_of_the_score_range_have_cells():
    assert metrics.score_histogram([0.0, 1.0], [0, 1], 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_a_score_that_is_no_probability_is_an_error_that_does_not_quote_it(bad):
    with pytest.raises(ValueError) as caught:
        metrics.score_histogram([0.5, bad], [0, 1], 10)
    assert not str(caught.value).count(str(bad)) or bad in (np.nan, np.inf)
    if not np.isfinite(bad):
        with pytest.raises(ValueError, match="NaN or infinite"):
            metrics.auc_exact([0.5, bad], [0, 1])


@pytest.mark.parametrize("labels", [[0, 2], [0, -1], [0, 0.5], [0], [[0, 1]]])
def test_labels_other_than_0_and_1_are_errors(labels):
    with pytest.raises(ValueError):
        metrics.score_histogram([0.2, 0.7], labels, 10)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_gives_nan_and_no_crash(label):
    scores, labels = [0.2, 0.7], [label, label]
    counts = metrics.score_histogram(scores, labels, 10)
    assert np.isnan(metrics.auc(counts))
    assert np.isnan(metrics.gini(counts))
    assert np.isnan(metrics.ks(counts))
    assert np.isnan(metrics.auc_exact(scores, labels))
    assert metrics.default_rate(counts) == label


def test_no_users_at_all_gives_nan_and_no_crash():
    counts = metrics.score_histogram([], [], 10)
    for metric in (metrics.auc, metrics.ks, metrics.brier, metrics.default_rate):
        assert np.isnan(metric(counts))
    for exact in (metrics.auc_exact, metrics.brier_exact, metrics.log_loss_exact):
        assert np.isnan(exact([], []))
    assert np.isnan(metrics.average_precision_exact([], []))
    assert np.isnan(metrics.rmse([], []))


ranked = hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 25))


@settings(max_examples=60)
@given(ranked, st.integers(0, 2**32 - 1))
def test_auc_keeps_under_monotone_maps_and_flips_with_the_labels(ranks, seed):
    labels = np.random.default_rng(seed).integers(0, 2, ranks.size)
    labels[:2] = 0, 1
    value = metrics.auc_exact(ranks / 25, labels)
    assert metrics.auc_exact(np.exp(ranks / 10) - 7, labels) == pytest.approx(value)
    assert metrics.auc_exact(ranks / 25, 1 - labels) == pytest.approx(1 - value)
    assert metrics.auc_exact(-ranks, labels) == pytest.approx(1 - value)
    assert metrics.ks_exact(ranks, labels) == pytest.approx(metrics.ks_exact(-ranks, 1 - labels))


def test_calibration_gives_the_observed_rate_of_each_bin():
    table = metrics.calibration(np.array([[3, 0, 1], [1, 0, 3]]))
    assert [row.users for row in table] == [4, 0, 4]
    assert table[0].observed == 0.25
    assert np.isnan(table[1].observed)
    assert table[2].observed == 0.75
    assert (table[0].low, table[2].high) == (0, 1)
    assert table[1].low == table[0].high == pytest.approx(1 / 3)


def test_a_calibration_table_and_a_brier_score_take_the_probabilities_of_their_bins():
    counts = np.array([[3, 0, 1], [1, 0, 3]])
    table = metrics.calibration(counts, [0, 0.1, 0.3, 1])
    assert [(row.low, row.high) for row in table] == [(0, 0.1), (0.1, 0.3), (0.3, 1)]
    by_hand = (3 * 0.05**2 + 0.95**2 + 0.6**2 + 3 * 0.4**2) / 8
    assert metrics.brier(counts, [0.05, 0.2, 0.6]) == pytest.approx(by_hand)
    for wrong in ([0, 1], [0, 0.1, 0.2, 0.3, 1]):
        with pytest.raises(ValueError, match="must be"):
            metrics.calibration(counts, wrong)
        with pytest.raises(ValueError, match="must be 3"):
            metrics.brier(counts, wrong)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_merged_bins_keep_every_user_and_differ_in_width_by_one_at_most(bins, groups, seed):
    counts = np.random.default_rng(seed).integers(0, 9, (2, bins))
    table, at = metrics.merged(counts, groups)
    assert table.shape == (2, min(bins, groups))
    assert np.array_equal(table.sum(1), counts.sum(1))
    assert (at[0], at[-1]) == (0, bins)
    assert np.ptp(np.diff(at)) <= 1
    assert np.array_equal(table[:, 0], counts[:, : at[1]].sum(1))


def test_the_mean_puts_each_value_at_its_bins_centre():
    assert metrics.mean(np.array([[1, 0, 1, 0], [0, 2, 0, 0]])) == pytest.approx(
        (0.125 + 2 * 0.375 + 0.625) / 4
    )
    assert np.isnan(metrics.mean(np.zeros((2, 4))))


@pytest.mark.parametrize("shape", [(3, 4), (8,), (2, 4, 1)])
def test_counts_of_another_shape_are_errors(shape):
    with pytest.raises(ValueError, match="shape"):
        metrics.auc(np.ones(shape))


def test_counts_with_nan_are_errors():
    with pytest.raises(ValueError, match="finite"):
        metrics.auc(np.full((2, 3), np.nan))


def test_predictions_of_another_kind_are_errors():
    with pytest.raises(ValueError):
        metrics.rmse([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError):
        metrics.rmse([1.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        metrics.accuracy([0.5, 1.0], [0, 1])
