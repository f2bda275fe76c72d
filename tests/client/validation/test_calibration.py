"""Calibration: known slopes are found, and nobody is judged by a fit that has seen the user."""

import numpy as np
import pytest
from scipy.stats import binomtest, chi2, kstest
from sklearn.metrics import brier_score_loss, log_loss

from credit_client.scoring.calibration import METHODS
from credit_client.shard import is_holdout, user_key
from credit_client.validation.calibration import (
    FOLDS,
    calibrated,
    cross_fitted,
    folds,
    slope_and_intercept,
    wilson,
)
from credit_common.errors import ShardError


def keys_of(users):
    return [user_key("salt", f"u{i}") for i in range(users)]


def test_figures_of_calibration_are_those_of_the_libraries(drawn):
    _, pds, labels = drawn(800)
    told = calibrated("as released", pds, labels)
    assert told.brier == pytest.approx(brier_score_loss(labels, pds))
    assert told.log_loss == pytest.approx(log_loss(labels, pds))
    order = np.argsort(pds)
    tenths = [order[i : i + 80] for i in range(0, 800, 80)]
    assert [row.users for row in told.rows] == [80] * 10
    assert [row.bads for row in told.rows] == [labels[t].sum() for t in tenths]
    ece = np.mean([abs(pds[t].mean() - labels[t].mean()) for t in tenths])
    assert told.ece == pytest.approx(ece)
    statistic = sum(
        (labels[t].sum() - pds[t].sum()) ** 2 / (80 * pds[t].mean() * (1 - pds[t].mean()))
        for t in tenths
    )
    assert told.hosmer_lemeshow == pytest.approx(statistic)
    assert told.p_value == pytest.approx(chi2.sf(statistic, 10))


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, -0.8), (2.0, 0.5)])
def test_a_known_slope_and_intercept_are_found(drawn, slope, shift):
    logits, _, _ = drawn(60_000)
    truth = 1 / (1 + np.exp(-(slope * logits + shift)))
    labels = (np.random.default_rng(9).random(60_000) < truth).astype(np.int64)
    pds = 1 / (1 + np.exp(-logits))
    found, intercept = slope_and_intercept(pds, labels)
    assert found == pytest.approx(slope, abs=0.05)
    moved = 1 / (1 + np.exp(-(logits + intercept)))
    assert moved.mean() == pytest.approx(labels.mean(), abs=1e-9)
    if slope == 1:
        assert intercept == pytest.approx(shift, abs=0.05)


def test_right_pds_pass_hosmer_lemeshow_as_often_as_they_should(drawn):
    values = [calibrated("", *drawn(600, seed)[1:]).p_value for seed in range(120)]
    assert kstest(values, "uniform").pvalue > 0.001
    _, pds, labels = drawn(600)
    assert calibrated("", pds**2, labels).p_value < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_users_pd_does_not_depend_on_outcomes_of_its_fold(drawn, method):
    logits, _, labels = drawn(1500)
    keys = keys_of(1500)
    before, own = cross_fitted(method, logits, labels, keys), folds(keys)
    for fold in range(FOLDS):
        other = labels.copy()
        other[own == fold] = 1 - other[own == fold]
        after = cross_fitted(method, logits, other, keys)
        assert np.array_equal(before[own == fold], after[own == fold])
        assert not np.allclose(before[own != fold], after[own != fold])


@pytest.mark.parametrize("method", METHODS)
def test_either_method_mends_pds_that_are_off(drawn, method):
    logits, _, labels = drawn(3000)
    off = 2.0 * logits + 1.0
    keys = keys_of(3000)
    before = calibrated("", 1 / (1 + np.exp(-off)), labels)
    after = calibrated(method, cross_fitted(method, off, labels, keys), labels)
    assert after.brier < before.brier
    assert after.ece < 0.3 * before.ece
    assert before.slope == pytest.approx(0.5, abs=0.06)
    assert after.intercept == pytest.approx(0, abs=0.05)


def test_folds_are_even_among_the_held_out_too():
    held = [user_key("salt", f"u{i}") for i in range(20_000) if is_holdout("salt", 0.1, f"u{i}")]
    counts = np.bincount(folds(held), minlength=FOLDS)
    assert counts.min() > 0.8 * len(held) / FOLDS


def test_a_fold_that_has_all_defaults_leaves_nothing_to_fit(drawn):
    logits, _, _ = drawn(100)
    keys = keys_of(100)
    labels = np.zeros(100, np.int64)
    labels[np.flatnonzero(folds(keys) == 2)[:6]] = 1
    with pytest.raises(ShardError, match=r"0 of \d+ users defaulted"):
        cross_fitted("platt", logits, labels, keys)


def test_isotonic_pds_are_never_certain(drawn):
    logits, _, labels = drawn(1500)
    pds = cross_fitted("isotonic", 50 * logits, labels, keys_of(1500))
    assert 0 < pds.min() < pds.max() < 1


@pytest.mark.parametrize(("bads", "users"), [(0, 10), (3, 17), (50, 50), (120, 400)])
def test_wilsons_interval_is_scipys(bads, users):
    ends = binomtest(bads, users).proportion_ci(method="wilson")
    assert wilson(bads, users) == pytest.approx((ends.low, ends.high), abs=1e-12)
