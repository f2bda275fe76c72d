import dataclasses

import numpy as np
import pytest

from credit_common import metrics
from credit_common.evaluation import (
    Figure,
    bin_edges,
    bin_probabilities,
    count_users,
    exact_figures,
    figures_to_json,
    is_rows,
    probability,
    read_calibration,
    read_counts,
    read_psi,
    read_released,
    relative_score,
    rows_of,
)
from credit_common.metrics import auc_exact

BINS = 50
KINDS = ("binary", "multiclass", "regression")


@pytest.fixture
def by_kind(contract):
    task = contract.task
    none = {"positive": (), "negative": ()}
    tasks = {
        "binary": task,
        "multiclass": dataclasses.replace(task, kind="multiclass", classes=("a", "b", "c"), **none),
        "regression": dataclasses.replace(task, kind="regression", range=(10.0, 60.0), **none),
    }
    return {kind: dataclasses.replace(contract, task=task) for kind, task in tasks.items()}


def cases(kind, n=2000, seed=0):
    draw = np.random.default_rng(seed)
    if kind == "binary":
        labels = (draw.random(n) < 0.3).astype(np.float32)
        scores = (labels + draw.standard_normal(n) - 1.5)[:, None]
    elif kind == "multiclass":
        labels = draw.integers(0, 3, n).astype(np.float32)
        scores = draw.standard_normal((n, 3)) + 1.5 * np.eye(3)[labels.astype(int)]
    else:
        labels = draw.random(n).astype(np.float32)
        scores = (labels + 0.1 * draw.standard_normal(n))[:, None]
    return scores.astype(np.float32), labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoilt", [None, np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_every_user_is_in_exactly_one_cell_whatever_the_score(by_kind, kind, spoilt):
    scores, labels = cases(kind, n=64)
    if spoilt is not None:
        scores[::2] = spoilt
        scores[1, 0] = spoilt
    counts = count_users(by_kind[kind], scores, labels)
    assert counts.shape == (2, BINS)
    assert counts.sum() == 64
    for left_out in range(0, 64, 7):
        fewer = count_users(
            by_kind[kind], np.delete(scores, left_out, 0), np.delete(labels, left_out)
        )
        difference = counts - fewer
        assert difference.min() == 0
        assert difference.sum() == difference.max() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_counted_where_nobody_is(by_kind, kind):
    outputs = by_kind[kind].task.outputs
    empty = count_users(by_kind[kind], np.zeros((0, outputs), np.float32), np.zeros(0, np.float32))
    assert empty.shape == (2, BINS)
    assert not empty.any()


@pytest.mark.parametrize(
    ("kind", "figure", "close"),
    [
        ("binary", "auc", 0.01),
        ("binary", "ks", 0.03),
        ("multiclass", "accuracy", 1e-12),
        ("regression", "mae", 0.5),
    ],
)
def test_figures_from_counts_are_those_of_the_scores(by_kind, kind, figure, close):
    scores, labels = cases(kind)
    counts = count_users(by_kind[kind], scores, labels).astype(np.float64)
    read, exact = read_counts(by_kind[kind], counts), exact_figures(by_kind[kind], scores, labels)
    assert set(exact) <= set(read)
    assert next(iter(read)) == next(iter(exact))  # the main figure comes first
    assert read[figure] == pytest.approx(exact[figure], abs=close)


def test_exact_figures_are_what_they_are_named(by_kind):
    scores, labels = cases("binary")
    figures = exact_figures(by_kind["binary"], scores, labels)
    assert figures["auc"] == auc_exact(scores[:, 0], labels)
    scores, labels = cases("multiclass")
    right = float((scores.argmax(1) == labels).mean())
    assert exact_figures(by_kind["multiclass"], scores, labels) == {"accuracy": right}
    scores, labels = cases("regression")
    mae = 50 * float(np.abs(scores[:, 0] - labels).mean())
    assert exact_figures(by_kind["regression"], scores, labels)["mae"] == pytest.approx(mae)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_noise_alone_stay_in_their_range(by_kind, kind):
    draw = np.random.default_rng(3)
    for _ in range(50):
        figures = read_counts(by_kind[kind], 20 * draw.standard_normal((2, BINS)))
        for name, value in figures.items():
            assert np.isnan(value) or (name == "gini") * -1 <= value <= (50 if name == "mae" else 1)


def test_the_base_rate_lies_in_the_middle():
    logit = np.log(0.2 / 0.8)
    middle, low, high = relative_score([logit, logit - 2, logit + 2], 0.2)
    assert middle == pytest.approx(0.5)
    assert low < 0.5 < high
    assert low + high == pytest.approx(1)
    assert relative_score([np.nan], 0.2) == 0.5


def test_a_regression_too_low_and_too_high_are_told_apart(by_kind):
    scores = np.array([[0.9], [0.9], [0.1]], np.float32)
    labels = np.array([0.5, 0.4, 0.5], np.float32)
    counts = count_users(by_kind["regression"], scores, labels)
    assert counts.sum(1).tolist() == [1, 2]


