"""A study from the files on: its users, its tables beside the scored file, and what is refused."""

import csv
import dataclasses
import json
import math
import shutil
from datetime import date

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from credit_client.scoring.batch import score_file
from credit_client.scoring.points import points
from credit_client.shard import is_holdout, read_shard
from credit_client.validation.cutoffs import Stakes
from credit_client.validation.judge import Asked, judge
from credit_client.validation.study import as_json
from credit_common.decision import Decision
from credit_common.errors import ContractError, CreditError, ShardError, TrustError
from credit_common.release import open_release

CPU = Asked(device="cpu")
CLASSES = {"kind": "multiclass", "positive": None, "negative": None, "classes": ["a", "b", "c"]}
VALUE = {"kind": "regression", "positive": None, "negative": None, "range": [0.0, 1.0]}


def scored(trial, tmp_path):
    """User id -> (PD, points, outcome) by `credit-client score`."""
    score_file(trial.release, trial.shard, tmp_path / "scores.csv", device="cpu")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bad = dict(zip(trial.frame["user"], trial.frame["defaulted"] == "1", strict=True))
    return {r["user"]: (float(r["pd"]), float(r["points"]), bad[r["user"]]) for r in rows}


def test_the_study_is_of_the_hold_out_users_and_their_scores(trial, told, tmp_path):
    split = open_release(trial.release).contract.split
    every = scored(trial, tmp_path)
    held = {u: row for u, row in every.items() if is_holdout(split.salt, split.holdout, u)}
    pds, told_points, bads = (np.array(column) for column in zip(*held.values(), strict=True))
    assert told.figures.users == len(held) < len(every) == told.judged.file_users
    assert told.figures.bads == bads.sum()
    assert told.figures.auc == pytest.approx(roc_auc_score(bads, pds), abs=1e-4)
    assert told.figures.mean_pd == pytest.approx(pds.mean(), abs=1e-6)
    assert [o.users for o in told.decided] == [
        (pds < 0.15).sum(),
        ((pds >= 0.15) & (pds < 0.4)).sum(),
        (pds >= 0.4).sum(),
    ]
    assert [o.name for o in told.banded] == ["A", "B", "C", "D"]
    assert told.bands[0].points_low == pytest.approx(told_points.min(), abs=0.051)
    assert told.figures.auc > 0.6  # outcomes follow the scores


def test_all_users_are_judged_where_that_is_asked(trial):
    told = judge(trial.release, trial.shard, dataclasses.replace(CPU, users="all"))
    assert told.figures.users == 1000
    assert told.figures.bads == (trial.frame["defaulted"] == "1").sum()
    assert sum(cell.users for cell in told.evidence[0].cells) == 1000


def test_the_points_table_adds_up_to_the_points_of_every_user(trial, told):
    release = open_release(trial.release)
    read = read_shard(trial.shard, release.contract)
    records = {example.row: example.record for example in read.holdout}
    for example, own in zip(told.sample.examples, told.told_points, strict=True):
        total = told.points.total(release.resolved, records[example.row])
        assert total == pytest.approx(own, abs=1e-3)
    assert told.text is None


def test_text_that_bert_reads_is_the_share_that_is_not_in_the_table(release_of, trial):
    release = release_of(seed=3, scale=0.5)
    told = judge(release, trial.shard, CPU)
    opened = open_release(release)
    totals = np.array([told.points.total(opened.resolved, e.record) for e in told.sample.examples])
    factor = opened.contract.scorecard.pdo / math.log(2)
    text = (totals - points(opened.contract.scorecard, told.sample.logits)) / factor
    wide = totals / factor
    assert told.text.share == pytest.approx(text.var() / (text.var() + wide.var()))
    assert 0.02 < told.text.share < 0.98
    assert told.text.auc_wide == pytest.approx(roc_auc_score(told.sample.labels, -totals))


def test_cut_offs_and_stakes_of_the_holder_are_used(trial, told):
    own = Decision(approve_below=0.3, decline_from=0.3)
    stakes = Stakes(lgd=0.9, exposure=50)
    asked = dataclasses.replace(CPU, decision=own, stakes=stakes)
    other = judge(trial.release, trial.shard, asked)
    assert [(c.mark, c.pd) for c in other.cut_offs if c.mark] == [("approve below", 0.3)]
    assert other.judged.own_cut_offs
    assert [o.name for o in other.banded] == ["A", "B", "C", "D"]  # the contract's
    assert other.cut_offs[-1].expected_loss == pytest.approx(
        told.cut_offs[-1].expected_loss * 2 * 50
    )


def test_with_a_calibration_decisions_and_points_are_by_pds_of_its_method(
    trial, told, calibration_of
):
    path = calibration_of(trial.release, "platt")
    other = judge(trial.release, trial.shard, dataclasses.replace(CPU, calibration=path))
    (after,) = [each for each in other.calibration if each.name == "platt"]
    assert other.figures.brier == pytest.approx(after.brier)
    assert other.figures.mean_pd == pytest.approx(after.mean_pd)
    assert other.figures.auc == told.figures.auc  # users are ordered by the release
    assert other.calibration == told.calibration
    assert other.decided != told.decided
    card = open_release(trial.release).contract.scorecard
    pds = other.sample.pds
    assert other.told_points == pytest.approx(points(card, np.log(pds / (1 - pds))))


