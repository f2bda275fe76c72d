"""Broken variants: what stock parts or one wrong line do to the rows of the privacy specification.

Each is put before the same check as the real thing, and must fail it.
"""

import copy
import csv
import dataclasses
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from opacus import GradSampleModule, PrivacyEngine
from opacus.accountants import RDPAccountant
from opacus.data_loader import CollateFnWithEmpty
from opacus.optimizers import DPOptimizer, DPPerLayerOptimizer
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

from credit_client import identity as own
from credit_client.shard import read_shard
from credit_client.training import adversarial
from credit_client.training import examples as examples_module
from credit_client.training.examples import Batch, Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom, SeededRandom, poisson_sample
from credit_client.training.shapes import MOST_ROWS
from credit_common.bundle import Bundle
from credit_common.contract import parse_contract
from credit_common.errors import PrivacyError
from credit_common.model import CreditModel
from credit_common.privacy import MechanismPlan, mechanism_plan
from credit_common.text import record_text
from credit_server.authority import create_authority
from credit_server.enrol import enrol

C = 0.7  # the clip norm of plans that are made without a contract


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def plan_of():
    """A plan without a contract."""

    def make(sigma=1.0, **changes) -> MechanismPlan:
        plan = MechanismPlan(
            sampling_rate=0.1,
            noise_multiplier=sigma,
            clip_norm=C,
            steps=1,
            rounds=1,
            expected_batch_size=25.0,
            evaluation_noise_multiplier=sigma,
            evaluations=1,
            epsilon=4.0,
            delta=1e-5,
        )
        return dataclasses.replace(plan, **changes)

    return make


@pytest.fixture(scope="session")
def shop(federation_file, model_for, records):
    """Model, plan and examples of a small holder."""

    def make(n=40, *, private=True, **changes):
        contract = parse_contract(federation_file(private=private, **changes))
        model = model_for(contract)
        return model, mechanism_plan(contract, "small"), Examples(model, contract, records(n))

    return make


@pytest.fixture(scope="session")
def row_losses():
    """The loss of each row, for `fill_grad_samples`."""
    return lambda model: partial(losses, model.contract)


@pytest.fixture(scope="session")
def stock():
    """Opacus' own optimizer, behind the two calls of this project's."""

    class Stock(DPOptimizer):
        def accumulate(self):
            self.clip_and_accumulate()

        def pre_step(self, closure=None):
            self.add_noise()
            self.scale_grad()
            return True

    def make(parameters, plan, generator=None):
        return Stock(
            torch.optim.SGD(parameters, lr=1.0),
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.expected_batch_size,
            generator=generator,
        )

    return make


@pytest.fixture
def stock_numbers():
    """Row 1: rate, steps of an epoch and denominator as PrivacyEngine takes them from a loader."""

    def numbers(users):
        module = nn.Linear(3, 1)
        data = TensorDataset(torch.zeros(users, 3), torch.zeros(users))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its noise is not secure, among others
            _, optimizer, loader = PrivacyEngine().make_private(
                module=module,
                optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
                data_loader=DataLoader(data, batch_size=64),
                noise_multiplier=1.0,
                max_grad_norm=1.0,
            )
        return loader.sample_rate, len(loader), optimizer.expected_batch_size

    return numbers


@pytest.fixture(params=["manual_seed", "fresh generator"])
def stock_release(request, stock, plan_of):
    """Row 2: a release with noise from torch's global generator, or from a new one."""

    def release():
        parameter = nn.Parameter(torch.zeros(20))
        generator = torch.Generator() if request.param == "fresh generator" else None
        optimizer = stock([parameter], plan_of(), generator)
        parameter.grad_sample = torch.zeros(1, 20)
        optimizer.accumulate()
        optimizer.step()
        return parameter.detach().numpy().tobytes()

    return release


@pytest.fixture
def shared_stream():
    """Row 2: a secure stream that a forked child goes on with."""

    class Shared(SecureRandom):
        def _words(self, n):
            return np.frombuffer(self._stream.update(bytes(8 * n)), np.uint64)

    return Shared()


@pytest.fixture
def rows_as_users(tmp_path):
    """Row 4: user ids from the position of a row."""

    def read(path, contract):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        other = tmp_path / "positions.csv"
        with other.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows({**row, "user": f"row {i}"} for i, row in enumerate(rows))
        shard = read_shard(other, contract)
        return [example.record for example in shard.train + shard.holdout]

    return read


@pytest.fixture
def merged_users(tmp_path):
    """Row 4: rows that are equal but for the user id taken as duplicates."""

    def read(path, contract):
        import pandas as pd

        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        other = tmp_path / "merged.csv"
        table.drop_duplicates([c for c in table if c != "user"]).to_csv(other, index=False)
        shard = read_shard(other, contract)
        return [example.record for example in shard.train + shard.holdout]

    return read


