"""Row 17: bins, imputation, class weights and calibration are contract constants, never fitted.

The check encodes the same users with and without an outlier beside them: nothing of theirs may
change. The broken variants are scaling by the data's mean and deviation, quantile bins of the data,
a median for what is missing, and weights by the observed classes. The same is checked from a file
through `read_shard` and `Examples`, against examples that are standardised over all users. Edges
that a federation asks its holders for are charged: see tests/client/test_statistics.py.
"""

import csv
import hashlib
import json

import numpy as np
import pytest

from credit_client.shard import read_shard
from credit_client.training.examples import Examples
from credit_common.record import Record
from credit_common.text import record_text, wide_features

OUTLIER = Record(values={"age": 99.0, "income": 499.0, "home": "P"}, protected={}, label=1.0)


def check_untouched_by_others(fit, people):
    """`fit` takes all users' records and returns what is made of each."""

    def digests(users):
        made = fit(users)[: len(people)]
        return [hashlib.sha256(json.dumps(one).encode()).hexdigest() for one in made]

    assert digests(people) == digests([*people, OUTLIER])
    assert digests(people) == digests([*people, *people])


@pytest.fixture
def people(records):
    some = records(40)
    gap = dict(some[0].values) | {"age": None}
    return [*some, Record(values=gap, protected={}, label=0.0)]


def test_row_17_features_and_texts_depend_on_the_user_alone(contract, people):
    check_untouched_by_others(
        lambda users: [
            [wide_features(contract, u).tolist(), record_text(contract, u), u.label] for u in users
        ],
        people,
    )


def ages(users):
    return np.array([u.values["age"] if u.values["age"] is not None else np.nan for u in users])


def standardised(users):
    x = ages(users)
    return ((x - np.nanmean(x)) / np.nanstd(x)).tolist()


def quantile_bins(users):
    x = ages(users)
    return np.digitize(x, np.nanquantile(x, np.linspace(0.05, 0.95, 30))).tolist()


def median_for_missing(users):
    x = ages(users)
    return np.where(np.isnan(x), np.nanmedian(x), x).tolist()


def class_weights(users):
    labels = np.array([u.label for u in users])
    share = labels.mean()
    return np.where(labels == 1, 1 / share, 1 / (1 - share)).tolist()


@pytest.mark.parametrize("broken", [standardised, quantile_bins, median_for_missing, class_weights])
def test_row_17_catches_what_is_fitted_on_private_data(broken, people):
    with pytest.raises(AssertionError):
        check_untouched_by_others(broken, people)


USERS = [
    {
        "user": f"u{i}",
        "phone": "",
        "age": str(20 + 3 * i % 40),
        "income": str(i % 50),
        "tenure": "" if i % 5 == 0 else str(i % 9),
        "home": "PR"[i % 2],
        "job": ("clerk", "driver")[i % 3 == 0],
        "note": "paid late twice then bought shoes " * (i % 4),
        "at": "2024-01-05",
        "orders": "",
        "sex": "fm"[i % 2],
        "secret": "",
        "defaulted": "01"[i % 4 == 0],
    }
    for i in range(30)
]
EXTREME = {"age": "100", "income": "500", "tenure": "40", "note": "a lamp " * 15, "defaulted": "1"}


def made_of_file(make, model, path, users):
    """Key of a user -> part, record, label, wide features and frozen output, through `batches`."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, USERS[0])
        writer.writeheader()
        writer.writerows(users)
    shard = read_shard(path, model.contract)
    found = {}
    for part, own in (("train", shard.train), ("holdout", shard.holdout)):
        examples = make(model, model.contract, [example.record for example in own])
        for batch in examples.batches(np.arange(len(own))):
            for at, row in enumerate(batch.rows):
                made = [
                    t[at].numpy().tobytes()
                    for t in (batch.wide, batch.labels, batch.hidden, batch.mask)
                ]
                found[own[row].key] = [part, own[row].record, *made]
    return found


def check_files_untouched_by_others(make, model, path):
    alone = made_of_file(make, model, path, USERS)
    assert len(alone) == len(USERS)
    for name in ("v", "w", "x"):  # users stand in the order of their keys: at several places
        beside = made_of_file(make, model, path, [*USERS, {**USERS[0], **EXTREME, "user": name}])
        assert len(beside) == len(USERS) + 1
        assert {key: beside[key] for key in alone} == alone


@pytest.fixture
def model(shop):
    return shop(1)[0]


def test_row_17_what_a_file_becomes_depends_on_the_user_alone(model, tmp_path):
    check_files_untouched_by_others(Examples, model, tmp_path / "shop.csv")


def test_row_17_catches_examples_that_are_standardised_over_all_users(model, tmp_path):
    class Standardised(Examples):
        def __init__(self, model, contract, records):
            super().__init__(model, contract, records)
            spread = np.maximum(self._wide.std(0), 1e-3)
            self._wide = ((self._wide - self._wide.mean(0)) / spread).astype(np.float32)

    with pytest.raises(AssertionError):
        check_files_untouched_by_others(Standardised, model, tmp_path / "shop.csv")
