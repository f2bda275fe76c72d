"""Bounds of an honest change, against the trainer that runs live.

Noise is never seeded: each test's chance of a false alarm is below 1e-6 by design.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from credit_client.training.examples import Examples
from credit_client.training.loop import _optimizer, train
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom
from credit_common.contract import parse_contract
from credit_common.errors import WireError
from credit_common.privacy import mechanism_plan
from credit_common.upload import encode
from credit_common.wire import ARRAYS, METRICS, WEIGHT, array_record, set_identity
from credit_server.plausible import CHANCE, OVERSIZE, _answers, _decayed, bounds
from credit_server.quarantine import Quarantine

SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.3},
    "both": {"momentum": 0.5, "weight_decay": 0.1},
}


@pytest.fixture(scope="module")
def wide(contract_text):
    """The small contract's wide part alone, with keys of [training] changed."""

    def make(**training):
        contract = parse_contract(contract_text).training_only("wide")
        changed = dataclasses.replace(contract.training, **{"steps": 6, **training})
        return dataclasses.replace(contract, training=changed)

    return make


def stepped(contract, start, gradients):
    """A wide weight after the contract's steps of the real optimizer, by per-sample gradients."""
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    model = SimpleNamespace(contract=contract, trained=lambda: [("wide.weight", parameter)])
    plan = mechanism_plan(contract, "small")
    optimizer = NoisySumOptimizer(_optimizer(model), plan, SecureRandom())
    for _ in range(plan.steps):
        optimizer.zero_grad()
        if gradients is not None:
            parameter.grad_sample = gradients.clone()
            optimizer.accumulate()
        optimizer.step()
    return parameter.detach().numpy().astype(np.float64)


@pytest.mark.parametrize("setting", SETTINGS)
def test_noise_moves_a_weight_by_the_variance_that_the_bound_is_made_of(wide, setting):
    size, contract = 40_000, wide(**SETTINGS[setting])
    start = np.random.default_rng(0).normal(size=(1, size)).astype(np.float32)
    end = stepped(contract, start, None)
    training, plan = contract.training, mechanism_plan(contract, "small")
    settings = (training.learning_rate.wide, training.weight_decay, training.momentum, plan.steps)
    spread = plan.noise_multiplier * plan.clip_norm / plan.expected_batch_size
    spread *= math.sqrt(sum(a * a for a in _answers(*settings)))
    by_noise = (end - _decayed(*settings) * start) / spread
    # A χ² of `size` is within 6 sd of its mean but for 1e-8; float32 costs less than 1e-3.
    assert np.square(by_noise).mean() == pytest.approx(1, abs=6 * math.sqrt(2 / size) + 1e-3)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("size", [3, 2000])
def test_no_batch_of_users_moves_a_weight_further_than_the_bound(wide, setting, size):
    contract = wide(**SETTINGS[setting])
    plan = mechanism_plan(contract, "small")
    start = np.full((1, size), 0.1, np.float32)
    bound = bounds(contract, plan, {"wide.weight": (1, size)})["wide"]
    # All of the largest holder's expected batch, far beyond the clip norm, all one way.
    users = int(OVERSIZE * plan.expected_batch_size)
    pushed = stepped(contract, start, torch.full((users, 1, size), 100.0))
    change, before = np.linalg.norm(pushed - start), float(np.linalg.norm(start))
    assert bound.holds(change, before)
    assert change > 0.5 * bound.most  # it is a bound, not a number that nothing comes near
    alone = np.linalg.norm(stepped(contract, start, torch.zeros(users, 1, size)) - start)
    assert bound.holds(alone, before)
    assert (bound.least > 0) is (size == 2000)
    assert alone > bound.least


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adam_stays_within_its_bound_whatever_the_gradients_are(wide, decay):
    contract = wide(optimizer="adam", weight_decay=decay, steps=40).without_privacy()
    plan, size = mechanism_plan(contract, "small"), 50
    bound = bounds(contract, plan, {"wide.weight": (1, size)})["wide"]
    start = np.ones((1, size), np.float32)
    furthest = 0.0
    for growth in (0.1, 0.9, 1.0, 1.1, 3.0):  # constant gradients, and such as grow or vanish
        parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
        model = SimpleNamespace(contract=contract, trained=lambda p=parameter: [("wide.weight", p)])
        optimizer = _optimizer(model)
        for step in range(plan.steps):
            parameter.grad = torch.full((1, size), growth**step)
            optimizer.step()
        moved = float(np.linalg.norm(parameter.detach().numpy() - start))
        assert bound.holds(moved, float(np.linalg.norm(start)))
        furthest = max(furthest, moved)
    if not decay:  # a bound of the learning rate a step would be wrong
        assert furthest > contract.training.learning_rate.wide * math.sqrt(size) * plan.steps
    assert bound.least == 0


