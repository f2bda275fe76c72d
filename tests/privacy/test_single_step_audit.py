"""The single-step audit: ours passes, each way of breaking the noise or the unit is caught."""

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats

from credit_client.training.optimizer import NoisySumOptimizer
from credit_common.privacy import MechanismPlan
from credit_simulations.single_step import (
    CONFIDENCE,
    canary_mu,
    mu_lower_bound,
    noise_deviation,
    noisy_sum,
    rate_upper_bound,
    run_single_step,
)

PLAN = MechanismPlan(
    sampling_rate=0.1,
    noise_multiplier=1.0,
    clip_norm=0.7,
    steps=1,
    rounds=1,
    expected_batch_size=25.0,
    evaluation_noise_multiplier=1.0,
    evaluations=1,
    epsilon=4.0,
    delta=1e-5,
)
GROUPED = dataclasses.replace(PLAN, group_clip=(("lora", 0.5), ("head", 0.4), ("wide", 0.2)))
FEW = 1000  # trials of a broken arm: fewer only weaken what is known


def less_noise(share):
    """The real optimizer with a share of the plan's noise."""

    def make(groups, plan):
        sigma = share * plan.noise_multiplier
        return noisy_sum(groups, dataclasses.replace(plan, noise_multiplier=sigma))

    return make


class Unclipped(NoisySumOptimizer):
    def clip_and_accumulate(self):
        for p in self.params:
            p.summed_grad = p.grad_sample.double().sum(0)


class Unnoised(NoisySumOptimizer):
    def add_noise(self):
        for p in self.params:
            p.grad = p.summed_grad.float()


def of_class(kind):
    def make(groups, plan):
        return kind(torch.optim.SGD(groups, lr=1.0), plan, noisy_sum(groups, plan)._noise)

    return make


class Seeded:
    """Starts anew at the same place, as a generator that is made and seeded in each round."""

    def __init__(self):
        self.draw = np.random.default_rng(7)

    def uniform(self, n):
        return self.draw.random(n)

    def normal(self, n):
        return self.draw.standard_normal(n)


def seeded(groups, plan):
    return NoisySumOptimizer(torch.optim.SGD(groups, lr=1.0), plan, Seeded())


def test_one_step_tells_no_more_of_a_user_than_the_plan_claims():
    # False alarm below 1e-6 for each bound, by construction. Expected: .70 with deviation .04.
    found = run_single_step(PLAN)
    assert found.passed
    assert 0.4 < found.mu_lower <= found.claimed_mu == 1.0  # the audit sees the canary at all
    assert found.deviation <= found.deviation_upper < 1.01 * found.deviation


def test_one_step_with_a_bound_for_each_group_tells_no_more_either():
    assert 0 < canary_mu(GROUPED, trials=FEW) <= 1.0


@pytest.mark.parametrize(
    ("make", "rows", "at_least"),
    [
        (less_noise(0.5), 1, 1.0),  # expected 1.52, deviation .06
        (of_class(Unclipped), 1, 3.0),
        (of_class(Unnoised), 1, 3.0),
        (seeded, 1, 3.0),
        (noisy_sum, 3, 1.8),  # expected 2.40, deviation .07
    ],
    ids=["half noise", "no clip", "no noise", "fixed seed", "three rows a user"],
)
def test_a_broken_step_is_caught(make, rows, at_least):
    assert canary_mu(PLAN, make, canary_rows=rows, trials=FEW) > at_least


def test_bounds_of_groups_that_pass_the_clip_norm_together_are_caught():
    class Careless(NoisySumOptimizer):
        def clip_and_accumulate(self):
            self._parts = [([i], 2 * PLAN.clip_norm) for i in range(len(self.params))]
            super().clip_and_accumulate()

    assert canary_mu(PLAN, of_class(Careless), trials=FEW) > 1.5


def test_a_hundredth_of_the_noise_is_missed():
    # A million coordinates: the bound lies 3.7 thousandths above the truth when all is well, with
    # .7 thousandths of deviation, so that .99 of the noise passes with probability below 1e-15.
    assert noise_deviation(PLAN) >= PLAN.clip_norm
    assert noise_deviation(PLAN, less_noise(0.99)) < PLAN.clip_norm


def test_a_broken_step_fails_the_whole_audit():
    found = run_single_step(PLAN, less_noise(0.98), trials=50)
    assert found.mu_lower <= 1.0  # two hundredths are below what the canary shows
    assert not found.passed


@pytest.mark.parametrize(("errors", "trials"), [(0, 2000), (1, 600), (600, 2000), (1999, 2000)])
@pytest.mark.parametrize("risk", [1e-7, 0.025])
def test_rates_are_bounded_as_by_clopper_and_pearson(errors, trials, risk):
    expected = stats.beta.isf(risk, errors + 1, trials - errors)
    assert rate_upper_bound(errors, trials, risk) == pytest.approx(expected, rel=1e-9)
    assert rate_upper_bound(trials, trials, risk) == 1.0


def test_the_bound_on_mu_holds_as_often_as_it_says_and_is_not_idle():
    draw, true, confidence, runs = np.random.default_rng(0), 1.0, 0.9, 200
    bounds = [
        mu_lower_bound(
            draw.standard_normal(100), true + draw.standard_normal(100), (0.0, 0.5, 1.0), confidence
        )
        for _ in range(runs)
    ]
    false = sum(bound > true for bound in bounds)
    assert false <= stats.binom.isf(1e-6, runs, 1 - confidence)
    assert 0.3 < np.median(bounds) < true


def test_the_bound_is_that_of_its_best_threshold():
    zeros, ones = np.zeros(2000), np.ones(2000)
    risk = (1 - CONFIDENCE) / 2
    rate = 1 - risk ** (1 / 2000)  # no error in 2,000 trials
    assert mu_lower_bound(zeros, ones, (0.5,)) == pytest.approx(-2 * NormalDist().inv_cdf(rate))
    assert mu_lower_bound(zeros, ones, (2.0,)) == 0.0
    assert mu_lower_bound(ones, zeros, (0.5,)) == 0.0
    three = mu_lower_bound(zeros, ones, (-1.0, 0.5, 2.0))
    assert math.isclose(three, -2 * NormalDist().inv_cdf(1 - (risk / 3) ** (1 / 2000)))
