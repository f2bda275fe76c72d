import json
import math

import pytest

from credit_common.errors import PrivacyError
from credit_common.events import (
    FieldHistograms,
    Histogram,
    SampledGaussian,
    event_from_json,
    event_to_json,
)


def steps(q, sigma, number):
    return SampledGaussian(sampling_rate=q, noise_multiplier=sigma, steps=number)


@pytest.mark.parametrize(
    ("q", "sigma", "number", "name"),
    [
        (0, 1.0, 10, "sampling_rate"),
        (-0.1, 1.0, 10, "sampling_rate"),
        (1.01, 1.0, 10, "sampling_rate"),
        (math.nan, 1.0, 10, "sampling_rate"),
        (0.1, 0, 10, "noise_multiplier"),
        (0.1, -1.0, 10, "noise_multiplier"),
        (0.1, math.inf, 10, "noise_multiplier"),
        (0.1, math.nan, 10, "noise_multiplier"),
        (0.1, 1.0, 0, "steps"),
        (0.1, 1.0, -5, "steps"),
        (0.1, 1.0, 1.5, "steps"),
        (0.1, 1.0, True, "steps"),
    ],
)
def test_an_event_out_of_range_cannot_be_made(q, sigma, number, name):
    with pytest.raises(PrivacyError, match=name):
        steps(q, sigma, number)
    if name != "sampling_rate":
        with pytest.raises(PrivacyError):
            Histogram(noise_multiplier=sigma, releases=number)
        with pytest.raises(PrivacyError):
            FieldHistograms(noise_multiplier=sigma, fields=number)
        with pytest.raises(PrivacyError):
            FieldHistograms(noise_multiplier=sigma, fields=1, releases=number)


def test_events_come_back_from_json_as_they_were():
    fields = FieldHistograms(noise_multiplier=8.0, fields=30)
    assert event_to_json(fields)["kind"] == "field_histograms"
    for event in steps(0.05, 0.86, 20), Histogram(noise_multiplier=20.0, releases=3), fields:
        assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "laplace"},
        {"kind": ["histogram"]},
        {"extra": 1},
        {"steps": "20"},
        {"steps": 20.0},
        {"noise_multiplier": None},
        {"sampling_rate": True},
    ],
)
def test_json_that_is_no_event_is_refused(change):
    with pytest.raises(PrivacyError):
        event_from_json({**event_to_json(steps(0.05, 1.0, 20)), **change})


@pytest.mark.parametrize("plain", [None, [], "histogram", {}, {"kind": "histogram"}])
def test_json_of_another_shape_is_refused(plain):
    with pytest.raises(PrivacyError):
        event_from_json(plain)
