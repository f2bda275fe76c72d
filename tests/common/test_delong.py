"""DeLong's errors are those of resampled users; intervals hold the truth as often as they say."""

import numpy as np
import pytest

from credit_common.delong import auc_error, auc_interval, paired_error
from credit_common.metrics import auc_exact


def drawn(users, seed=0, shift=1.0):
    draw = np.random.default_rng(seed)
    labels = (draw.random(users) < 0.3).astype(np.float32)
    return (shift * labels + draw.normal(0, 2, users)).astype(np.float32), labels, draw


def test_the_paired_error_is_that_of_resampled_users():
    one, labels, draw = drawn(400)
    other = (one + draw.normal(0, 1, 400)).astype(np.float32)
    assert paired_error(one, one, labels) == 0.0
    gaps = []
    for _ in range(600):
        rows = draw.integers(0, 400, 400)
        gaps.append(auc_exact(one[rows], labels[rows]) - auc_exact(other[rows], labels[rows]))
    assert paired_error(one, other, labels) == pytest.approx(np.std(gaps), rel=0.15)


def test_the_error_is_that_of_every_pair_counted_one_by_one():
    scores, labels, _ = drawn(60)
    scores = scores.round()  # with ties
    bad, good = scores[labels > 0], scores[labels == 0]
    pairs = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
    variance = pairs.mean(1).var(ddof=1) / len(bad) + pairs.mean(0).var(ddof=1) / len(good)
    assert auc_error(scores, labels) == pytest.approx(np.sqrt(variance), rel=1e-12)


def test_the_interval_covers_the_truth_and_stays_inside():
    from math import erf

    truth = 0.5 * (1 + erf(1.0 / (2 * np.sqrt(2)) / np.sqrt(2)))  # normals 1 apart, deviation 2
    intervals = [auc_interval(*drawn(200, seed)[:2]) for seed in range(400)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 < covered < 0.98
    assert all(0 < low < high < 1 for low, high in intervals)


def test_a_perfect_order_has_no_error_and_no_interval():
    assert auc_interval([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]) == (1.0, 1.0)
