"""The two answers: paired over seeds, with Student's interval, and honest about noise."""

import math

import pytest

from credit_simulations.results.claims import answers, headline, overlap_of, spread
from credit_simulations.results.rows import groups, settings
from credit_simulations.results.sentences import cost_sentence, gain_sentence, signed

STUDENT = 4.302652729911275
"""97.5% quantile of Student's distribution with 2 degrees of freedom, from tables."""


@pytest.fixture
def answered(read):
    def make(*lines):
        trials = read(*lines).trials
        (where,) = settings(trials).values()
        return answers(groups(trials), where[0])

    return make


@pytest.fixture
def pair(line):
    """Federated and local trials of two merchants at given AUCs, one of each a seed."""

    def make(ours, alone=0.6, epsilon=8.0):
        lines = []
        for seed, auc in enumerate(ours):
            for arm, level, value in (("federated", epsilon, auc), ("local_only", None, alone)):
                users = {n: {"auc": value, "users": 50} for n in ("a", "b")}
                lines.append(line(arm=arm, epsilon=level, seed=seed, in_holder=users))
        return lines

    return make


def test_an_interval_is_students_over_seeds():
    found = spread([0.1, 0.2, 0.6], 0.0)
    half = STUDENT * math.sqrt(0.07) / math.sqrt(3)
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half))
    assert spread([], 0.0) is None


def test_splits_that_share_users_make_it_wider(read, line):
    """At a quarter held out, a third of a figure's variance comes on top of 1 / n, here 1 / 3."""
    seeds = read(*(line(seed=seed) for seed in range(3))).trials
    alone, shared = (spread([0.1, 0.2, 0.6], o) for o in (0.0, overlap_of(seeds)))
    assert (shared.high - shared.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(2))
    assert overlap_of(read(line(held_out=0.5)).trials) == pytest.approx(1)
    assert overlap_of(read(line(folds=5)).trials) == pytest.approx(0.25)


def test_holders_that_each_seed_draws_anew_are_no_merchants(answered, sweep):
    drawn = [{**line, "partition": "dirichlet-0.5"} for line in sweep()]
    (_, natural, _), (_, found, _) = answered(*sweep()), answered(*drawn)
    assert natural.merchants
    assert not found.merchants
    assert found.gain == natural.gain


def test_one_seed_has_no_interval_and_no_verdict():
    found = spread([0.5], 0.3)
    assert (found.low, found.high, found.sign, found.seeds) == (None, None, 0, 1)


def test_gain_and_cost_are_those_of_the_trials(answered, sweep):
    at = {answer.epsilon: answer for answer in answered(*sweep())}
    assert list(at) == [1.0, 8.0, None]
    # north, south and east gain .04, -.03 and .01 in the mean over seeds
    assert at[8.0].gain.mean == pytest.approx(0.02 / 3)
    assert at[1.0].gain.mean == pytest.approx(0.02 / 3 - 0.02)
    assert at[8.0].cost.mean == pytest.approx(0.01)
    assert at[1.0].cost.mean == pytest.approx(0.03)
    assert at[None].cost is None


def test_a_seeds_own_effect_cancels_in_a_cost(answered, sweep):
    """The AUCs of a sweep move by .001 a seed, in all arms alike: the cost does not move at all."""
    cost = answered(*sweep())[1].cost
    assert cost.high - cost.low == pytest.approx(0, abs=1e-9)
    assert cost.sign == 1


def test_merchants_are_sorted_by_gain_and_losers_are_told(answered, sweep):
    at = {answer.epsilon: answer for answer in answered(*sweep())}
    assert [m.name for m in at[8.0].merchants] == ["north", "east", "south"]
    assert [m.gain.sign for m in at[8.0].merchants] == [1, 0, -1]
    assert [m.name for m in at[8.0].losers] == ["south"]
    assert [m.name for m in at[1.0].losers] == ["east", "south"]
    assert at[8.0].merchants[0].users == 101


def test_only_seeds_and_holders_that_both_have_are_compared(answered, line):
    def users(**aucs):
        return {name: {"auc": auc, "users": 9} for name, auc in aucs.items()}

    (answer,) = answered(
        line(seed=0, in_holder=users(a=0.7, b=None, c=0.9)),
        line(seed=1, in_holder=users(a=0.1)),
        line(seed=0, arm="local_only", epsilon=None, in_holder=users(a=0.6, b=0.5, d=0.5)),
        line(seed=2, arm="local_only", epsilon=None, in_holder=users(a=0.9)),
    )
    assert answer.gain.mean == pytest.approx(0.1)
    assert answer.gain.seeds == 1
    assert [m.name for m in answer.merchants] == ["a"]


def test_a_gain_a_loss_and_noise_are_said_as_such(answered, pair):
    (gain,) = answered(*pair((0.620, 0.621, 0.622)))
    (loss,) = answered(*pair((0.580, 0.579, 0.578)))
    (noise,) = answered(*pair((0.61, 0.59, 0.62)))
    (single,) = answered(*pair((0.61,)))
    assert gain_sentence(gain).startswith(
        "At ε = 8, a merchant gains 0.021 AUC within its own users against training alone "
        "(95% interval +0.017 to +0.025, 3 seeds). All 2 gain."
    )
    assert "a merchant loses 0.021 AUC" in gain_sentence(loss)
    assert "2 of 2 merchants lose, beyond noise." in gain_sentence(loss)
    assert "is within noise: +0.007 AUC" in gain_sentence(noise)
    assert "gains" not in gain_sentence(noise)
    assert "(one seed, so noise is unknown)" in gain_sentence(single)


def test_what_cannot_be_told_is_said(answered, line):
    found = answered(line(), line(arm="local_only", epsilon=None, seed=5))
    assert "cannot be told" in gain_sentence(found[0])
    assert "cannot be told" in cost_sentence(found)


def test_costs_are_told_from_the_weakest_privacy_down(answered, line):
    lines = []
    for seed in range(3):
        lines.append(line(seed=seed, epsilon=None, auc=0.66))
        lines.append(line(seed=seed, epsilon=8.0, auc=(0.655, 0.67, 0.652)[seed]))
        lines.append(line(seed=seed, epsilon=3.0, auc=(0.671, 0.670, 0.672)[seed]))
        lines.append(line(seed=seed, epsilon=1.0, auc=(0.641, 0.640, 0.642)[seed]))
    assert cost_sentence(answered(*lines)).replace("\N{MINUS SIGN}", "-") == (
        "Against the same training without DP, in AUC over all users (95% intervals over 3 seeds): "
        "ε = 8 costs 0.001 (-0.033 to +0.035), within noise; "
        "ε = 3 costs -0.011 (-0.015 to -0.007), better than without; "
        "ε = 1 costs 0.019 (+0.015 to +0.023)."
    )


def test_the_headline_is_at_eight_or_else_at_the_largest(answered, line):
    def lead(*epsilons):
        return headline(answered(*(line(epsilon=epsilon) for epsilon in epsilons))).epsilon

    assert lead(1, 8, 20, None) == 8
    assert lead(1, 3, None) == 3
    assert lead(None) is None
    assert headline([]) is None


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert [signed(v) for v in (0.0004, -0.0004, 0.0, 0.0006)] == [
        "0.000",
        "0.000",
        "0.000",
        "+0.001",
    ]
    assert signed(-0.1) == "\N{MINUS SIGN}0.100"
