"""The engine on an accelerator against the CPU and the plain recipe: `make test-gpu`.

Skipped where there is none. What it prints (`-s`) are the figures that the documentation lacks.
"""

import dataclasses
import time

import numpy as np
import pytest
import torch

from credit_client.training.examples import Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses, score, train
from credit_client.training.randomness import SecureRandom
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.model import CreditModel
from credit_common.privacy import mechanism_plan
from credit_simulations.bench.engine import Schedule, at_layers
from credit_simulations.bench.recipes import Recipe
from credit_simulations.packaged import packaged_contract

GPU = device_of("auto")
pytestmark = pytest.mark.skipif(GPU.type == "cpu", reason="no CUDA or MPS device on this machine")
USERS = 256
KS = (1, 2, 3, 6)


@pytest.fixture(scope="module")
def long_records(records):
    return records(USERS)


def contract_at(contract: Contract, layers: int) -> Contract:
    schedule = Schedule(users=USERS, batch=64, noise_multiplier=1.0)
    contract = dataclasses.replace(contract, model=packaged_contract("german").model)
    return at_layers(contract.training_only("lora", "head"), layers, schedule)


def gradients(model, examples):
    """Name -> per-sample gradients (users, *shape) on the CPU, in the users' order."""
    out = {name: np.zeros((len(examples), *p.shape), np.float32) for name, p in model.trained()}
    for batch in examples.batches(np.arange(len(examples))):
        fill_grad_samples(model, batch, lambda s, y: losses(model.contract, s, y))
        for name, p in model.trained():
            out[name][batch.rows] = p.grad_sample[: len(batch.rows)].cpu().numpy()
            p.grad_sample = None
    return out


def engine(contract, layers, device, records, precision="auto"):
    own = contract_at(contract, layers)
    model = CreditModel(own, resolve_backbone(own.model), device, precision)
    return model, Examples(model, own, records)


@pytest.mark.parametrize("layers", KS)
def test_scores_and_gradients_are_those_of_the_cpu(contract, long_records, shaken, layers):
    some = long_records[:40]
    host, on_host = engine(contract, layers, "cpu", some, "float32")
    adapter = shaken(host, scale=0.1)
    host.load_adapter(adapter)
    expected, ours = score(host, on_host, adapter), gradients(host, on_host)
    for precision, cosine, near in (("float32", 0.99999, 1e-3), ("auto", 0.999, 0.05)):
        model, examples = engine(contract, layers, GPU, some, precision)
        assert np.abs(score(model, examples, adapter) - expected).max() < near
        model.load_adapter(adapter)
        for name, own in gradients(model, examples).items():
            a, b = own.reshape(len(own), -1), ours[name].reshape(len(own), -1)
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            assert ((a * b).sum(1) / norms).min() > cosine, name


def seconds(run, repeats=5):
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if GPU.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def recipe(contract, device):
    texts = ["a borrower who writes and writes " * 30] * USERS
    labels = (np.arange(USERS) % 2).astype(np.float32)
    spec = contract_at(contract, 6).model
    folder = resolve_backbone(spec).folder
    return Recipe(folder, spec, texts, labels, "hooks", device=device)


@pytest.mark.parametrize("layers", KS)
def test_the_engine_is_faster_than_the_plain_recipe(contract, long_records, layers):
    plain = recipe(contract, GPU)
    model, examples = engine(contract, layers, GPU, long_records)
    plan = dataclasses.replace(mechanism_plan(model.contract, "bench"), steps=1, rounds=1)
    adapter = model.initial_adapter()

    def ours():
        train(model, examples, plan, adapter, sampling=SecureRandom(), noise=SecureRandom())

    own, theirs = seconds(ours), seconds(lambda: plain.steps(1))
    print(  # noqa: T201
        f"\nk = {layers}: {own * 1e3:.1f} ms a step, plain recipe {theirs * 1e3:.1f} ms"
    )
    assert own < theirs


@pytest.mark.skipif(GPU.type != "cuda", reason="peak memory is read from CUDA alone")
def test_peak_memory_is_at_most_a_third_of_the_recipes(contract, long_records):
    def peak(make):
        run = make()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before

    def ours():
        model, examples = engine(contract, 1, GPU, long_records)
        plan = dataclasses.replace(mechanism_plan(model.contract, "bench"), steps=1, rounds=1)
        start, source = model.initial_adapter(), SecureRandom()
        return lambda: train(model, examples, plan, start, sampling=source, noise=source)

    def theirs():
        plain = recipe(contract, GPU)
        return lambda: plain.steps(1)

    own, other = peak(ours), peak(theirs)
    print(  # noqa: T201
        f"\npeak above the model: {own / 2**20:.0f} MiB, plain recipe {other / 2**20:.0f} MiB"
    )
    assert own < 0.3 * other
