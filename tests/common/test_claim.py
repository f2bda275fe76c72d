import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_common.accountant import epsilon
from credit_common.claim import (
    NO_PRIVACY,
    Facts,
    check_claim,
    facts_from_json,
    facts_to_json,
    privacy_statement,
    promise,
    released_figures,
    schedule_epsilon,
    told_epsilon,
)
from credit_common.contract import parse_contract
from credit_common.errors import PrivacyError, WireError
from credit_common.evaluation import read_released, rows_of
from credit_common.events import FieldHistograms, Histogram, SampledGaussian
from credit_common.privacy import mechanism_plan

RIGHT = {
    "rounds": 3,
    "holders": 2,
    "histogram": ((5.5, -1.25), (0.0, 3.75)),
    "evaluated": 2,
    "epsilon": 3.0,
    "holdout_epsilon": 2.5,
    "created": "2025-01-02T03:04:05+00:00",
}


@pytest.fixture(scope="module")
def longer(contract_text):
    """Ten rounds, evaluated after the fourth, eighth and last."""
    text = contract_text.replace("rounds = 3", "rounds = 10")
    return parse_contract(text.replace("[evaluation]\n", "[evaluation]\nevery = 4\n"))


def truthful(contract, rounds):
    spent = schedule_epsilon(contract, rounds) or (None, None)
    return Facts(**{**RIGHT, "rounds": rounds, "epsilon": spent[0], "holdout_epsilon": spent[1]})


def test_statistics_are_claimed_for_training_users_from_the_first_round(federated, contract):
    counted = FieldHistograms(noise_multiplier=8.0, fields=2)
    steps = SampledGaussian(sampling_rate=0.1, noise_multiplier=1.0, steps=2)
    train, holdout = schedule_epsilon(federated, 1)
    assert train == epsilon([steps, counted], 1e-5)
    assert holdout == schedule_epsilon(contract, 1)[1]
    plan = mechanism_plan(federated, "small")
    assert schedule_epsilon(federated, 3) == (plan.train_epsilon(), plan.holdout_epsilon())
    told = privacy_statement(federated, truthful(federated, 1))["statistics"]
    assert told["fields"] == ["age", "income"]
    assert (told["noise_multiplier"], told["releases"]) == (8.0, 1)
    assert "statistics" not in privacy_statement(contract, truthful(contract, 1))
    without = dict(zip(("epsilon", "holdout_epsilon"), schedule_epsilon(contract, 1), strict=True))
    with pytest.raises(PrivacyError, match=r"facts\.epsilon"):
        check_claim(federated, Facts(**{**RIGHT, "rounds": 1, **without}))


def test_groups_are_claimed_for_holdout_users_with_the_last_round(grouped, contract):
    plan = mechanism_plan(grouped, "small")
    assert schedule_epsilon(grouped, 3) == (plan.train_epsilon(), plan.holdout_epsilon())
    assert schedule_epsilon(grouped, 2) == schedule_epsilon(contract, 2)
    told = privacy_statement(grouped, truthful(grouped, 3))["evaluation"]
    assert told["last_by_groups"] == ["sex"]
    assert "last_by_groups" not in privacy_statement(grouped, truthful(grouped, 2))["evaluation"]
    less = dict(zip(("epsilon", "holdout_epsilon"), schedule_epsilon(contract, 3), strict=True))
    with pytest.raises(PrivacyError, match=r"facts\.holdout_epsilon"):
        check_claim(grouped, Facts(**{**vars(truthful(grouped, 3)), **less}))


def test_the_schedules_end_is_the_plans(longer):
    plan = mechanism_plan(longer, "small")
    assert schedule_epsilon(longer, 10) == (plan.train_epsilon(), plan.holdout_epsilon())


@pytest.mark.parametrize(
    ("rounds", "evaluations"), [(1, 0), (3, 0), (4, 1), (7, 1), (8, 2), (9, 2), (10, 3)]
)
def test_a_part_of_the_schedule_spends_what_its_events_spend(longer, rounds, evaluations):
    steps = SampledGaussian(sampling_rate=0.1, noise_multiplier=1.0, steps=2 * rounds)
    seen = [Histogram(noise_multiplier=2.0)] * evaluations
    expected = (epsilon([steps], 1e-5), epsilon(seen, 1e-5))
    assert schedule_epsilon(longer, rounds) == expected


