"""A results file is read as it was written: no line is lost, guessed at, or counted twice."""

import json

import pytest

from credit_common.errors import CreditError
from credit_simulations.results.rows import COLUMNS, rows
from credit_simulations.results.tables import as_json
from credit_simulations.results.trials import read_trials


def test_rows_are_the_means_and_sample_deviations_over_seeds(read, line):
    found = rows(
        read(
            line(seed=0, auc=0.60, ks=0.2, in_holder_auc=0.50, seconds=10),
            line(seed=1, auc=0.62, ks=0.3, in_holder_auc=None, seconds=20),
            line(seed=2, auc=0.67, ks=0.4, in_holder_auc=0.60, seconds=30.5),
        ).trials
    )
    (row,) = found
    assert row.auc_mean == pytest.approx(0.63)
    assert row.auc_sd == pytest.approx((0.0026 / 2) ** 0.5)  # squares .03², .01², .04² over n - 1
    assert row.ks_mean == pytest.approx(0.3)
    assert row.in_holder_auc_mean == pytest.approx(0.55)
    assert (row.seeds, row.seconds) == (3, 60.5)


def test_json_has_exactly_the_columns_and_null_where_there_is_nothing(read, line):
    shown = json.loads(as_json(rows(read(line(epsilon=None, in_holder_auc=None)).trials)))
    assert [list(row) for row in shown] == [
        [
            "data",
            "holders",
            "partition",
            "epsilon",
            "arm",
            "auc_mean",
            "auc_sd",
            "ks_mean",
            "in_holder_auc_mean",
            "seeds",
            "seconds",
        ]
    ]
    assert tuple(shown[0]) == COLUMNS
    assert shown[0]["epsilon"] is shown[0]["auc_sd"] is shown[0]["in_holder_auc_mean"] is None


@pytest.mark.parametrize(
    "change", [{"data": "x"}, {"partition": "iid"}, {"holders": 4}, {"epsilon": 3}, {"arm": "gbm"}]
)
def test_each_key_of_a_row_makes_a_row_of_its_own(read, line, change):
    assert len(rows(read(line(), line(**change)).trials)) == 2


def test_rows_are_in_the_order_of_arms_and_of_epsilon_without_dp_last(read, line):
    arms = ("tomorrow", "gbm", "wide_only", "federated")
    found = rows(read(*(line(arm=a, epsilon=e) for a in arms for e in (None, 8.0, 1))).trials)
    assert [(r.arm, r.epsilon) for r in found] == [
        (arm, e) for arm in reversed(arms) for e in (1.0, 8.0, None)
    ]


def test_of_one_configuration_the_last_line_counts(read, line):
    first = line(auc=0.5)
    found = read(first, line(seed=1, auc=0.6), {**first, "auc": 0.7})
    assert sorted(trial.auc for trial in found.trials) == [0.6, 0.7]
    assert (found.replaced, found.superseded) == (1, 0)


def test_another_configuration_of_the_same_seed_replaces_and_is_never_averaged(read, line):
    found = read(line(auc=0.5), line(auc=0.7))
    assert [row.auc_mean for row in rows(found.trials)] == [0.7]
    assert (found.replaced, found.superseded) == (0, 1)


def test_folds_and_seeds_are_never_averaged_and_the_later_kind_counts(read, line):
    seeds = [line(seed=seed, auc=0.5) for seed in range(3)]
    folds = [line(seed=fold, folds=2, auc=0.7) for fold in range(2)]
    found = read(*seeds, *folds)
    (row,) = rows(found.trials)
    assert (row.auc_mean, row.seeds, found.superseded) == (pytest.approx(0.7), 2, 3)
    (row,) = rows(read(*folds, *seeds).trials)
    assert (row.auc_mean, row.seeds) == (pytest.approx(0.5), 3)
    each = [line(arm="newcomers", seed=s, leave_one_out=True, auc=0.6) for s in range(2)]
    (row,) = rows(read(line(arm="newcomers", seed=4), *each).trials)
    assert (row.auc_mean, row.seeds) == (pytest.approx(0.6), 2)


