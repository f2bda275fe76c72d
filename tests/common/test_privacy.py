import dataclasses
import math
import subprocess
import sys

import pytest

from credit_common.accountant import epsilon
from credit_common.contract import parse_contract
from credit_common.errors import ContractError, PrivacyError
from credit_common.events import FieldHistograms, Histogram, SampledGaussian
from credit_common.privacy import check_plan, mechanism_plan

CONTRACT = """
[federation]
name = "test"
[task]
label = "bad"
positive = ["1"]
negative = ["0"]
[record]
user = "id"
[split]
salt = "long enough"
[[fields]]
name = "id"
kind = "identifier"
[[fields]]
name = "age"
kind = "number"
range = [18, 100]
edges = [30, 50]
[model]
train = ["wide"]
[training]
rounds = 12
steps = 10
sampling_rate = 0.05
[privacy]
epsilon = 8.0
noise_multiplier = 1.0
clip_norm = 0.5
size_classes = {small = 500, large = 4000}
[evaluation]
every = 5
noise_multiplier = 20.0
"""
BASE = parse_contract(CONTRACT)


def test_the_plan_says_what_the_contract_says():
    plan = mechanism_plan(BASE, "large")
    assert plan.expected_batch_size == 200
    assert mechanism_plan(BASE, "small").expected_batch_size == 25
    assert plan.evaluations == 3  # rounds 5, 10 and 12
    assert plan.round_event() == SampledGaussian(sampling_rate=0.05, noise_multiplier=1.0, steps=10)
    assert plan.evaluation_event() == Histogram(noise_multiplier=20.0)
    assert plan.private
    assert (plan.clip_norm, plan.rounds, plan.epsilon, plan.delta) == (0.5, 12, 8.0, 1e-5)
    assert plan.train_epsilon() == epsilon([plan.round_event()] * 12, 1e-5)
    assert plan.holdout_epsilon() == epsilon([plan.evaluation_event()] * 3, 1e-5)


def test_the_event_of_a_plan_does_not_depend_on_the_size_class():
    small, large = (mechanism_plan(BASE, name) for name in ("small", "large"))
    assert dataclasses.replace(small, expected_batch_size=0) == dataclasses.replace(
        large, expected_batch_size=0
    )


@pytest.mark.parametrize("bounds", [(0.3, 0.4), (0.5,), (0.1, 0.1, 0.1)])
def test_bounds_of_groups_may_fill_the_clip_norm(bounds):
    groups = tuple(zip("abc", bounds, strict=False))
    assert dataclasses.replace(mechanism_plan(BASE, "small"), group_clip=groups)


@pytest.mark.parametrize("bounds", [(0.3, 0.4001), (0.500001,), (0.5, 0.5), (math.nan,)])
def test_bounds_of_groups_that_pass_the_clip_norm_together_are_refused(bounds):
    groups = tuple(zip("abc", bounds, strict=False))
    with pytest.raises(PrivacyError, match=r"privacy\.group_clip.*clip_norm squared = 0\.25"):
        dataclasses.replace(mechanism_plan(BASE, "small"), group_clip=groups)


def test_an_unknown_size_class_is_refused():
    with pytest.raises(ContractError, match="huge"):
        mechanism_plan(BASE, "huge")


def test_a_plan_within_its_budget_passes_and_one_beyond_is_refused():
    plan = mechanism_plan(BASE, "small")
    check_plan(plan)
    tight = dataclasses.replace(plan, epsilon=plan.train_epsilon() - 0.001)
    with pytest.raises(PrivacyError, match=r"12 rounds of 10 steps spend epsilon .*at most"):
        check_plan(tight)
    loud = dataclasses.replace(plan, evaluation_noise_multiplier=0.2)
    with pytest.raises(PrivacyError, match=r"3 evaluations spend epsilon .*at most"):
        check_plan(loud)


