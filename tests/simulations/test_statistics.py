"""The statistics round end to end: the live apps over a LoopGrid, arms, newcomers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from credit_client.ledger import Ledger
from credit_client.shard import read_shard
from credit_client.training.examples import Examples
from credit_client.training.loop import score
from credit_common.accountant import epsilon
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract, parse_contract
from credit_common.errors import CreditError
from credit_common.model import CreditModel
from credit_common.privacy import mechanism_plan
from credit_common.record import Record
from credit_common.statistics import count_cells, quantile_edges
from credit_simulations.arms import ARMS
from credit_simulations.cli import main
from credit_simulations.data import contract_path
from credit_simulations.federation import Party, holdout_scores, simulate, under_edges
from credit_simulations.newcomers import welcome
from credit_simulations.packaged import newcomer_shards, packaged_shards
from credit_simulations.runs import RunResult, run_arms


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def asking(federation_file) -> Contract:
    return parse_contract(federation_file(federated=True))


@pytest.fixture(scope="module")
def model(asking: Contract) -> CreditModel:
    return CreditModel(asking, resolve_backbone(asking.model), precision="float32")


def parties_of(contract: Contract, model: CreditModel, users: dict[str, list[Record]]):
    return [
        Party(
            name=name,
            size_class="small",
            train=Examples(model, contract, records),
            holdout=Examples(model, contract, records[:20]),
        )
        for name, records in users.items()
    ]


@pytest.fixture(scope="module")
def users(records) -> dict[str, list[Record]]:
    return {name: records(60, seed=seed) for seed, name in enumerate(("a", "b", "c"))}


def test_a_federation_finds_its_edges_trains_under_them_and_is_charged_once(
    asking: Contract, model: CreditModel, users: dict[str, list[Record]], tmp_path: Path
) -> None:
    parties = parties_of(asking, model, users)
    outcome = simulate(asking, parties, model, ledgers=tmp_path)
    resolved = asking.with_edges(outcome.edges)  # as many as are asked for, rising, inside
    assert set(outcome.adapter) == set(model.schema())
    plan = mechanism_plan(asking, "small")
    history = [plan.statistics_event(), *[plan.round_event()] * 3]
    for name in users:
        with Ledger.open(tmp_path / f"{name}.ledger") as ledger:
            kinds = [
                (e.account, json.loads(e.event)["kind"])
                for e in ledger.entries()
                if e.account != "split"
            ]
            spent = ledger.epsilon("train", asking.privacy.delta)
        assert kinds == [
            ("train", "field_histograms"),
            *[("train", "sampled_gaussian")] * 3,
            ("holdout", "histogram"),
        ]
        assert spent == pytest.approx(epsilon(history, asking.privacy.delta))
        assert spent == pytest.approx(plan.train_epsilon())
    assert outcome.epsilon >= spent
    under = under_edges(asking, parties, outcome.edges)
    scores = holdout_scores(model, under, outcome.adapter)
    own = Examples(model, resolved, users["a"][:20])
    assert np.array_equal(scores["a"], score(model, own, outcome.adapter))


def test_without_privacy_the_edges_are_the_quantiles_of_all_users(
    asking: Contract, model: CreditModel, users: dict[str, list[Record]], tmp_path: Path
) -> None:
    bare = asking.without_privacy()
    parties = parties_of(bare, model, users)
    outcome = simulate(bare, parties, model, ledgers=tmp_path, allow_no_privacy=True)
    everybody = [record for records in users.values() for record in records]
    assert outcome.edges == quantile_edges(bare, count_cells(bare, everybody))
    ages = np.array([record.values["age"] for record in everybody])
    cell = 82 / 41
    assert np.abs(np.quantile(ages, [0.25, 0.5, 0.75]) - outcome.edges["age"]).max() <= cell


def test_a_federation_with_explicit_edges_finds_none_and_spends_as_before(
    federation_file, users: dict[str, list[Record]], tmp_path: Path
) -> None:
    plain = parse_contract(federation_file(model={"train": ["wide"]}))
    model = CreditModel(plain, None)
    outcome = simulate(plain, parties_of(plain, model, users), model, ledgers=tmp_path)
    assert outcome.edges == {}
    with Ledger.open(tmp_path / "a.ledger") as ledger:
        assert not any("field_histograms" in entry.event for entry in ledger.entries())


def test_a_contract_whose_budget_the_statistics_pass_is_refused_before_it_starts(
    asking: Contract, model: CreditModel, users: dict[str, list[Record]], tmp_path: Path
) -> None:
    tight = dataclasses.replace(
        asking, statistics=dataclasses.replace(asking.statistics, noise_multiplier=0.3)
    )
    with pytest.raises(CreditError, match="the statistics of 2 fields spend"):
        simulate(tight, parties_of(tight, model, users), model, ledgers=tmp_path)


@pytest.fixture(scope="module")
def german() -> Contract:
    text = contract_path("german").read_text("utf-8")
    text = text.replace("[model]\n", '[model]\ntrain = ["wide"]\n')
    text = text.replace(
        "edges = [500, 1000, 1500, 2000, 3000, 5000, 7500, 10000, 15000]",
        'edges = "federated"\nbins = 8\nscale = "log"',
    )
    text = text.replace("[evaluation]\n", "[statistics]\nnoise_multiplier = 10.0\n\n[evaluation]\n")
    contract = parse_contract(text)
    assert [f.name for f in contract.federated_fields] == ["credit_amount"]
    return contract


@pytest.fixture(scope="module")
def result(german: Contract) -> RunResult:
    arms = ("no_dp", "central_logistic", "local_only")
    return run_arms(german, packaged_shards("german", 3), arms=arms)


def test_arms_train_under_edges_of_their_own_and_baselines_under_the_federations(
    german: Contract, result: RunResult
) -> None:
    assert list(result.means()["arm"]) == [
        arm for arm in ARMS if arm not in ("wide_only", "frozen_bert")
    ]
    assert np.isfinite(result.table["auc"]).all()
    resolved = german.with_edges(result.edges)
    (field,) = resolved.federated_fields
    assert len(field.edges) == 7


def test_newcomers_are_scored_under_the_federations_edges(
    german: Contract, result: RunResult
) -> None:
    resolved = german.with_edges(result.edges)
    paths = newcomer_shards("german", 1, 100)
    shards = {name: read_shard(path, german) for name, path in paths.items()}
    model = CreditModel(german, None)
    found = welcome(resolved, shards, model, result.adapter)
    assert found.shops
    for shop in found.shops:
        records = [e.record for e in shards[shop.name].holdout]
        labels = np.array([record.label for record in records])
        scores = score(model, Examples(model, resolved, records), result.adapter)[:, 0]
        better = (scores[labels == 1][:, None] > scores[labels == 0]).mean()
        ties = (scores[labels == 1][:, None] == scores[labels == 0]).mean()
        assert shop.auc == pytest.approx(better + ties / 2)


def test_plan_counts_the_statistics_in_what_is_spent_and_what_is_needed(
    federated_text: str, federated: Contract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(federated_text, "utf-8")
    assert main(["plan", str(path), "--epsilon", "2.0", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    plan = mechanism_plan(federated, "small")
    assert shown["epsilon_train"] == round(plan.train_epsilon(), 4)
    assert (shown["statistics_fields"], shown["statistics_noise_multiplier"]) == (2, 8.0)
    needed = dataclasses.replace(plan, noise_multiplier=shown["noise_multiplier_needed"])
    assert needed.train_epsilon() <= 2.0
    less = dataclasses.replace(plan, noise_multiplier=needed.noise_multiplier - 0.002)
    assert less.train_epsilon() > 2.0
