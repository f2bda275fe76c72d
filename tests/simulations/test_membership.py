import dataclasses

import numpy as np
import pytest

from credit_simulations.audited import Cohort
from credit_simulations.membership import attack, gradients, infer, separation


def test_without_noise_the_adapters_name_the_members(subject_of):
    # Each member is sampled at least once but for 1e-12.
    found = attack(subject_of(40, rounds=12, steps=1, sampling_rate=0.9), None)
    assert found.auc > 0.9
    assert found.guesses.right == found.guesses.made == 10
    assert found.guesses.lower_bound(1e-5) > 0.9


def test_the_attack_on_a_private_run_proves_less_than_the_claim(subject_of):
    found = attack(subject_of(200), 2.0)
    assert found.guesses.canaries == 200
    assert found.guesses.lower_bound(1e-5) <= 2.0
    assert found.auc < 0.8


def test_it_is_the_run_that_tells_and_not_what_the_users_are_like(subject_of):
    subject = subject_of(40, rounds=12, steps=1)
    member = np.arange(40) < 20
    for inside in (member, ~member):
        cohort = Cohort(subject.users, np.flatnonzero(inside), np.zeros(0, np.intp))
        auc, _ = separation(infer(subject, subject.schedule, cohort), inside)
        assert auc > 0.9


def test_gradients_are_clipped_where_the_run_clips(subject_of, shaken):
    subject = subject_of(30, clip_norm=0.05)
    adapter = shaken(subject.model)
    open_plan = subject.schedule
    private = dataclasses.replace(open_plan, epsilon=2.0)
    free, clipped = (gradients(subject, plan, adapter) for plan in (open_plan, private))
    norms = np.linalg.norm(free, axis=1)
    assert (norms > 0.05).any()
    for row, short, norm in zip(free, clipped, norms, strict=True):
        assert short == pytest.approx(row * min(1.0, 0.05 / norm), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_auc_and_true_positive_rate_are_those_of_all_pairs(seed):
    draw = np.random.default_rng(seed)
    member = draw.random(300) < 0.5
    scores = np.round(draw.standard_normal(300) + 0.8 * member, 1)  # ties
    auc, tpr = separation(scores, member)
    pairs = scores[member][:, None] - scores[~member][None]
    assert auc == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    best = max(np.mean(scores[member] > t) for t in scores if np.mean(scores[~member] > t) <= 0.01)
    assert tpr == pytest.approx(best)


def test_a_cohort_of_one_side_alone_is_no_error():
    scores = np.arange(4.0)
    assert separation(scores, np.ones(4, bool)) == (0.5, 0.0)
    assert separation(scores, np.zeros(4, bool)) == (0.5, 0.0)
