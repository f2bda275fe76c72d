"""Row 17: bins, imputation, class weights and calibration are contract constants, never fitted.

The check encodes the same users with and without an outlier beside them: nothing of theirs may
change. The broken variants are scaling by the data's mean and deviation, quantile bins of the data,
a median for what is missing, and weights by the observed classes. Edges that a federation asks its
holders for are charged: see tests/client/test_statistics.py.
"""

import hashlib
import json

import numpy as np
import pytest

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
