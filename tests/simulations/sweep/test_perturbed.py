"""Spoilt records: what is changed, what is not, and the same errors for every model."""

from dataclasses import replace

import numpy as np
import pytest

from credit_common.contract import parse_contract
from credit_common.fields import TextField
from credit_simulations.sweep.perturbed import (
    MISSING,
    TYPOS,
    perturbed_aucs,
    with_missing,
    with_typos,
    without_text,
)


@pytest.fixture
def contract(federation_file):
    return parse_contract(federation_file())


def texts(contract):
    return [f.name for f in contract.fields if isinstance(f, TextField)]


def test_typing_errors_are_in_free_text_alone(contract, records):
    own, random = records(200), np.random.default_rng(0)
    spoilt = [with_typos(contract, r, random) for r in own]
    changed = 0
    for before, after in zip(own, spoilt, strict=True):
        for name, value in before.values.items():
            if name in texts(contract) and value:
                changed += value != after.values[name]
            else:
                assert after.values[name] == value
        assert after.label == before.label
    assert changed > 20


def test_there_are_as_many_typing_errors_as_told(contract, records):
    name, long = texts(contract)[0], "a" * 40_000
    record = replace(records(1)[0], values={name: long})
    after = with_typos(contract, record, np.random.default_rng(0)).values[name]
    # One error in four replaces a letter, and one replacement in 26 by the same one.
    replaced = sum(letter != "a" for letter in after)
    assert abs(replaced / (40_000 * TYPOS / 4 * 25 / 26) - 1) < 0.25  # over five standard errors


def test_dropped_text_drops_nothing_else(contract, records):
    random = np.random.default_rng(0)
    for before in records(20):
        after = without_text(contract, before, random)
        assert all(after.values[name] is None for name in texts(contract))
        others = set(before.values) - set(texts(contract))
        assert all(after.values[name] == before.values[name] for name in others)


def test_a_share_of_the_fields_goes_missing(contract, records):
    random, names = np.random.default_rng(0), [f.name for f in contract.wide_fields]
    own = [with_missing(contract, r, random) for r in records(300)]
    known = records(300)
    gone = sum(
        after.values.get(n) is None and before.values.get(n) is not None
        for before, after in zip(known, own, strict=True)
        for n in names
    )
    there = sum(before.values.get(n) is not None for before in known for n in names)
    assert abs(gone / there - MISSING) < 0.06


def test_a_model_that_reads_one_field_loses_by_that_field_alone(contract, records):
    field = next(f.name for f in contract.wide_fields if f.kind == "number")
    own = [r for r in records(400) if r.values.get(field) is not None]
    middle = np.median([r.values[field] for r in own])
    labelled = [
        type(r)(values=r.values, protected=r.protected, label=float(r.values[field] > middle))
        for r in own
    ]

    def predict(asked):
        return np.asarray([middle if r.values[field] is None else r.values[field] for r in asked])

    found = perturbed_aucs(contract, labelled, predict)
    assert found["clean"] == found["typos"] == found["no_text"] == 1.0
    assert 0.7 < found["missing_fields"] < 0.99
    assert found == perturbed_aucs(contract, labelled, predict)