def test_a_method_that_users_are_too_few_for_is_not_judged_and_refused_where_it_is_in_use(
    trial, told, calibration_of
):
    assert [each.name for each in told.calibration] == ["as released", "platt"]
    ((method, why),) = told.not_calibrated
    assert method == "isotonic"
    assert "must be at least 1000" in why
    path = calibration_of(trial.release, "isotonic")
    with pytest.raises(
        ShardError, match=r"isotonic: .* must be at least 1000 \(of the four fifths"
    ):
        judge(trial.release, trial.shard, dataclasses.replace(CPU, calibration=path))


def test_a_challenger_is_held_against_the_champion(release_of, trial, told):
    challenger = release_of(seed=7, model={"train": ["wide"]})
    asked = dataclasses.replace(CPU, challenger=challenger)
    found = judge(trial.release, trial.shard, asked).challenge
    alone = judge(challenger, trial.shard, CPU)
    assert found.champion == told.figures
    assert found.challenger == alone.figures
    assert found.high < 0
    assert found.left_out == 0
    assert found.mark == "approve below"


def test_only_users_that_both_hold_out_are_compared(release_of, trial, told):
    split = {"salt": "another salt", "holdout": 0.5}
    challenger = release_of(seed=7, model={"train": ["wide"]}, split=split)
    found = judge(
        trial.release, trial.shard, dataclasses.replace(CPU, challenger=challenger)
    ).challenge
    both = [
        user
        for user in trial.frame["user"]
        if is_holdout("a public salt", 0.25, user) and is_holdout("another salt", 0.5, user)
    ]
    assert found.users == len(both)
    assert found.users + found.left_out == told.figures.users
    assert found.left_out > 50


def test_a_challenger_that_means_another_outcome_is_refused(release_of, trial):
    turned = {"positive": ["0"], "negative": ["1"]}
    challenger = release_of(model={"train": ["wide"]}, task=turned)
    with pytest.raises(ContractError, match="do not mean the same outcome"):
        judge(trial.release, trial.shard, dataclasses.replace(CPU, challenger=challenger))


def test_periods_are_those_of_the_records_times(trial, told):
    asked = dataclasses.replace(CPU, since=date(2025, 7, 1))
    periods = judge(trial.release, trial.shard, asked).periods
    rows = [example.row for example in told.sample.examples]
    late = (trial.frame["at"].iloc[[row - 1 for row in rows]] >= "2025-07-01").to_numpy()
    assert periods.after.users == late.sum()
    assert periods.before.users == (~late).sum()
    assert periods.after.figures.bads == told.sample.labels[late].sum()
    assert periods.psi is not None


def test_periods_need_a_time_in_the_contract_and_users_on_both_sides(release_of, trial):
    timeless = release_of(model={"train": ["wide"]}, record={"time": None})
    asked = dataclasses.replace(CPU, since=date(2025, 7, 1))
    with pytest.raises(ContractError, match=r"record.time: is not in the contract"):
        judge(timeless, trial.shard, asked)
    with pytest.raises(ShardError, match="no user has a time from 2031-01-01 on"):
        judge(trial.release, trial.shard, dataclasses.replace(CPU, since=date(2031, 1, 1)))


def test_json_is_whole_plain_and_without_any_user(trial, told):
    text = json.dumps(as_json(told), allow_nan=False)
    plain = json.loads(text)
    names = {f.name for f in dataclasses.fields(told)} - {"sample", "told_points"}
    assert set(plain) == names
    assert plain["figures"]["auc"] == told.figures.auc
    assert plain["decision"]["bands"][0] == ["A", 0.05]
    keys = [example.key for example in told.sample.examples]
    assert not any(key[:12] in text for key in keys)
    assert not any(f'"{user}"' in text for user in trial.frame["user"])


@pytest.mark.parametrize("task", [CLASSES, VALUE])
def test_other_tasks_are_refused_in_one_line_before_the_file_is_read(release_of, trial, task):
    release = release_of(model={"train": ["wide"]}, task=task, decision={})
    with pytest.raises(ContractError, match=f"'{task['kind']}': must be 'binary'") as caught:
        judge(release, trial.shard.with_name("absent.csv"), CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(ContractError, match=f"'{task['kind']}': must be 'binary'"):
        judge(trial.release, trial.shard, dataclasses.replace(CPU, challenger=release))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="defaulted"), "'defaulted' is missing"),
        (lambda f: f.assign(defaulted=""), "0 users, must be at least 50"),
        (lambda f: f.assign(defaulted="0"), "0 defaults, must be at least 5"),
        (lambda f: f.assign(defaulted="1"), "0 users without default, must be at least 5"),
        (lambda f: f.head(150), r"\d\d users, must be at least 50"),
    ],
)
def test_files_that_say_too_little_are_refused_in_one_line(trial, tmp_path, change, said):
    path = tmp_path / "few.csv"
    change(trial.frame).to_csv(path, index=False)
    with pytest.raises(CreditError, match=said) as caught:
        judge(trial.release, path, CPU)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_calibration_that_is_none_or_anothers_is_refused(trial, release_of, calibration_of):
    other = calibration_of(release_of(seed=5, model={"train": ["wide"]}), "platt")
    for content, said in ((None, "is for the release"), ("[]", "is not a calibration")):
        if content is not None:
            other.write_text(content)
        with pytest.raises(ShardError, match=said):
            judge(trial.release, trial.shard, dataclasses.replace(CPU, calibration=other))


def test_a_release_that_was_changed_is_not_judged(trial, tmp_path):
    copy = tmp_path / "release"
    shutil.copytree(trial.release, copy)
    (copy / "README.md").write_text("better figures")
    with pytest.raises(TrustError):
        judge(copy, trial.shard, CPU)
