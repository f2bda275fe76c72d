"""The baselines find a signal that is there, wherever it lies, and none where there is none."""

import numpy as np
import pytest

from credit_common.contract import parse_contract
from credit_common.metrics import auc_exact
from credit_common.record import Record
from credit_simulations.sweep import alone


@pytest.fixture
def contract(federation_file):
    return parse_contract(federation_file())


def split(contract, records, risk):
    """Records whose label depends on a function of them; a third is held out."""
    random, own = np.random.default_rng(0), records(900)
    chance = np.asarray([0.9 if risk(r) else 0.1 for r in own])
    labels = (random.random(len(own)) < chance).astype(np.float32)
    known = [
        Record(values=r.values, protected=r.protected, label=float(label))
        for r, label in zip(own, labels, strict=True)
    ]
    return known[:600], labels[:600], known[600:], labels[600:]


def auc(fit, contract, parts):
    train, labels, others, truth = parts
    return auc_exact(fit(contract, train, labels)(others), truth)


def number_of(contract):
    return next(f for f in contract.wide_fields if f.kind == "number")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("fit", [alone.logistic, alone.gbm])
def test_a_number_that_tells_is_found(contract, records, fit):
    field = number_of(contract)
    values = [v for r in records(900) if (v := r.values.get(field.name)) is not None]
    middle = float(np.median(values))
    parts = split(contract, records, lambda r: (r.values.get(field.name) or 0.0) > middle)
    assert auc(fit, contract, parts) > 0.75


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("fit", [alone.logistic, alone.gbm, alone.tfidf])
def test_labels_by_chance_are_not(contract, records, fit):
    train, labels, others, truth = split(contract, records, lambda r: False)
    shuffled = np.random.default_rng(1).permutation(labels)
    random = np.random.default_rng(2).random(len(truth)) < 0.5
    found = auc_exact(fit(contract, train, shuffled)(others), random.astype(np.float32))
    assert abs(found - 0.5) < 0.17  # five standard errors of 300 users


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_holder_alone_takes_the_inputs_that_serve_it_better(contract, records):
    field = number_of(contract)
    low, high = field.edges[-2:]
    # High in one bin of the middle: a line over ranks sees little of it, a bin all.
    parts = split(contract, records, lambda r: low < (r.values.get(field.name) or 0.0) < high)
    assert auc(alone.at_one_holder, contract, parts) > 0.75
    assert auc(alone.logistic, contract, parts) < 0.65


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_users_of_one_label_get_its_odds(contract, records, label):
    known = records(9)
    odds = alone.at_one_holder(contract, known, np.full(9, label, np.float32))(records(4))
    assert odds.tolist() == [pytest.approx(np.log(10) if label else -np.log(10))] * 4


def test_words_that_tell_are_found(contract, records):
    from credit_common.text import record_text

    texts = [record_text(contract, r) for r in records(900)]
    words = sorted({w for t in texts for w in t.split()}, key=lambda w: -sum(w in t for t in texts))
    word = next(w for w in words if 200 < sum(w in t.split() for t in texts) < 700)
    parts = split(contract, records, lambda r: word in record_text(contract, r).split())
    assert auc(alone.tfidf, contract, parts) > 0.75


def test_vectors_that_tell_are_found():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(600, 8)).astype(np.float32)
    labels = (vectors[:, 3] + random.normal(size=600) > 0).astype(np.float32)
    scores = alone.on_vectors(vectors[:400], labels[:400], vectors[400:])
    assert auc_exact(scores, labels[400:]) > 0.8
