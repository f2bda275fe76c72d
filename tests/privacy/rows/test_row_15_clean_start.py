"""Row 15: what a broken-off step leaves does not reach the next round.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

from functools import partial

import numpy as np
import pytest

from credit_client.training.loop import train

WIDE = {"train": ["wide"]}


class BreaksOff:
    """Examples whose second physical batch never comes."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def batches(self, rows, *expected):
        yield next(self.examples.batches(rows, *expected))
        raise InterruptedError


def check_the_next_round_starts_clean(run, model, plan, examples, source):
    start = model.initial_adapter()
    again = partial(run, plan=plan, adapter=start, sampling=source, noise=source)
    clean = again(model, examples)
    with pytest.raises(InterruptedError):
        again(model, BreaksOff(examples))
    after = again(model, examples)
    assert all(np.array_equal(after[n], clean[n]) for n in clean), "something stayed behind"


def test_row_15_the_next_round_starts_clean(shop, everybody):
    model, plan, examples = shop(150, private=False, model=WIDE)
    check_the_next_round_starts_clean(train, model, plan, examples, everybody(plan))


def test_row_15_catches_a_sum_that_stays_behind(shop, everybody, resident_train):
    model, plan, examples = shop(150, private=False, model=WIDE)
    with pytest.raises(AssertionError, match="stayed behind"):
        check_the_next_round_starts_clean(resident_train, model, plan, examples, everybody(plan))
