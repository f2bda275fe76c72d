import dataclasses

import numpy as np
import pytest

from credit_common.evaluation import count_users, exact_figures, read_counts, relative_score
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
    assert set(read) == set(exact)
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
            assert np.isnan(value) or 0 <= value <= (50 if name == "mae" else 1)


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
