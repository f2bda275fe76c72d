import dataclasses
import doctest
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_client.scoring import points as module
from credit_client.scoring.points import (
    class_probabilities,
    default_probability,
    points,
    target_value,
)
from credit_common.contract import Contract
from credit_common.decision import Scorecard
from credit_common.errors import ContractError

LOGITS = st.floats(-500, 500)


@pytest.fixture(scope="session")
def kinds(contract, task) -> dict[str, Contract]:
    """The contract as each kind of task."""
    return {
        kind: dataclasses.replace(contract, task=dataclasses.replace(contract.task, **changes))
        for kind, changes in task.items()
    }


def test_a_known_pd_has_known_points():
    for pd, told in ((0.05, 600.0), (1 / 39, 650.0), (1 / 10.5, 550.0), (0.5, 387.6036)):
        assert points(Scorecard(), np.log(pd / (1 - pd))) == pytest.approx(told, abs=1e-3)


def test_the_docstrings_examples_are_true():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted >= 2


@given(LOGITS, st.floats(0.1, 100), st.floats(-1000, 1000), st.floats(1, 200))
def test_pdo_points_double_the_odds(logit, odds, base, pdo):
    card = Scorecard(base_score=base, base_odds=odds, pdo=pdo)
    assert points(card, -np.log(odds)) == pytest.approx(base, abs=1e-6)
    assert points(card, logit - np.log(2)) - points(card, logit) == pytest.approx(pdo, abs=1e-6)


def test_points_and_pd_tell_one_order():
    logits = np.linspace(-30, 30, 2001)
    assert np.all(np.diff(points(Scorecard(), logits)) < 0)


def test_pd_is_the_sigmoid_to_the_last_digits(kinds):
    logits = np.linspace(-30, 30, 601)
    pd = default_probability(kinds["binary"], logits)
    assert pd.dtype == np.float64
    assert np.allclose(pd, 1 / (1 + np.exp(-logits)), rtol=1e-14, atol=0)
    assert np.allclose(np.log(pd / (1 - pd))[:400], logits[:400], rtol=1e-9, atol=1e-9)
    assert np.all(np.diff(pd) > 0)


def test_no_logit_overflows(kinds):
    far = [-np.inf, -1e308, -800.0, 0.0, 800.0, 1e308, np.inf]
    with np.errstate(all="raise", under="ignore"):
        pd = default_probability(kinds["binary"], far)
    assert pd.tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert default_probability(kinds["binary"], -700.0) > 0


@given(LOGITS)
def test_pd_of_the_opposite_is_the_complement(kinds, logit):
    one, other = default_probability(kinds["binary"], [logit, -logit])
    assert one + other == pytest.approx(1.0, abs=1e-15)


def test_float32_logits_are_not_rounded_further(kinds):
    logits = np.array([[-9.7, 3.1]], np.float32)
    assert default_probability(kinds["binary"], logits).shape == (1, 2)
    expected = default_probability(kinds["binary"], logits.astype(np.float64))
    assert np.array_equal(default_probability(kinds["binary"], logits), expected)
    assert points(Scorecard(), logits).dtype == np.float64


def test_class_probabilities_are_the_softmax(kinds):
    scores = np.array([[0.0, np.log(2), np.log(5)], [1000.0, 0.0, -1000.0]])
    shares = class_probabilities(kinds["multiclass"], scores)
    assert np.allclose(shares, [[1 / 8, 2 / 8, 5 / 8], [1, 0, 0]], atol=1e-12)
    draw = np.random.default_rng(0).standard_normal((50, 3)) * 20
    shares = class_probabilities(kinds["multiclass"], draw)
    assert np.allclose(shares.sum(1), 1)
    assert np.array_equal(shares.argmax(1), draw.argmax(1))
    assert np.allclose(shares, class_probabilities(kinds["multiclass"], draw + 7))


def test_a_regressions_value_is_in_the_targets_unit(kinds):
    low_high = dataclasses.replace(
        kinds["regression"], task=dataclasses.replace(kinds["regression"].task, range=(-10, 30))
    )
    assert target_value(low_high, [0.0, 0.25, 1.0, 1.5]).tolist() == [-10.0, 0.0, 30.0, 50.0]


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (default_probability, "binary"),
        (class_probabilities, "multiclass"),
        (target_value, "regression"),
    ],
)
def test_scores_of_another_task_are_refused(kinds, told, kind):
    told(kinds[kind], np.zeros((2, 3)))
    for other in set(kinds) - {kind}:
        with pytest.raises(ContractError, match=f"task.kind = '{other}': must be '{kind}'"):
            told(kinds[other], np.zeros((2, 3)))


def test_points_need_no_torch():
    code = (
        "import sys, credit_client.scoring.points;"
        "print(sorted({'torch', 'transformers', 'pandas', 'flwr', 'opacus'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