@pytest.mark.parametrize("base_rate", [0.02, 0.2, 0.5, 0.9])
def test_relative_scores_and_probabilities_are_each_others_inverse(base_rate):
    chance = np.array([0.001, 0.02, 0.2, 0.5, 0.99])
    relative = relative_score(np.log(chance / (1 - chance)), base_rate)
    assert probability(relative, base_rate) == pytest.approx(chance)
    assert probability([0, 0.5, 1], base_rate).tolist() == pytest.approx([0, base_rate, 1])


def test_brier_and_calibration_are_of_probabilities_not_of_relative_scores(by_kind):
    """Scores of a calibrated model: its Brier score and its observed rates are those it says."""
    contract = by_kind["binary"]
    draw = np.random.default_rng(2)
    chance = probability(relative_score(draw.normal(-1.4, 0.8, 60_000), 0.2), 0.2)
    labels = (draw.random(chance.size) < chance).astype(np.float32)
    scores = np.log(chance / (1 - chance))[:, None].astype(np.float32)
    counts = count_users(contract, scores, labels).astype(np.float64)
    exact = metrics.brier_exact(chance, labels)
    assert read_counts(contract, counts)["brier"] == pytest.approx(exact, abs=5e-4)
    assert abs(metrics.brier(counts) - exact) > 0.02  # what the bins alone would say
    table = read_calibration(contract, counts, 2)
    assert sum(row.users for row, _ in table) == pytest.approx(60_000)
    for row, (low, high) in table:
        assert low <= row.observed <= high
        if row.users > 1000:
            assert row.low - 0.02 <= row.observed <= row.high + 0.02
    assert (table[0][0].low, table[-1][0].high) == (0, 1)
    assert bin_edges(contract)[0] == 0
    assert (np.diff(bin_edges(contract)) > 0).all()
    assert (bin_edges(contract)[:-1] < bin_probabilities(contract)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_of_the_figures_and_grow_with_the_holders_noise(by_kind, kind):
    contract = by_kind[kind]
    scores, labels = cases(kind)
    counts = count_users(contract, scores, labels).astype(np.float64)
    few, many = (read_released(contract, counts, holders) for holders in (1, 30))
    values = read_counts(contract, counts)
    assert {name: figure.value for name, figure in few.items()} == values
    assert list(few) == list(many) == list(values)
    for name, figure in few.items():
        assert many[name].low <= figure.low <= figure.value <= figure.high <= many[name].high
        assert figure.high - figure.low < 0.5 * (50 if name == "mae" else 1)
    for name, exact in exact_figures(contract, scores, labels).items():
        assert many[name].low <= exact <= many[name].high


def test_the_interval_follows_the_sum_over_holders(by_kind):
    """Coverage end to end: ten holders' own noised histograms, summed."""
    contract = by_kind["binary"]
    scores, labels = cases("binary", n=5000)
    counts = count_users(contract, scores, labels)
    exact, draw = exact_figures(contract, scores, labels)["auc"], np.random.default_rng(1)
    sigma, inside = contract.evaluation.noise_multiplier, []
    for _ in range(1000):
        noise = sigma * draw.standard_normal((10, *counts.shape))
        found = read_released(contract, counts + noise.sum(0), 10)["auc"]
        inside.append(found.low <= exact <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.99


def test_a_stability_index_compares_ten_groups_and_knows_both_noises(by_kind):
    contract = by_kind["binary"]
    scores, labels = cases("binary", n=20_000)
    first = count_users(contract, scores, labels).astype(np.float64)
    later = count_users(contract, scores + np.float32(1), labels).astype(np.float64)
    same, moved = (
        read_psi(contract, (first, 3), (first, 3)),
        read_psi(contract, (first, 3), (later, 3)),
    )
    assert same.value == 0
    assert same.high < 0.01
    assert moved.low > 0.25
    assert moved.low < moved.value
    wider = read_psi(contract, (first, 3), (later, 300))
    assert wider.high - wider.low > moved.high - moved.low


def test_figures_are_plain_json_that_a_last_bit_does_not_change():
    plain = figures_to_json(
        {
            "auc": Figure(value=0.71234549, low=0.7, high=0.72 + 1e-12),
            "ks": Figure(value=float("nan"), low=0.0, high=1.0),
        }
    )
    assert plain == {
        "figures": {"auc": 0.712345, "ks": None},
        "intervals": {"auc": [0.7, 0.72], "ks": [0.0, 1.0]},
    }
    assert figures_to_json({}) == {"figures": {}, "intervals": {}}


def test_rows_of_a_histogram_are_floats_bit_for_bit():
    counts = np.random.default_rng(0).normal(0, 20, (2, 9))
    rows = rows_of(counts)
    assert is_rows(rows)
    assert np.array(rows).tobytes() == counts.tobytes()
    assert rows_of(None) is None
