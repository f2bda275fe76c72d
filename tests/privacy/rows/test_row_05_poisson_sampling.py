"""Row 5: batches are real Poisson samples.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import dataclasses
import math

import numpy as np
import pytest

from credit_client.training.loop import train
from credit_client.training.randomness import SecureRandom

WIDE = {"train": ["wide"]}


def private_round(run, model, plan, examples, source=SecureRandom):
    start = model.initial_adapter()
    return start, run(model, examples, plan, start, sampling=source(), noise=source())


USERS, RATE, STEPS = 1000, 0.05, 2000


def check_poisson(batches):
    """Five statistics in standard deviations, each close to Gaussian.

    Six deviations: the widest tail is that of chi-square with 999 degrees of freedom, 1.4e-8, so
    that all five together raise a false alarm with probability below 1e-7.
    """
    took_part = np.zeros((STEPS, USERS))
    for step, rows in enumerate(batches):
        took_part[step, rows] = 1
    each = RATE * (1 - RATE)
    sizes, times, centred = took_part.sum(1), took_part.sum(0), took_part - RATE
    spread = sizes - sizes.mean()
    size_pairs = float(spread[1:] @ spread[:-1]) / (USERS * each * math.sqrt(STEPS))
    far = {
        "mean": float(centred.sum()) / math.sqrt(centred.size * each),
        "sizes": (sizes.var(ddof=1) / (USERS * each) - 1) * math.sqrt(STEPS / 2),
        "inclusions": (times.var(ddof=1) / (STEPS * each) - 1) * math.sqrt(USERS / 2),
        "lag of a user": float((centred[1:] * centred[:-1]).sum())
        / (each * math.sqrt((STEPS - 1) * USERS)),
        "lag of a size": size_pairs,
    }
    assert max(map(abs, far.values())) < 6, f"not Poisson: {far}"


class Recorder:
    """Stands where examples do, and keeps which users each step asks for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return USERS

    def batches(self, rows, *expected):
        self.asked.append(rows)
        return iter(())


def test_row_05_the_trainers_batches_are_poisson_samples(shop):
    model, plan, _ = shop(1, model=WIDE)
    recorder = Recorder()
    long = dataclasses.replace(plan, sampling_rate=RATE, steps=STEPS)
    private_round(train, model, long, recorder)
    assert len(recorder.asked) == STEPS
    check_poisson(recorder.asked)


def test_row_05_catches_shuffled_and_weighted_batches(other_sampler):
    with pytest.raises(AssertionError, match="not Poisson"):
        check_poisson(other_sampler(USERS, RATE, STEPS))