@pytest.fixture(params=["shuffled", "weighted"])
def other_sampler(request):
    """Row 5: batches of torch's own samplers, of 50 of 1,000 users each."""

    def batches(users, rate, steps):
        draw, size = torch.Generator().manual_seed(0), round(users * rate)
        if request.param == "shuffled":
            sampler = RandomSampler(range(users), generator=draw)
        else:  # the rarer label is drawn three times as often
            weights = [3.0 if user % 4 == 0 else 1.0 for user in range(users)]
            sampler = Weighted(weights, users, replacement=True, generator=draw)
        taken = 0
        while True:
            for rows in BatchSampler(sampler, size, drop_last=False):
                yield np.asarray(rows)
                taken += 1
                if taken == steps:
                    return

    return batches


@pytest.fixture
def batch_norm_model(federation_file, tiny_bert):
    """Row 9: a model with BatchNorm whose weights are frozen, which Opacus' validator passes."""
    from credit_common.backbone import resolve_backbone

    contract = parse_contract(federation_file())
    model = CreditModel(contract, resolve_backbone(contract.model), precision="float32")
    norm = nn.BatchNorm1d(model.hidden).requires_grad_(False)
    text_features = model.text_features
    model.text_features = lambda *inputs: norm(text_features(*inputs))
    return model, norm


@pytest.fixture
def coupled_moves(monkeypatch):
    """Row 10: the adversarial move normalised over the batch."""

    def moves(ascent, hidden, mask, radius):
        return radius * hidden.norm(dim=2).mean() * ascent / ascent.norm()

    monkeypatch.setattr(adversarial, "row_moves", moves)


@pytest.fixture
def two_examples(row_losses):
    """Row 10: a text and its moved copy clipped and summed as if they were two users."""

    def add(optimizer, model, batch, radius):
        hidden = batch.hidden.clone().requires_grad_()
        first = dataclasses.replace(batch, hidden=hidden)
        (ascent,) = fill_grad_samples(model, first, row_losses(model), also=(hidden,))
        optimizer.accumulate()
        moved = batch.hidden + adversarial.row_moves(ascent, batch.hidden, batch.mask, radius)
        fill_grad_samples(model, dataclasses.replace(batch, hidden=moved), row_losses(model))
        optimizer.accumulate()

    return add


@pytest.fixture
def unsnapped():
    """Row 11: float64 noise without the grid."""

    class Unsnapped(NoisySumOptimizer):
        def add_noise(self):
            deviation = self.noise_multiplier * self._plan.clip_norm
            for p in self.params:
                noise = self._noise.normal(p.numel()).reshape(p.shape)
                p.grad = (p.summed_grad + deviation * torch.from_numpy(noise)).to(p.dtype)

    return Unsnapped


@pytest.fixture(params=["skipped", "fake row"])
def other_empty(request, row_losses):
    """Row 14: a round that skips an empty batch, or fills it as Opacus' `rand_on_empty` does."""

    def train(model, examples, plan, adapter, *, sampling, noise):
        model.load_adapter(adapter)
        parameters = [p for _, p in model.trained()]
        rate = model.contract.training.learning_rate.wide
        optimizer = NoisySumOptimizer(torch.optim.SGD(parameters, lr=rate), plan, noise)
        filled = CollateFnWithEmpty(None, rand_on_empty=True)
        filled([(torch.from_numpy(examples.wide), torch.from_numpy(examples.labels))])
        for _ in range(plan.steps):
            optimizer.zero_grad()
            rows = poisson_sample(sampling, len(examples), plan.sampling_rate)
            batches = list(examples.batches(rows))
            if not batches and request.param == "skipped":
                continue
            if not batches:
                ((wide, label),) = filled([])
                fake = Batch(
                    rows=np.zeros(1, np.intp),
                    hidden=None,
                    mask=None,
                    wide=wide,
                    labels=label,
                    weights=torch.ones(1),
                )
                batches = [fake]
            for batch in batches:
                fill_grad_samples(model, batch, row_losses(model))
                optimizer.accumulate()
            optimizer.step()
        return model.adapter()

    return train


@pytest.fixture
def stock_charges(stock, plan_of):
    """Row 14: steps that Opacus' accountant is told of when empty batches are passed over."""

    def charged(steps, rate):
        accountant, parameter = RDPAccountant(), nn.Parameter(torch.zeros(3))
        optimizer = stock([parameter], plan_of())
        hook, source = accountant.get_optimizer_hook_fn(sample_rate=rate), SecureRandom()
        for _ in range(steps):
            rows = poisson_sample(source, 40, rate)
            if not len(rows):
                continue
            parameter.grad_sample = torch.ones(len(rows), 3)
            optimizer.accumulate()
            optimizer.step()
            hook(optimizer)
        return sum(count for _, _, count in accountant.history)

    return charged


