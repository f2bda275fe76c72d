"""Shops that took no part: figures against oracles, on German credit's own holders."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score

from credit_client.shard import Shard, read_shard
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.model import CreditModel
from credit_common.text import record_text, wide_features
from credit_simulations.baselines import STRENGTHS
from credit_simulations.data import prepare
from credit_simulations.newcomers import MIN_ROWS, Newcomer, Newcomers, welcome
from credit_simulations.packaged import newcomer_shards, packaged_contract, packaged_shards


@pytest.fixture(scope="module")
def wide() -> Contract:
    return packaged_contract("german").training_only("wide")


@pytest.fixture(scope="module")
def shards(wide: Contract) -> dict[str, Shard]:
    paths = newcomer_shards("german", 1, 100)
    return {name: read_shard(path, wide) for name, path in paths.items()}


@pytest.fixture(scope="module")
def model(wide: Contract) -> CreditModel:
    return CreditModel(wide, None)


@pytest.fixture(scope="module")
def adapter(model: CreditModel) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(4)
    return {n: draw.normal(size=s).astype(np.float32) for n, s in model.schema().items()}


def features_and_labels(contract: Contract, users: tuple) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array([wide_features(contract, user.record) for user in users])
    return rows, np.array([user.record.label for user in users])


def test_the_released_models_auc_is_scikit_learns_on_own_hold_out_users(
    wide: Contract, shards: dict[str, Shard], model: CreditModel, adapter: dict[str, np.ndarray]
) -> None:
    found = welcome(wide, shards, model, adapter)
    assert [shop.name for shop in found.shops] == sorted(shards)
    for shop in found.shops:
        rows, labels = features_and_labels(wide, shards[shop.name].holdout)
        assert shop.auc == pytest.approx(roc_auc_score(labels, rows @ adapter["wide.weight"][0]))
        assert (shop.train, shop.holdout) == (len(shards[shop.name].train), len(labels))


def test_the_local_auc_is_that_of_the_strength_that_cross_validates_best_on_own_training_users(
    wide: Contract, shards: dict[str, Shard], model: CreditModel, adapter: dict[str, np.ndarray]
) -> None:
    for shop in welcome(wide, shards, model, adapter).shops:
        rows, labels = features_and_labels(wide, shards[shop.name].train)
        made = {c: LogisticRegression(C=c, max_iter=300) for c in STRENGTHS}
        merit = {
            c: cross_val_score(m, rows, labels, scoring="roc_auc", cv=5).mean()
            for c, m in made.items()
        }
        fitted = made[max(merit, key=lambda c: merit[c])].fit(rows, labels)
        rows, labels = features_and_labels(wide, shards[shop.name].holdout)
        expected = roc_auc_score(labels, fitted.decision_function(rows))
        assert shop.auc_local == pytest.approx(expected, abs=1e-6)


def test_a_shops_figures_do_not_depend_on_the_other_shops(
    wide: Contract, shards: dict[str, Shard], model: CreditModel, adapter: dict[str, np.ndarray]
) -> None:
    together = welcome(wide, shards, model, adapter).shops
    alone = [welcome(wide, {n: shards[n]}, model, adapter).shops[0] for n in sorted(shards)]
    assert list(together) == alone


@pytest.mark.parametrize("part", ["holdout", "train"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_shop_of_one_class_is_left_out_by_name_and_moves_no_mean(
    wide: Contract,
    shards: dict[str, Shard],
    model: CreditModel,
    adapter: dict[str, np.ndarray],
    part: str,
    label: float,
) -> None:
    one, *others = sorted(shards)
    kept = tuple(e for e in getattr(shards[one], part) if e.record.label == label)
    changed = {**shards, one: dataclasses.replace(shards[one], **{part: kept})}
    found = welcome(wide, changed, model, adapter)
    assert list(found.left_out) == [one]
    assert "class" in found.left_out[one]
    assert found == dataclasses.replace(
        welcome(wide, {n: shards[n] for n in others}, model, adapter), left_out=found.left_out
    )


def test_only_hold_out_texts_are_read_by_bert(
    shards: dict[str, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = packaged_contract("german")
    model = CreditModel(contract, resolve_backbone(contract.model), precision="float32")
    read: list[str] = []
    tokens = model.tokens
    monkeypatch.setattr(model, "tokens", lambda texts: read.extend(texts) or tokens(texts))
    one = sorted(shards)[0]
    welcome(contract, {one: shards[one]}, model, model.initial_adapter())
    held_out = [record_text(contract, e.record) for e in shards[one].holdout]
    assert sorted(read) == sorted(held_out)


def test_means_are_over_shops_and_a_tie_is_no_gain() -> None:
    def shop(name: str, auc: float, local: float, users: int) -> Newcomer:
        return Newcomer(name=name, train=users, holdout=users, auc=auc, auc_local=local)

    shops = (shop("a", 0.7, 0.6, 9), shop("b", 0.5, 0.5, 1000), shop("c", 0.6, 0.8, 50))
    found = Newcomers(shops=shops, left_out={})
    assert found.auc == pytest.approx(0.6)
    assert found.auc_local == pytest.approx(1.9 / 3)
    assert found.gained == 1


def test_without_newcomers_there_are_no_figures(
    wide: Contract, model: CreditModel, adapter: dict[str, np.ndarray]
) -> None:
    found = welcome(wide, {}, model, adapter)
    assert math.isnan(found.auc)
    assert math.isnan(found.auc_local)
    assert found.gained == 0


def test_newcomers_are_the_shops_that_are_big_enough_and_take_no_part() -> None:
    taking_part = packaged_shards("pakdd2009", 5)
    others = newcomer_shards("pakdd2009", 5, MIN_ROWS)
    assert len(others) == 22
    assert not set(others) & set(taking_part)
    sizes = pd.read_parquet(prepare("pakdd2009"))["holder"].value_counts()
    enough = {name for name, rows in sizes.items() if rows >= MIN_ROWS}
    assert set(others) | set(taking_part) == enough


def test_nobody_is_a_newcomer_where_all_that_are_big_enough_take_part() -> None:
    assert set(newcomer_shards("german", 1, 200)) == {"car-new"}
    assert newcomer_shards("german", 2, 200) == {}
