"""Figures and bands: the libraries' own figures, exact counts, and no score split."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from credit_client.validation.bands import band_of, score_bands
from credit_client.validation.figures import figures


@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_those_of_the_libraries(drawn, ties):
    logits, pds, labels = drawn(700, ties=ties)
    told = figures(logits, pds, labels)
    assert told.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert told.gini == pytest.approx(2 * told.auc - 1, abs=1e-12)
    assert told.auc_low < told.auc < told.auc_high
    gap = ks_2samp(logits[labels == 1], logits[labels == 0])
    assert told.ks == pytest.approx(gap.statistic, abs=1e-12)
    assert told.average_precision == pytest.approx(average_precision_score(labels, logits))
    assert told.brier == pytest.approx(brier_score_loss(labels, pds))
    assert told.log_loss == pytest.approx(log_loss(labels, pds))
    assert (told.users, told.bads) == (700, labels.sum())


def test_the_ks_is_reached_at_the_pd_that_is_told(drawn):
    logits, pds, labels = drawn(500, seed=3)
    told = figures(logits, pds, labels)
    above = pds >= told.ks_pd
    assert above[labels == 1].mean() - above[labels == 0].mean() == pytest.approx(told.ks)


def test_a_model_that_is_upside_down_has_its_ks_too(drawn):
    logits, pds, labels = drawn(500, seed=3)
    assert figures(-logits, 1 - pds, labels).ks == pytest.approx(figures(logits, pds, labels).ks)


def test_bands_are_tenths_by_rank_and_their_counts_are_exact(drawn):
    logits, pds, labels = drawn(1000)
    bands = score_bands(logits, pds, -logits, labels)
    assert [band.users for band in bands] == [100] * 10
    frame = pd.DataFrame({"pd": pds, "bad": labels}).sort_values("pd", ascending=False)
    oracle = frame.groupby(np.arange(1000) // 100)
    assert [b.bads for b in bands] == oracle["bad"].sum().tolist()
    assert [b.pd_high for b in bands] == oracle["pd"].max().tolist()
    assert [b.pd_low for b in bands] == oracle["pd"].min().tolist()
    gain = oracle["bad"].sum().cumsum() / labels.sum()
    goods = (100 - oracle["bad"].sum()).cumsum() / (1000 - labels.sum())
    assert [b.gain for b in bands] == pytest.approx(gain.tolist())
    assert [b.ks for b in bands] == pytest.approx((gain - goods).tolist())
    assert [b.lift for b in bands] == pytest.approx((oracle["bad"].mean() / labels.mean()).tolist())
    assert bands[0].cumulative_lift == pytest.approx(bands[0].lift)
    assert (bands[-1].gain, bands[-1].goods, bands[-1].ks) == (1, 1, 0)


@pytest.mark.parametrize("seed", range(5))
def test_users_of_one_score_are_in_one_band(drawn, seed):
    logits, pds, labels = drawn(300, seed, ties=True)
    place = band_of(logits)
    assert all(np.unique(place[logits == score]).size == 1 for score in np.unique(logits))
    bands = score_bands(logits, pds, -logits, labels)
    assert sum(band.users for band in bands) == 300
    assert all(a.pd_low > b.pd_high for a, b in pairwise(bands))
    assert len(bands) < 10


def test_all_users_of_one_score_are_one_band(drawn):
    _, pds, labels = drawn(60)
    (band,) = score_bands(np.zeros(60), pds, np.zeros(60), labels)
    assert (band.users, band.gain, band.lift) == (60, 1, pytest.approx(1))