@pytest.fixture
def resident_train(row_losses):
    """Row 15: one stock optimizer for all rounds, with virtual batches."""
    kept = []

    def train(model, examples, plan, adapter, *, sampling, noise):
        model.load_adapter(adapter)
        if not kept:
            sgd = torch.optim.SGD([p for _, p in model.trained()], lr=0.1)
            kept.append(
                DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=30)
            )
        (optimizer,) = kept
        for _ in range(plan.steps):
            optimizer.zero_grad()
            rows = poisson_sample(sampling, len(examples), plan.sampling_rate)
            last = -(-len(rows) // MOST_ROWS) - 1
            for i, batch in enumerate(examples.batches(rows)):
                fill_grad_samples(model, batch, row_losses(model))
                optimizer.signal_skip_step(i < last)
                optimizer.step()
                optimizer.zero_grad()
        return model.adapter()

    return train


@pytest.fixture
def dynamic_padding(monkeypatch):
    """Row 16: texts padded to the longest of those beside them."""

    def make(model, contract, own):
        lengths = [len(t) for t in model.tokens([record_text(contract, r) for r in own])]
        monkeypatch.setattr(
            examples_module, "bucket_length", lambda _, most: min(most, max(lengths))
        )
        return Examples(model, contract, own)

    return make


@pytest.fixture(params=["stock per layer", "unchecked plan"])
def wide_groups(request, plan_of):
    """Row 20: each group clipped to the whole clip norm."""

    def make(groups):
        sgd = torch.optim.SGD(groups, lr=1.0)
        bounds = {group["group"]: C for group in groups}
        if request.param == "unchecked plan":
            plan = copy.copy(plan_of())
            object.__setattr__(plan, "group_clip", tuple(bounds.items()))
            return NoisySumOptimizer(sgd, plan, SecureRandom())

        class PerLayer(DPPerLayerOptimizer):
            def accumulate(self):
                self.clip_and_accumulate()

        return PerLayer(
            sgd,
            noise_multiplier=1.0,
            max_grad_norm=list(bounds.values()),
            expected_batch_size=25.0,
        )

    return make


@pytest.fixture
def stock_proximal():
    """Row 22: FedProx as a term of the loss, under Opacus' hooks."""

    def step(mu):
        module = nn.Linear(3, 1)
        nn.init.ones_(module.weight)
        nn.init.ones_(module.bias)
        hooked = GradSampleModule(module)
        optimizer = DPOptimizer(
            torch.optim.SGD(hooked.parameters(), lr=0.1),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=4,
        )
        loss = hooked(torch.ones(4, 3)).square().mean()
        proximal = sum(p.square().sum() for p in module.parameters())  # the round began at zero
        (loss + mu / 2 * proximal).backward()
        assert all((p.grad is not None) for p in module.parameters())
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()

    return step


@pytest.fixture
def still_train(row_losses):
    """Row 23: a round whose optimizer has the LoRA factors of another model."""

    def train(model, examples, plan, adapter, *, sampling, noise):
        model.load_adapter(adapter)
        own = [(name, p) for name, p in model.trained()]
        held = [p if not name.startswith("lora.") else copy.deepcopy(p) for name, p in own]
        optimizer = NoisySumOptimizer(torch.optim.SGD(held, lr=0.1), plan, noise)
        for _ in range(plan.steps):
            optimizer.zero_grad()
            rows = poisson_sample(sampling, len(examples), plan.sampling_rate)
            for batch in examples.batches(rows):
                fill_grad_samples(model, batch, row_losses(model))
                for (_, p), other in zip(own, held, strict=True):
                    other.grad_sample = p.grad_sample
                optimizer.accumulate()
            optimizer.step()
        return model.adapter()

    return train


@pytest.fixture
def late_refusal():
    """Row 23: a round that is refused for what its release looks like."""

    def train(model, examples, plan, adapter, *, sampling, noise):
        model.load_adapter(adapter)
        parameters = [p for _, p in model.trained()]
        optimizer = NoisySumOptimizer(torch.optim.SGD(parameters, lr=0.0), plan, noise)
        optimizer.zero_grad()
        poisson_sample(sampling, len(examples), plan.sampling_rate)
        optimizer.step()
        end = model.adapter()
        if any(np.array_equal(end[name], adapter[name]) for name in end):
            raise PrivacyError("a tensor was not moved")
        return end

    return train


@pytest.fixture(scope="session")
def everybody():
    """A source that samples every user and adds no noise, for plans without privacy."""

    class Everybody(SeededRandom):
        def uniform(self, n):
            return np.zeros(n)

        def normal(self, n):
            return np.zeros(n)

    return lambda plan: Everybody(0, plan)


@pytest.fixture
def enrolled(tmp_path, contract, contract_text):
    """The identity of a holder that a coordinator has enrolled."""
    folder = tmp_path / "coordinator"
    folder.mkdir()
    authority = create_authority(folder, "shop-credit")
    bundle = Bundle(
        federation="shop-credit",
        address="localhost:9440",
        ca_pem=authority.ca_pem.decode(),
        contract_text=contract_text,
    )
    csr = own.request(tmp_path / "shop", bundle, "shop", "small")
    _, pem = enrol(folder, authority, contract, csr.read_bytes(), where="shop")
    csr.with_suffix(".pem").write_bytes(pem)
    return own.open_identity(tmp_path / "shop")
