"""Row 23: each trained tensor moves, or the round is refused.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import numpy as np
import pytest

from credit_client.training import loop
from credit_client.training.loop import train
from credit_client.training.randomness import SecureRandom
from credit_common.errors import PrivacyError


def private_round(run, model, plan, examples, source=SecureRandom):
    start = model.initial_adapter()
    return start, run(model, examples, plan, start, sampling=source(), noise=source())


def check_every_tensor_moves(run, model, plan, examples):
    start, end = private_round(run, model, plan, examples)
    still = [name for name, array in end.items() if np.array_equal(array, start[name])]
    assert not still, f"never moved: {still}"


class Untouched(SecureRandom):
    def uniform(self, n):
        raise AssertionError("users were drawn before the refusal")


def check_a_refusal_knows_no_data(run, model, plan, examples):
    """What is refused is not charged, so that it must not depend on a release."""
    start, sources = model.initial_adapter(), {"sampling": Untouched(), "noise": SecureRandom()}
    with pytest.raises(PrivacyError, match=r"not move"):
        run(model, examples, plan, start, **sources)


@pytest.mark.parametrize("factors", ["fedavg", "ffa"])
def test_row_23_every_trained_tensor_moves_or_the_round_is_refused(shop, monkeypatch, factors):
    model, plan, examples = shop(model={"factors": factors})
    check_every_tensor_moves(train, model, plan, examples)
    made = loop._optimizer

    def without_lora(model):
        optimizer = made(model)
        for group in optimizer.param_groups:
            group["lr"] *= group["group"] != "lora"
        return optimizer

    monkeypatch.setattr(loop, "_optimizer", without_lora)
    with pytest.raises(PrivacyError, match=r"steps do not move lora\.2\.query\.[AB]$"):
        private_round(train, model, plan, examples)
    check_a_refusal_knows_no_data(train, model, plan, examples)


def test_row_23_catches_an_adapter_that_never_moved(shop, still_train):
    model, plan, examples = shop()
    with pytest.raises(AssertionError, match=r"never moved: .*lora"):
        check_every_tensor_moves(still_train, model, plan, examples)


def test_row_23_catches_a_refusal_that_shows_a_release(shop, late_refusal):
    model, plan, examples = shop()
    with pytest.raises(AssertionError, match="before the refusal"):
        check_a_refusal_knows_no_data(late_refusal, model, plan, examples)
