"""Row 1: nothing public is computed from the number of users.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.app import holder_app, open_holder
from credit_client.ledger import Ledger
from credit_client.training.examples import Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses, train
from credit_common import wire
from credit_common.protocol import to_reply

WIDE = {"train": ["wide"]}


def check_public_numbers(numbers):
    for users in (64, 128, 1024):
        three = [numbers(users + more) for more in (-1, 0, 1)]
        assert three[0] == three[1] == three[2], "the number of users shows"


def denominator(model, plan, examples, source):
    """What a step really divides by, from how far everybody's summed gradient moved the weights."""
    start = model.initial_adapter()
    end = train(model, examples, plan, start, sampling=source, noise=source)
    model.load_adapter(start)
    summed = 0.0
    for batch in examples.batches(np.arange(len(examples))):
        fill_grad_samples(model, batch, partial(losses, model.contract))
        ((_, weight),) = model.trained()
        summed += weight.grad_sample.sum(0)
        weight.grad_sample = None
    rate = model.contract.training.learning_rate.wide
    moved = torch.from_numpy(end["wide.weight"] - start["wide.weight"])
    return round(rate * (summed.norm() / moved.norm()).item(), 3)


def test_row_01_nothing_public_knows_the_number_of_users(shop, everybody, records):
    wire.set_identity(7, wire.SERVER_NODE)
    model, plan, _ = shop(1, model=WIDE)
    bare, bare_plan, _ = shop(1, private=False, model=WIDE, training={"steps": 1})

    def numbers(users):
        own = records(users)
        holder = open_holder(
            "shop",
            model.contract,
            size_class="small",
            ledger=Ledger.in_memory(),
            model=model,
            train_records=own,
            holdout_records=own[:1],
        )
        content = RecordDict(
            {
                wire.ARRAYS: wire.array_record(model.initial_adapter()),
                wire.CONFIG: ConfigRecord({wire.ROUND: 1}),
            }
        )
        message = Message(content, dst_node_id=2, message_type="train")
        wire.set_message_id(message, "m1")
        reply = to_reply(holder_app(holder)(message, wire.empty_context(7, 2)))
        assert reply.WhichOneof("outcome") == "adapter"
        examples = Examples(bare, bare.contract, own)
        divided = denominator(bare, bare_plan, examples, everybody(bare_plan))
        return holder.plan, divided, reply.ByteSize()

    check_public_numbers(numbers)
    assert numbers(65)[1] == plan.expected_batch_size == 30.0


def test_row_01_catches_a_loaders_own_rate_and_denominator(stock_numbers):
    with pytest.raises(AssertionError, match="number of users shows"):
        check_public_numbers(stock_numbers)
