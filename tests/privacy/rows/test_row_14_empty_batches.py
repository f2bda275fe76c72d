"""Row 14: an empty batch is noised and charged like any other.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import dataclasses
import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.app import holder_app, open_holder
from credit_client.ledger import Ledger
from credit_client.training.loop import train
from credit_client.training.randomness import SecureRandom
from credit_common import wire
from credit_common.events import event_from_json

WIDE = {"train": ["wide"]}


NEVER = 1e-9  # 40 users in three steps: a batch with somebody in it has probability 1.2e-7


class Listening(SecureRandom):
    """Keeps the Gaussians that it gives."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def normal(self, n):
        self.drawn.append(super().normal(n))
        return self.drawn[-1]


def check_an_empty_step_is_noise_alone(run, model, plan, examples):
    noise = Listening()
    start = model.initial_adapter()
    end = run(model, examples, plan, start, sampling=SecureRandom(), noise=noise)
    assert len(noise.drawn) == plan.steps, "a step without noise"
    rate = model.contract.training.learning_rate.wide
    moved = (end["wide.weight"] - start["wide.weight"]).astype(np.float64).ravel()
    released = -moved * plan.expected_batch_size / rate / plan.clip_norm
    rest = np.abs(released - plan.noise_multiplier * sum(noise.drawn)).max()
    assert rest < 1e-4, "something beside the noise"


def check_every_step_is_charged(charged):
    assert charged(steps=3, rate=NEVER) == 3, "a step is not charged"


def test_row_14_an_empty_batch_is_noised_and_charged(shop, records):
    wire.set_identity(7, wire.SERVER_NODE)
    model, plan, examples = shop(model=WIDE, training={"steps": 3})
    empty = dataclasses.replace(plan, sampling_rate=NEVER)
    check_an_empty_step_is_noise_alone(train, model, empty, examples)

    def charged(steps, rate):
        own, _, _ = shop(1, model=WIDE, training={"steps": steps, "sampling_rate": rate})
        ledger = Ledger.in_memory()
        holder = open_holder(
            "shop",
            own.contract,
            size_class="small",
            ledger=ledger,
            model=own,
            train_records=records(40),
            holdout_records=records(1),
        )
        content = RecordDict(
            {
                wire.ARRAYS: wire.array_record(own.initial_adapter()),
                wire.CONFIG: ConfigRecord({wire.ROUND: 1}),
            }
        )
        message = Message(content, dst_node_id=2, message_type="train")
        wire.set_message_id(message, "m1")
        assert not holder_app(holder)(message, wire.empty_context(7, 2)).has_error()
        events = [entry.event for entry in ledger.entries() if entry.account == "train"]
        return sum(event_from_json(json.loads(event)).steps for event in events)

    check_every_step_is_charged(charged)


def test_row_14_catches_a_skipped_step_and_a_row_made_up(shop, other_empty):
    model, plan, examples = shop(model=WIDE, training={"steps": 3})
    empty = dataclasses.replace(plan, sampling_rate=NEVER)
    with pytest.raises(AssertionError, match=r"a step without noise|something beside"):
        check_an_empty_step_is_noise_alone(other_empty, model, empty, examples)


def test_row_14_catches_a_charge_passed_over(stock_charges):
    with pytest.raises(AssertionError, match="not charged"):
        check_every_step_is_charged(stock_charges)