def test_only_trials_that_are_asked_for_are_read(written, line):
    first, other = line(auc=0.5), line(auc=0.7, folds=2)
    path = written([first, other])
    (trial,) = read_trials(path, {first["digest"]}).trials
    assert trial.auc == 0.5


@pytest.mark.parametrize("tail", ['{"digest": "ab', '{"digest": "ab\n', "\x00\x00\x00", "\n{\n\n"])
def test_a_broken_last_line_is_skipped_and_counted(written, line, tail):
    found = read_trials(written([line(), line(seed=1)], tail))
    assert (len(found.trials), found.broken) == (2, 1)


def test_a_last_line_cut_inside_a_character_is_broken_too(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps(line()).encode() + '\n{"data": "é'.encode()[:-1])
    assert read_trials(path).broken == 1


def test_a_last_line_without_its_line_end_counts_if_it_is_whole(written, line):
    found = read_trials(written([line()], json.dumps(line(seed=1))))
    assert (len(found.trials), found.broken) == (2, 0)


def test_a_broken_line_before_others_is_an_error_with_file_and_number(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(line())}\n\n{{broken\n{json.dumps(line())}\n", "utf-8")
    with pytest.raises(CreditError, match=r"results\.jsonl, line 3: is not one JSON object"):
        read_trials(path)


@pytest.mark.parametrize("tail", ["", "\n \n", '{"half'])
def test_a_file_without_a_trial_is_an_error(written, tail):
    with pytest.raises(CreditError, match=r"results\.jsonl: holds no finished trial"):
        read_trials(written([], tail))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(CreditError, match=r"none\.jsonl: No such file"):
        read_trials(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auc": 1.01}, r"auc must be in \[0, 1\]"),
        ({"auc": None}, "auc must be a number"),
        ({"auc": True}, "auc must be a number"),
        ({"auc": "0.6"}, "auc must be a number"),
        ({"seconds": -1}, "seconds must be at least 0"),
        ({"seconds": 10**400}, "seconds must be at least 0"),
        ({"epsilon": 0}, "epsilon must be"),
        ({"holders": 0}, "holders must be a whole number of at least 1"),
        ({"holders": 2.5}, "holders must be a whole number"),
        ({"seed": "0"}, "seed must be a whole number"),
        ({"arm": ""}, "arm must be a text"),
        ({"data": 7}, "data must be a text"),
        ({"rounds": {"5": 0.6}}, "rounds must be a list"),
        ({"rounds": [{"round": 5, "auc": 2}]}, r"rounds: auc must be in \[0, 1\]"),
        ({"in_holder": {"shop": 0.6}}, "in_holder: must be a JSON object"),
        ({"in_holder": {"shop": {"auc": 0.6}}}, "in_holder: users must be"),
        ({"calibration": [[0.1, 0.2]]}, "calibration: must be a JSON object"),
    ],
)
def test_a_field_that_cannot_be_is_an_error_even_on_the_last_line(written, line, change, said):
    with pytest.raises(CreditError, match=rf"results\.jsonl, line 2: {said}"):
        read_trials(written([line(), line(**change)]))


def test_numbers_that_are_none_are_no_json(written, line):
    text = json.dumps(line(auc=float("nan")))
    with pytest.raises(CreditError, match="line 1: is not one JSON object with finite numbers"):
        read_trials(written([], f"{text}\n{json.dumps(line())}\n"))


def test_what_only_some_trials_have_may_be_left_out_or_added(written, line):
    optional = ("delta", "epsilon_spent", "brier", "in_holder", "bytes_up", "rounds", "best_auc")
    short = {key: value for key, value in line().items() if key not in optional}
    (trial,) = read_trials(written([{**short, "tomorrow": [1]}])).trials
    assert (trial.delta, trial.in_holder, trial.rounds, trial.bytes_up) == (None, {}, (), 0.0)