def test_a_plan_that_would_fill_the_memory_is_refused_at_once():
    plan = mechanism_plan(BASE, "small")
    absurd = dataclasses.replace(plan, sampling_rate=1.0, noise_multiplier=0.2, steps=10_000)
    with pytest.raises(PrivacyError, match="must be at most"):
        check_plan(absurd)


def test_without_privacy_there_are_no_events_and_epsilon_is_infinite():
    plan = mechanism_plan(BASE.without_privacy(), "small")
    assert not plan.private
    assert plan.noise_multiplier == plan.evaluation_noise_multiplier == 0
    assert plan.round_event() is None
    assert plan.evaluation_event() is None
    assert plan.train_epsilon() == plan.holdout_epsilon() == math.inf
    check_plan(plan)


def test_the_module_loads_neither_torch_nor_the_accountant():
    code = "import credit_common.privacy, sys; print({'torch', 'dp_accounting'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


FEDERATED = parse_contract(
    CONTRACT.replace("edges = [30, 50]", 'edges = "federated"\nbins = 5')
    + "[statistics]\nnoise_multiplier = 4.0\n"
)


def test_statistics_are_in_what_a_training_user_spends():
    plan, plain = mechanism_plan(FEDERATED, "small"), mechanism_plan(BASE, "small")
    counted = FieldHistograms(noise_multiplier=4.0, fields=1)
    assert plan.statistics_event() == counted
    assert plan.train_epsilon() == epsilon([plan.round_event()] * 12 + [counted], 1e-5)
    assert plan.train_epsilon() > plain.train_epsilon()
    assert plan.holdout_epsilon() == plain.holdout_epsilon()
    assert plain.statistics_event() is None
    assert mechanism_plan(FEDERATED.without_privacy(), "small").statistics_event() is None


def test_a_budget_that_the_statistics_alone_pass_is_refused():
    privacy = dataclasses.replace(FEDERATED.privacy, epsilon=plan_epsilon(BASE) + 0.01)
    check_plan(mechanism_plan(dataclasses.replace(BASE, privacy=privacy), "small"))
    with pytest.raises(PrivacyError, match="10 steps and the statistics of 1 fields spend"):
        check_plan(mechanism_plan(dataclasses.replace(FEDERATED, privacy=privacy), "small"))


GROUPED = parse_contract(
    CONTRACT.replace("noise_multiplier = 20.0", 'noise_multiplier = 2.0\ngroups = ["sex", "home"]')
    + "[decision]\napprove_below = 0.1\ndecline_from = 0.2\n"
    + '[[fields]]\nname = "sex"\nkind = "protected"\nvalues = ["f", "m"]\n'
    + '[[fields]]\nname = "home"\nkind = "protected"\nvalues = ["a", "b"]\n'
)


def test_groups_are_in_what_a_holdout_user_spends_once():
    plan = mechanism_plan(GROUPED, "small")
    one, last = Histogram(noise_multiplier=2.0), FieldHistograms(noise_multiplier=2.0, fields=3)
    assert plan.evaluation_events(2, 1) == [one, one, last]
    assert plan.evaluation_events(-1, 0) == []
    assert (plan.grouped_evaluations, mechanism_plan(BASE, "small").grouped_evaluations) == (1, 0)
    assert plan.holdout_epsilon() == epsilon([one, one, last], 1e-5)
    # Squared sensitivities add up: three evaluations and two fields are five histograms.
    assert plan.holdout_epsilon() == pytest.approx(epsilon([one] * 5, 1e-5), abs=1e-6)
    assert plan.train_epsilon() == mechanism_plan(BASE, "small").train_epsilon()
    tight = dataclasses.replace(plan, epsilon=plan.holdout_epsilon() - 0.01, noise_multiplier=9.0)
    with pytest.raises(PrivacyError, match=r"3 evaluations, the last by 2 protected fields too,"):
        check_plan(tight)
    assert mechanism_plan(GROUPED.without_privacy(), "small").evaluation_event(2) is None


def plan_epsilon(contract):
    return mechanism_plan(contract, "small").train_epsilon()
