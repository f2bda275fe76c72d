"""Counts by groups end to end: the live apps over a LoopGrid, with and without privacy."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from credit_client.ledger import Ledger
from credit_client.training.examples import Examples
from credit_common.accountant import epsilon
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract, parse_contract
from credit_common.events import event_from_json
from credit_common.model import CreditModel
from credit_common.privacy import mechanism_plan
from credit_common.record import Record
from credit_simulations.federation import Party, holdout_scores, simulate

CUTS = {"approve_below": 0.2, "decline_from": 0.5}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def asking(federation_file) -> Contract:
    counted = {"groups": ["sex"], "every": 1, "noise_multiplier": 4.0}
    return parse_contract(federation_file(decision=CUTS, evaluation=counted))


@pytest.fixture(scope="module")
def model(asking: Contract) -> CreditModel:
    return CreditModel(asking, resolve_backbone(asking.model), precision="float32")


@pytest.fixture(scope="module")
def users(records) -> dict[str, list[Record]]:
    codes = ("f", "m", None)
    return {
        name: [
            dataclasses.replace(record, protected={"sex": codes[i % 3]})
            for i, record in enumerate(records(150, seed=seed))
        ]
        for seed, name in enumerate(("a", "b", "c"))
    }


@pytest.fixture
def parties(asking: Contract, model: CreditModel, users: dict[str, list[Record]]) -> list[Party]:
    return [
        Party(
            name=name,
            size_class="small",
            train=Examples(model, asking, records[:60]),
            holdout=Examples(model, asking, records[60:]),
        )
        for name, records in users.items()
    ]


def test_without_privacy_the_counts_are_those_of_all_holdout_users(
    asking: Contract, model: CreditModel, parties: list[Party], users, tmp_path: Path
) -> None:
    bare = asking.without_privacy()
    outcome = simulate(bare, parties, model, ledgers=tmp_path, allow_no_privacy=True)
    assert [line.groups for line in outcome.history[:-1]] == [(), ()]
    (gaps,) = outcome.history[-1].groups
    scores = holdout_scores(model, parties, outcome.adapter)
    logits = np.concatenate([scores[party.name][:, 0] for party in parties]).astype(np.float64)
    approved = 1 / (1 + np.exp(-logits)) < CUTS["approve_below"]
    sexes = np.array([str(r.protected["sex"]) for party in parties for r in users[party.name][60:]])
    for group in gaps.groups[:2]:
        own = sexes == group.name
        assert group.users.value == own.sum() == 90
        assert group.approved is not None
        assert group.approved.value == pytest.approx(approved[own].mean())


def test_a_private_ledger_has_the_groups_in_its_last_entry_alone(
    asking: Contract, model: CreditModel, parties: list[Party], tmp_path: Path
) -> None:
    outcome = simulate(asking, parties, model, ledgers=tmp_path)
    assert len(outcome.history[-1].groups) == 1
    plan = mechanism_plan(asking, "small")
    for party in parties:
        with Ledger.open(tmp_path / f"{party.name}.ledger") as ledger:
            events = [
                event_from_json(json.loads(entry.event))
                for entry in ledger.entries()
                if entry.account == "holdout"
            ]
            assert events == plan.evaluation_events(2, 1)
            spent = ledger.epsilon("holdout", asking.privacy.delta)
        assert spent == pytest.approx(epsilon(events, asking.privacy.delta))
        assert spent == pytest.approx(plan.holdout_epsilon())
