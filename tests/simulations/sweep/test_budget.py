"""A contract at another ε spends all but a little of it, and keeps its schedule."""

import dataclasses
import math

import pytest

from credit_common.contract import parse_contract
from credit_common.privacy import check_plan, mechanism_plan
from credit_common.quantiles import Quantiles
from credit_simulations.sweep.budget import at_epsilon


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_budget_is_used_and_not_passed(federation_file, epsilon):
    contract = parse_contract(federation_file())
    changed = at_epsilon(contract, epsilon)
    plan = mechanism_plan(changed, "small")
    check_plan(plan)
    assert 0.98 * epsilon < plan.train_epsilon() <= epsilon
    assert 0.95 * epsilon < plan.holdout_epsilon() <= epsilon
    assert changed.training == contract.training
    assert changed.privacy.delta == contract.privacy.delta


def test_federated_edges_are_within_it(federation_file):
    contract = parse_contract(federation_file())
    name = next(f.name for f in contract.wide_fields if f.kind == "number")
    fields = tuple(
        dataclasses.replace(f, edges=(), quantiles=Quantiles(bins=5, cells=50))
        if f.name == name
        else f
        for f in contract.fields
    )
    counted = dataclasses.replace(
        contract,
        fields=fields,
        statistics=dataclasses.replace(contract.statistics, noise_multiplier=10.0),
    )
    changed = at_epsilon(counted, 2.0)
    plan = mechanism_plan(changed, "small")
    check_plan(plan)
    assert plan.statistics_fields == 1
    assert 1.9 < plan.train_epsilon() <= 2.0
    assert changed.statistics.noise_multiplier != 10.0


def test_none_is_without_privacy(federation_file):
    contract = parse_contract(federation_file())
    assert at_epsilon(contract, None) == contract.without_privacy()
    assert mechanism_plan(at_epsilon(contract, None), "small").train_epsilon() == math.inf


def test_counts_by_groups_are_within_it(federation_file):
    cuts = {"approve_below": 0.1, "decline_from": 0.3}
    text = federation_file(decision=cuts, evaluation={"groups": ["sex"], "every": 1})
    plan = mechanism_plan(at_epsilon(parse_contract(text), 1.0), "small")
    assert plan.evaluation_groups == 1
    assert 0.95 < plan.holdout_epsilon() <= 1.0