def test_a_claim_below_the_schedule_is_refused_by_name(longer):
    honest = truthful(longer, 8)
    check_claim(longer, honest)
    more = {**vars(honest), "epsilon": honest.epsilon + 1, "holdout_epsilon": 99.0}
    check_claim(longer, Facts(**more))  # a bound may be loose
    for name in ("epsilon", "holdout_epsilon"):
        less = {**vars(honest), name: getattr(honest, name) * 0.999}
        with pytest.raises(PrivacyError, match=rf"facts\.{name} = .*8 rounds of this contract"):
            check_claim(longer, Facts(**less))
    with pytest.raises(PrivacyError, match=r"facts\.rounds = 11: the contract has 10"):
        check_claim(longer, Facts(**{**vars(honest), "rounds": 11, "epsilon": 99.0}))
    fewer = Facts(**{**vars(honest), "rounds": 10**15})
    with pytest.raises(PrivacyError, match="the contract has 10"):  # at once, not by counting
        check_claim(longer, fewer)


def test_an_epsilon_is_given_exactly_where_there_is_one(longer):
    none = Facts(**{**RIGHT, "epsilon": None, "holdout_epsilon": None})
    with pytest.raises(PrivacyError, match="if and only if the contract has one"):
        check_claim(longer, none)
    check_claim(longer.without_privacy(), none)
    with pytest.raises(PrivacyError, match="if and only if the contract has one"):
        check_claim(longer.without_privacy(), Facts(**RIGHT))


WRONG = {
    "rounds": [0, -1, 1.0, True, None, "3"],
    "holders": [0, 2.5, False, None],
    "histogram": [
        (),
        ((), ()),
        ((1.0,),),
        ((1.0,), (1.0, 2.0)),
        ((1.0,), (math.nan,)),
        ((1.0,), (math.inf,)),
        ((1.0,), (1e13,)),
        ((1.0,), (True,)),
        ((1.0,), ("2",)),
        ((1.0,), (1,)),
        [[1.0], [2.0]],
        "ab",
        {"auc": 0.9},
    ],
    "evaluated": [0, -1, 1.0, True, None, "2"],
    "epsilon": [math.nan, math.inf, -0.1, None, "3", True],
    "holdout_epsilon": [math.nan, -1.0, None],
    "created": ["", "yesterday", "2025-01-02T03:04:05", "2025-01-02T03:04:05+01:00", 5, None],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_fact_out_of_its_bounds_is_refused_by_name(name, value):
    with pytest.raises(WireError, match=r"facts\.\w+(\.\w+)? = .*: must be"):
        Facts(**{**RIGHT, name: value})


@pytest.mark.parametrize("created", ["2025-01-02T03:04:05Z", "2025-01-02 03:04+00:00"])
def test_utc_is_told_in_any_iso_form(created):
    assert Facts(**{**RIGHT, "created": created}).created == created


def test_facts_survive_json():
    facts = Facts(**RIGHT)
    text = json.dumps(facts_to_json(facts), allow_nan=False)
    assert json.loads(text)["histogram"] == [[5.5, -1.25], [0.0, 3.75]]
    assert facts_from_json(json.loads(text)) == facts
    none = Facts(**{**RIGHT, "histogram": None, "evaluated": 0})
    assert facts_from_json(json.loads(json.dumps(facts_to_json(none)))) == none


def test_holders_are_summed_if_and_only_if_there_is_a_histogram():
    with pytest.raises(WireError, match=r"facts\.evaluated = 2"):
        Facts(**{**RIGHT, "histogram": None})


def test_figures_are_those_of_the_histogram_and_no_others(longer):
    bins = longer.evaluation.bins
    draw = np.random.default_rng(0)
    counts = np.stack([np.linspace(90, 10, bins), np.linspace(5, 20, bins)])
    counts = counts + draw.normal(0, 2, counts.shape)
    facts = Facts(**{**RIGHT, "histogram": rows_of(counts), "evaluated": 3})
    assert released_figures(longer, facts) == read_released(longer, counts, 3)
    assert next(iter(released_figures(longer, facts))) == "auc"
    none = Facts(**{**RIGHT, "histogram": None, "evaluated": 0})
    assert released_figures(longer, none) == {}
    with pytest.raises(WireError, match=f"contract's {bins} bins"):
        released_figures(longer, Facts(**RIGHT))


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("created"),
        lambda plain: plain.update(more=1),
        lambda plain: plain.update(histogram=[]),
        lambda plain: plain.update(histogram=[[1.0, 2.0], [3.0]]),
        lambda plain: plain.update(histogram=[[1.0, None], [3.0, 4.0]]),
        lambda plain: plain.update(histogram=[[1.0, [2.0]], [3.0, 4.0]]),
        lambda plain: plain.update(histogram=None),
        lambda plain: plain.update(evaluated=0),
        lambda plain: plain.update(figures={"fairness": 1.0}),
        lambda plain: plain.update(rounds="3"),
        lambda plain: plain.update(epsilon=None),
    ],
)
def test_malformed_facts_are_refused(change):
    plain = facts_to_json(Facts(**RIGHT))
    change(plain)
    with pytest.raises(WireError, match="facts"):
        facts_from_json(plain)
    for other in (None, [], "x", 3):
        with pytest.raises(WireError, match="facts: must be a table"):
            facts_from_json(other)