def test_without_privacy_sgd_has_no_bound(wide):
    contract = wide().without_privacy()
    assert bounds(contract, mechanism_plan(contract, "small"), {"wide.weight": (1, 9)}) == {}


def test_each_group_has_its_own_clip_norm_rate_and_size(contract):
    groups = ("lora", "head", "wide")
    clip = (("lora", 0.1), ("head", 0.2), ("wide", 0.9))
    contract = dataclasses.replace(
        contract, privacy=dataclasses.replace(contract.privacy, group_clip=clip)
    )
    shapes = {"lora.0.query.A": (4, 50), "head.weight": (1, 200), "wide.weight": (1, 200)}
    found = bounds(contract, mechanism_plan(contract, "small"), shapes)
    assert set(found) == set(groups)
    rates = contract.training.learning_rate
    noise = contract.privacy.noise_multiplier / 30 * math.sqrt(200)
    for group, own in clip:
        signal = 2 * own  # two steps, full batches
        usual = getattr(rates, group) * (signal + math.sqrt(2) * noise)
        assert found[group].usual == pytest.approx(usual, rel=1e-3)


def reply_of(arrays, weight, node=2):
    set_identity(1, 1)
    metrics = MetricRecord({WEIGHT: weight})
    content = RecordDict({ARRAYS: array_record(arrays), METRICS: metrics})
    asked = Message(RecordDict(), dst_node_id=node, message_type="train")
    return Message(content, reply_to=asked)


HONEST = [
    {"upload": "float32"},
    {"upload": "bfloat16", "momentum": 0.9},
    {"upload": "int8", "weight_decay": 0.05},
    {"upload": "int8", "optimizer": "adam", "learning_rate": {"lora": 0.01, "head": 0.01}},
]


@pytest.mark.parametrize("settings", HONEST, ids=lambda s: "-".join(map(str, s.values()))[:24])
def test_an_honest_holder_is_never_set_aside_and_a_scaled_one_is(
    federation_file, model_for, records, settings
):
    contract = parse_contract(federation_file(training=settings))
    model, kind = model_for(contract), contract.training.upload
    plan = mechanism_plan(contract, "small")
    examples = Examples(model, contract, records(60))
    shapes = model.schema()
    quarantine, weight = Quarantine(contract, shapes), plan.expected_batch_size
    rounds = 20
    assert rounds * CHANCE < 1e-6
    base = model.initial_adapter()
    for _ in range(rounds):
        source = SecureRandom()
        trained = train(model, examples, plan, base, sampling=source, noise=source)
        sent = encode(kind, trained, base, source.uniform)
        adapter, _ = quarantine.admit(base, reply_of(sent, weight))
        scaled = {n: base[n] + 1e4 * (trained[n] - base[n]).astype(np.float32) for n in base}
        with pytest.raises(WireError) as error:
            quarantine.admit(base, reply_of(encode(kind, scaled, base, source.uniform), weight))
        assert error.value.reason == "norm"
        base = adapter
    if contract.training.optimizer == "sgd":
        idle = encode(kind, base, base, SecureRandom().uniform)
        with pytest.raises(WireError) as error:
            quarantine.admit(base, reply_of(idle, weight))
        assert error.value.reason == "no-noise"
