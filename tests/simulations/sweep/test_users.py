"""Splits, folds and holders are drawn from users that are read once."""

from dataclasses import replace

import numpy as np
import pytest

from credit_common.errors import ContractError
from credit_simulations.sweep.arms import run_arm
from credit_simulations.sweep.plan import Entry, Trial
from credit_simulations.sweep.trials import judged
from credit_simulations.sweep.users import draw, entry_contract, parties, read_users

GERMAN = Entry(name="german", min_rows=50)
TRIAL = Trial(entry=GERMAN, arm="federated", epsilon=None, seed=0)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def german():
    return read_users(GERMAN)


def test_every_row_is_a_user_with_its_own_label(german):
    assert len(german.frame) == len(german.records) == len(german.examples) == 1000
    assert german.left_out == 0
    bad = german.frame[german.contract.task.label].astype(str).isin(german.contract.task.positive)
    assert np.array_equal(bad.to_numpy(np.float32), german.examples.labels)


def test_what_is_encoded_once_is_read_back_to_the_bit(german):
    again = read_users(GERMAN)
    for mine, theirs in ((german.examples, again.examples), (german.at_cls, again.at_cls)):
        one, other = mine.frozen(), theirs.frozen()
        assert np.array_equal(one.counts, other.counts)
        assert all((one.rows[n] == other.rows[n]).all() for n in one.rows)
    assert german.at_cls.cls_vectors().std() > 0.01


@pytest.mark.parametrize("partition", ["natural", "iid", "dirichlet", "quantity"])
def test_a_user_is_at_one_holder_and_on_one_side(german, partition):
    entry = replace(GERMAN, partition=partition, holders=4, alpha=2.0)
    drawn = draw(replace(german, entry=entry), replace(TRIAL, entry=entry))
    every = np.concatenate([*drawn.train.values(), *drawn.holdout.values()])
    assert len(every) == len(set(every.tolist()))
    assert 2 <= len(drawn.train) <= 4
    held_out = sum(map(len, drawn.holdout.values())) / len(every)
    assert abs(held_out - german.contract.split.holdout) < 0.1
    if partition == "natural":
        for name, rows in drawn.train.items():
            assert set(german.frame["holder"].iloc[rows]) == {name}


def test_seeds_draw_other_splits_and_repeat_themselves(german):
    first, again, other = (
        draw(german, replace(TRIAL, seed=seed)).holdout["radio-television"] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_folds_hold_each_user_out_once(german):
    out = [draw(german, replace(TRIAL, folds=5, seed=fold)).holdout for fold in range(5)]
    rows = np.concatenate([rows for fold in out for rows in fold.values()])
    assert len(rows) == len(set(rows.tolist()))
    sizes = [sum(map(len, fold.values())) for fold in out]
    assert sum(sizes) == sum(n for n in german.frame["holder"].value_counts() if n >= 50)
    assert min(sizes) > 130


def test_a_holder_whose_users_are_of_one_label_takes_part_without_an_auc_of_its_own(german):
    entry = replace(GERMAN, partition="dirichlet", holders=4, alpha=0.02, min_rows=20)
    one = replace(german, entry=entry)
    drawn = draw(one, replace(TRIAL, entry=entry))
    assert len(drawn.train) == 4
    told = judged(one, drawn, {n: rows * 1.0 for n, rows in drawn.holdout.items()})
    labels = {name: set(german.labels[rows].tolist()) for name, rows in drawn.holdout.items()}
    assert 1 in map(len, labels.values())
    for name, own in labels.items():
        assert (told["in_holder"][name]["auc"] is None) == (len(own) == 1)
    assert told["auc"] is not None
    fit = run_arm(one, drawn, replace(TRIAL, entry=entry, arm="local_only"))
    assert set(fit.scores) == set(drawn.holdout)
    assert all(np.isfinite(own).all() for own in fit.scores.values())


def test_who_shops_at_several_is_one_user_of_each_party_and_on_one_side():
    entry = Entry(name="simulated-shops", rows=4000)
    shops = read_users(entry)
    person = shops.frame[shops.contract.record.user]
    assert person.duplicated().sum() > 50
    for kind, held_out in (("natural", "users"), ("iid", "users"), ("natural", "later")):
        own = replace(entry, partition=kind, holders=3, held_out=held_out)
        drawn = draw(replace(shops, entry=own), replace(TRIAL, entry=own))
        for rows in (*drawn.train.values(), *drawn.holdout.values()):
            assert not person.iloc[rows].duplicated().any()
        known, judged_ = (np.concatenate([*side.values()]) for side in (drawn.train, drawn.holdout))
        assert not set(person.iloc[known]) & set(person.iloc[judged_])
        pooled = shops.one_row_each(known)
        assert len(pooled) == person.iloc[known].nunique() < len(known)


def test_parties_have_their_own_users(german):
    drawn = draw(german, TRIAL)
    for party in parties(german.contract, drawn, german.examples):
        rows = drawn.train[party.name]
        assert np.array_equal(party.train.labels, german.examples.labels[rows])
        assert np.array_equal(party.train.wide, german.examples.wide[rows])


def test_an_unknown_data_set_and_another_task_are_refused(tmp_path, federation_file):
    with pytest.raises(ContractError, match=r"data\.name = 'nobody': must be one of pakdd2009"):
        entry_contract(Entry(name="nobody"))
    own = tmp_path / "own.toml"
    several = {"kind": "multiclass", "classes": ["0", "1", "2"], "positive": None, "negative": None}
    own.write_text(federation_file(task=several))
    with pytest.raises(ContractError, match="a sweep judges binary tasks alone"):
        entry_contract(Entry(name="german", contract=str(own)))
    own.write_text(federation_file(record={"time": None}))
    with pytest.raises(ContractError, match="the contract of german has no time"):
        entry_contract(Entry(name="german", contract=str(own), held_out="later"))