@given(st.floats(0, 100))
def test_epsilon_is_never_told_too_small(value):
    told = float(told_epsilon(value))
    assert value - 1e-9 <= told < value + 0.0011


def test_the_statement_says_what_the_contract_runs(longer):
    facts = truthful(longer, 8)
    said = privacy_statement(longer, facts)
    assert json.loads(json.dumps(said)) == said
    assert said["private"] is True
    assert (said["epsilon"], said["holdout_epsilon"]) == (facts.epsilon, facts.holdout_epsilon)
    assert said["delta"] == 1e-5
    assert said["mechanism"] == {
        "sampler": "Poisson",
        "sampling_rate": 0.1,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "steps": 2,
        "rounds": 8,
        "size_classes": {"small": 300, "large": 3000},
    }
    assert said["evaluation"] == {"noise_multiplier": 2.0, "releases": 2}
    assert said["contract_digest"] == longer.digest
    assert "add or remove" in said["adjacency"]
    assert "one user of one holder" in said["unit"]
    assert said["accountant"]["name"].startswith("dp-accounting")
    assert said["accountant"]["version"][0].isdigit()
    assert "every message" in said["adversary"]
    for what in ("timing", "collusion", "several holders", "floating point"):
        assert any(what in line for line in said["excluded"])
    for value in (facts.epsilon, facts.holdout_epsilon):
        assert told_epsilon(value) in said["statement"]
    assert said["statement"] == promise(longer, facts)


def test_the_statement_names_the_bounds_of_groups(longer):
    clip = (("lora", 0.5), ("head", 0.5), ("wide", 0.7))
    privacy = dataclasses.replace(longer.privacy, group_clip=clip)
    clipped = dataclasses.replace(longer, privacy=privacy)
    said = privacy_statement(clipped, truthful(clipped, 8))["mechanism"]
    assert said["group_clip"] == {"lora": 0.5, "head": 0.5, "wide": 0.7}
    assert said["clip_norm"] == 1.0


def test_the_promise_is_of_one_run_and_names_what_bounds_all_of_them(longer):
    spent, held_out = schedule_epsilon(longer, 1)
    made = Facts(
        rounds=1,
        holders=2,
        epsilon=spent,
        holdout_epsilon=held_out,
        created="2026-01-01T00:00:00+00:00",
    )
    said = promise(longer, made)
    assert "in a run of this schedule" in said
    assert f"refuses past epsilon {longer.privacy.epsilon:g}." in said
    statement = privacy_statement(longer, made)
    assert "in this run" in statement["adversary"]
    assert any("other runs" in part for part in statement["excluded"])


def test_without_a_budget_the_statement_promises_nothing(longer):
    none = Facts(**{**RIGHT, "epsilon": None, "holdout_epsilon": None})
    said = privacy_statement(longer.without_privacy(), none)
    assert said["private"] is False
    assert said["statement"] == promise(longer.without_privacy(), none) == NO_PRIVACY
    assert said["statement"].startswith("There is no privacy")
    assert said["epsilon"] is None
    assert said["holdout_epsilon"] is None
    assert not {"delta", "adjacency", "accountant", "adversary"} & set(said)
