"""ε by three accountants: the reported one (PLD), Opacus' PRV beside it, Rényi above it.

PRV's answer is an upper bound too, by its own allowance (here .015) above its estimate; the two
agree where they differ by that. It cannot be asked everywhere, and the grid stays where it can: an
empty history and σ = 0 crash it, σ = .001 asks for 84 GiB, and far past ε = 100 it is silently low
(q = .5, σ = 1, T = 600: 145, where the central limit, which underestimates, says 197).
"""

import math
import warnings
from itertools import pairwise

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from credit_common.accountant import epsilon, epsilon_rdp, epsilon_replace_one
from credit_common.events import Histogram, SampledGaussian

DELTA = 1e-5
CLOSE = 0.02
STEPS = (10, 100, 400, 1000)
MECHANISMS = [
    (0.001, 1.0),
    (0.005, 0.8),
    (0.005, 1.5),
    (0.01, 1.0),
    (0.02, 0.8),
    (0.02, 3.0),
    (0.05, 1.0),
    (0.05, 1.5),
    (0.1, 1.5),
    (0.1, 3.0),
    (0.2, 3.0),
    (0.2, 10.0),
]
"""Sampling rate and noise of a step; each is run for all of STEPS."""
EDGES = [
    [(0.05, 1.0, 600)],
    [(0.01, 0.6, 2000)],
    [(0.05, 0.5, 1)],
    [(0.5, 5.0, 100)],
    [(0.001, 1.0, 20_000)],
]
"""The published plans, the least noise, the largest rate and the most steps."""
MIXED = [
    [(0.05, 1.0, 100), (1, 20.0, 6)],
    [(0.05, 1.0, 400), (1, 12.0, 30)],
    [(0.02, 0.8, 100), (1, 5.0, 2)],
    [(0.02, 3.0, 1000), (1, 3.74, 1)],
    [(0.1, 1.5, 100), (1, 7.04, 4)],
    [(0.1, 3.0, 400), (1, 2.0, 3)],
    [(0.2, 10.0, 100), (1, 13.29, 10)],
    [(0.005, 0.8, 1000), (1, 20.0, 1), (1, 7.0, 2)],
    [(0.05, 1.0, 10), (0.05, 1.5, 10), (1, 10.0, 1), (0.02, 0.8, 10)],
    [(0.1, 3.0, 100), (0.2, 3.0, 100), (1, 10.0, 4), (0.1, 3.0, 10)],
    [(1, 20.0, 5)],
    [(1, 4.0, 4), (1, 10.0, 1)],
]
"""Histories of several contracts; q = 1 is a histogram, with its releases."""
GRID = [*([(q, sigma, t)] for q, sigma in MECHANISMS for t in STEPS), *EDGES, *MIXED]


def events(plan):
    return [
        Histogram(noise_multiplier=sigma, releases=number)
        if q == 1
        else SampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=number)
        for q, sigma, number in plan
    ]


def opacus_epsilon(plan):
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(sigma, q, number) for q, sigma, number in plan]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return other.get_epsilon(delta=DELTA, eps_error=0.015)


def limit_epsilon(q, sigma, number):
    """ε by the central limit of Gaussian DP (Bu et al. 2020), which is no bound."""
    mu = q * math.sqrt(number * math.expm1(1 / sigma**2))

    def excess(e):
        return norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - DELTA

    return brentq(excess, 0, 100)


def test_the_grid_has_sixty_plans_and_more_none_of_them_twice():
    assert len({tuple(plan) for plan in GRID}) == len(GRID) >= 60
    assert sum(any(q == 1 for q, _, _ in plan) for plan in GRID) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("plan", GRID, ids=str)
def test_two_other_accountants_agree_with_what_is_reported(plan):
    reported = epsilon(events(plan), DELTA)
    assert 0 < reported < 50  # a contract's budget is at most 50
    assert abs(reported - opacus_epsilon(plan)) <= CLOSE
    assert epsilon_rdp(events(plan), DELTA) >= reported


def test_the_reported_values_are_the_published_ones():
    plan = events([(0.05, 1.0, 600)])
    assert epsilon(plan, DELTA) == pytest.approx(8.29, abs=0.01)
    assert epsilon_replace_one(plan, DELTA) == pytest.approx(13.58, abs=0.02)


@pytest.mark.parametrize("plan", MIXED, ids=str)
def test_epsilon_rises_with_every_entry(plan):
    history = events(plan)
    for measure in (epsilon, epsilon_rdp):
        spent = [measure(history[:n], DELTA) for n in range(len(history) + 1)]
        assert spent[0] == 0
        assert all(before < after for before, after in pairwise(spent))
    # Nor does one more entry of a kind that is there go by unseen.
    assert epsilon([*history, history[0]], DELTA) > epsilon(history, DELTA)


@pytest.mark.parametrize(("q", "sigma"), MECHANISMS)
def test_epsilon_rises_with_every_step(q, sigma):
    spent = [epsilon(events([(q, sigma, t)]), DELTA) for t in (1, *STEPS)]
    assert all(before < after for before, after in pairwise(spent))


def test_the_comparison_catches_an_accountant_that_understates():
    """Broken variants: the central limit, and a fresh account each round."""
    for plan in ((0.05, 1.0, 600), (0.02, 0.8, 1000)):
        assert limit_epsilon(*plan) < epsilon(events([plan]), DELTA) - 0.5
        assert abs(limit_epsilon(*plan) - opacus_epsilon([plan])) > CLOSE
    fresh = epsilon(events([(0.05, 1.0, 20)]), DELTA)
    assert fresh == pytest.approx(1.985, abs=0.005)
    assert opacus_epsilon([(0.05, 1.0, 600)]) - fresh > 6
