import doctest

import numpy as np
import pandas as pd
import pytest

from credit_common.metrics import auc_exact
from credit_simulations.simulated import best, draws, histories
from credit_simulations.simulated.best import best_auc, expected_auc
from credit_simulations.simulated.merchants import draw_merchants
from credit_simulations.simulated.shoppers import draw_defaults, draw_shoppers, true_pd


@pytest.mark.parametrize("module", [best, draws, histories])
def test_examples_hold(module):
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_expected_auc_is_the_ratio_over_all_pairs():
    p = np.round(np.random.default_rng(3).random(80), 1)  # with ties, zeros and ones
    pairs = np.outer(p, 1 - p)
    np.fill_diagonal(pairs, 0.0)
    won = (p[:, None] > p) + 0.5 * (p[:, None] == p)
    assert expected_auc(p) == pytest.approx((pairs * won).sum() / pairs.sum(), abs=1e-12)


def test_best_auc_comes_near_to_the_expected_one_over_many_draws_of_labels():
    pd_ = true_pd(draw_shoppers(4, 4000, draw_merchants(4, 5)))
    frame = pd.DataFrame({"true_pd": pd_})
    found = [best_auc(frame.assign(default=draw_defaults(seed, pd_))) for seed in range(300)]
    error = np.std(found) / np.sqrt(len(found))
    # Six standard errors, and the mean of a ratio is not the ratio of means: by less than .0005.
    assert abs(np.mean(found) - expected_auc(pd_)) < 6 * error + 5e-4


def test_no_part_of_the_pd_can_be_left_out_for_free():
    people = draw_shoppers(4, 10_000, draw_merchants(4, 5))
    pd_ = true_pd(people)
    for part in ("numbers", "events", "text", "links"):
        score = true_pd(people, without=[part])
        # Over the mean of many labels the true PD wins; 40 draws leave no doubt of .005.
        lost = [
            auc_exact(pd_, labels) - auc_exact(score, labels)
            for labels in (draw_defaults(seed, pd_) for seed in range(40))
        ]
        assert np.mean(lost) > 0.005, part


def test_labels_that_are_all_the_same_have_no_best_auc():
    assert np.isnan(best_auc(pd.DataFrame({"true_pd": [0.1, 0.2], "default": [0, 0]})))
