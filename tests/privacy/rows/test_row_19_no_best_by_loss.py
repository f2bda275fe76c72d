"""Row 19: no checkpoint is chosen, and no learning rate driven, by a private loss.

What is released is the last round's running average, whatever the evaluations say; a holder takes
the contract's steps at the contract's rates, whatever its loss does. The broken variants keep the
best evaluation's adapter, and stop where the loss rises.
"""

import dataclasses
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from credit_client.training import loop
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import poisson_sample
from credit_common import metrics
from credit_common.wire import (
    ARRAYS,
    HISTOGRAM,
    METRICS,
    SERVER_NODE,
    WEIGHT,
    set_identity,
    set_message_id,
)
from credit_server.aggregate import CreditFedAvg

GOOD = [5.0, 0.0, 0.0, 5.0]  # all repaid below, all defaults above: AUC 1
BAD = [0.0, 5.0, 5.0, 0.0]


def reply(kind, node, content):
    set_identity(7, SERVER_NODE)
    asked = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type=kind)
    set_message_id(asked, f"{kind}-{node}")
    return Message(RecordDict(content), reply_to=asked)


class TwoHolders:
    def get_node_ids(self):
        return [2, 3]


def round_of(strategy, number, value, counts):
    set_identity(7, SERVER_NODE)
    asked = ArrayRecord({"w": Array(np.zeros(1, np.float32))})
    assert list(strategy.configure_train(number, asked, ConfigRecord(), TwoHolders()))
    arrays = ArrayRecord({"w": Array(np.full(1, value, np.float32))})
    strategy.aggregate_train(
        number,
        [
            reply("train", node, {ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: 1.0})})
            for node in (2, 3)
        ],
    )
    told = MetricRecord({WEIGHT: 1.0, HISTOGRAM: counts})
    strategy.aggregate_evaluate(
        number, [reply("evaluate", node, {METRICS: told}) for node in (2, 3)]
    )


def check_the_last_round_is_released(make):
    reports = []
    strategy = make(reports.append)
    for number, (value, counts) in enumerate([(1.0, GOOD), (2.0, GOOD), (3.0, BAD)], start=1):
        round_of(strategy, number, value, counts)
    assert reports[-1].adapter["w"] == pytest.approx([3.0])


@pytest.fixture
def each_round(contract):
    evaluation = dataclasses.replace(contract.evaluation, every=1, bins=2)
    training = dataclasses.replace(contract.training, average=0.0)
    return dataclasses.replace(contract, evaluation=evaluation, training=training)


def test_row_19_the_last_round_is_released_whatever_its_figures(each_round):
    check_the_last_round_is_released(lambda told: CreditFedAvg(each_round, told))


def test_row_19_catches_the_best_round(each_round):
    class BestRound(CreditFedAvg):
        best, kept = -1.0, None

        def _report(self, server_round, histogram, evaluated):
            found = metrics.auc(histogram)
            if found >= self.best:
                self.best, self.kept = found, dict(self.released)
            self.released = self.kept
            super()._report(server_round, histogram, evaluated)

    with pytest.raises(AssertionError):
        check_the_last_round_is_released(lambda told: BestRound(each_round, told))


STEPS = 8
TOO_FAST = {"lora": 0.1, "head": 0.2, "wide": 500.0}


@pytest.fixture
def rising(shop):
    """Model, plan and examples of a holder whose loss rises at the contract's learning rate."""
    training = {"steps": STEPS, "sampling_rate": 1.0, "learning_rate": TOO_FAST}
    return shop(40, private=False, model={"train": ["wide"]}, training=training)


def mean_loss(model, examples):
    (batch,) = examples.batches(np.arange(len(examples)))
    scores = model(batch.hidden, batch.mask, batch.wide).detach()
    rows = loop.losses(model.contract, scores, batch.labels) * batch.weights
    return rows.sum().item() / len(examples)


def check_all_steps_are_taken(run, rising, source, monkeypatch):
    model, plan, examples = rising
    model.load_adapter(model.initial_adapter())
    seen = [mean_loss(model, examples)]

    class Watched(NoisySumOptimizer):
        def step(self, closure=None):
            super().step(closure)
            seen.append(mean_loss(model, examples))

    monkeypatch.setattr(loop, "NoisySumOptimizer", Watched)
    run(model, examples, plan, model.initial_adapter(), sampling=source, noise=source)
    assert any(later > before for before, later in pairwise(seen)), "the loss does not rise here"
    assert len(seen) - 1 == plan.steps == STEPS, "a round was cut short"


def test_row_19_all_steps_are_taken_though_the_loss_rises(rising, everybody, monkeypatch):
    check_all_steps_are_taken(loop.train, rising, everybody(rising[1]), monkeypatch)


def test_row_19_catches_a_trainer_that_stops_where_the_loss_rises(rising, everybody, monkeypatch):
    def early(model, examples, plan, adapter, *, sampling, noise):
        model.load_adapter(adapter)
        sgd = torch.optim.SGD([p for _, p in model.trained()], lr=TOO_FAST["wide"])
        optimizer = loop.NoisySumOptimizer(sgd, plan, noise)
        best = mean_loss(model, examples)
        for _ in range(plan.steps):
            optimizer.zero_grad()
            for batch in examples.batches(
                poisson_sample(sampling, len(examples), plan.sampling_rate)
            ):
                fill_grad_samples(model, batch, partial(loop.losses, model.contract))
                optimizer.accumulate()
            optimizer.step()
            if mean_loss(model, examples) > best:
                break
            best = mean_loss(model, examples)
        return model.adapter()

    with pytest.raises(AssertionError, match="cut short"):
        check_all_steps_are_taken(early, rising, everybody(rising[1]), monkeypatch)
