"""The training mechanism's rows of the privacy specification, each shown to be able to fail.

A check is a function of the thing that it checks. It passes on the real one, and the test beneath
gives it one that is broken as stock parts are, or as one wrong line would break it.
"""

import csv
import dataclasses
import json
import logging
import math
import os
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from credit_client.app import holder_app, open_holder
from credit_client.ledger import Ledger
from credit_client.shard import read_shard
from credit_client.training import gradients, loop
from credit_client.training.adversarial import fill_adversarial
from credit_client.training.examples import PHYSICAL, Batch, Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses, train
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import GRID, SecureRandom
from credit_common import wire
from credit_common.contract import parse_contract
from credit_common.errors import ContractError, PrivacyError
from credit_common.events import event_from_json
from credit_common.privacy import mechanism_plan
from credit_common.protocol import to_reply

C = 0.7  # of the plans of `plan_of`
WIDE = {"train": ["wide"]}


def ours(parameters, plan, noise=None):
    return NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), plan, noise or SecureRandom())


def private_round(run, model, plan, examples, source=SecureRandom):
    start = model.initial_adapter()
    return start, run(model, examples, plan, start, sampling=source(), noise=source())


# Row 1: the number of users


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


# Row 2: seeds and forks


def check_no_seed_repeats(release):
    seen = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002  # the old global state is one of the seeds
        torch.manual_seed(1)
        seen += [release(), release()]
    assert len(set(seen)) == 4, "a release is repeated"


def in_a_child(source):
    """Eight numbers that a forked child draws from its parent's source."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.normal(8).tobytes())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        drawn = pipe.read()
    os.waitpid(child, 0)
    assert len(drawn) == 64
    return drawn


def check_forks_differ(source):
    source.normal(3)
    drawn = [in_a_child(source), in_a_child(source), source.normal(8).tobytes()]
    assert len(set(drawn)) == 3, "two processes draw the same"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_row_02_no_seed_and_no_fork_repeats_noise(shop):
    model, plan, examples = shop(model=WIDE)
    check_no_seed_repeats(lambda: wire.pack(private_round(train, model, plan, examples)[1]))
    check_forks_differ(SecureRandom())


def test_row_02_catches_noise_of_torchs_generators(stock_release):
    with pytest.raises(AssertionError, match="repeated"):
        check_no_seed_repeats(stock_release)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_row_02_catches_a_stream_that_children_share(shared_stream):
    with pytest.raises(AssertionError, match="two processes"):
        check_forks_differ(shared_stream)


# Row 4: the unit is a user


CELLS = {
    "user": "u", "phone": "", "age": "30", "income": "20", "tenure": "3", "home": "P",
    "job": "clerk", "note": "", "at": "2024-01-05", "orders": "", "sex": "f", "secret": "",
    "defaulted": "1",
}  # fmt: skip


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, CELLS)
        writer.writeheader()
        writer.writerows({**CELLS, **row} for row in rows)
    return path


def read(path, contract):
    shard = read_shard(path, contract)
    return [example.record for example in shard.train + shard.holdout]


def contribution(model, own, plan):
    """Norm of what these records add to a step's sum."""
    optimizer = ours([p for _, p in model.trained()], plan)
    optimizer.zero_grad()
    examples = Examples(model, model.contract, own)
    for batch in examples.batches(np.arange(len(own))):
        fill_grad_samples(model, batch, partial(losses, model.contract))
        optimizer.accumulate()
    total = torch.cat([p.summed_grad.flatten() for _, p in model.trained()]).norm().item()
    optimizer.zero_grad()
    return total


def check_a_user_counts_once(read, model, plan, path):
    bound = 0.05  # below the gradient of any record
    tight = dataclasses.replace(plan, clip_norm=bound)
    for rows in (1, 2, 5):
        several = [{"age": str(30 + i), "at": f"2024-01-{10 + i}"} for i in range(rows)]
        own = read(write(path, several), model.contract)
        added = contribution(model, own, tight)
        assert added > 0.99 * bound
        assert added <= bound, "a user counts more than once"


def check_users_are_apart(read, model, path):
    both = read(write(path, [{"user": "a"}, {"user": "b"}, {"user": "c"}]), model.contract)
    fewer = read(write(path, [{"user": "b"}, {"user": "c"}]), model.contract)
    assert (len(both), len(fewer)) == (3, 2), "users are merged"


def test_row_04_a_user_is_one_example_and_two_users_are_two(shop, tmp_path):
    model, plan, _ = shop(1, model=WIDE)
    check_a_user_counts_once(read, model, plan, tmp_path / "shard.csv")
    check_users_are_apart(read, model, tmp_path / "shard.csv")


def test_row_04_catches_rows_that_are_taken_for_users(shop, tmp_path, rows_as_users):
    model, plan, _ = shop(1, model=WIDE)
    with pytest.raises(AssertionError, match="more than once"):
        check_a_user_counts_once(rows_as_users, model, plan, tmp_path / "shard.csv")


def test_row_04_catches_duplicates_removed_across_users(shop, tmp_path, merged_users):
    model, *_ = shop(1, model=WIDE)
    with pytest.raises(AssertionError, match="merged"):
        check_users_are_apart(merged_users, model, tmp_path / "shard.csv")


# Row 5: Poisson sampling

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

    def batches(self, rows):
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


# Row 6: rows that are not finite


def check_no_row_spoils_a_release(make, plan):
    for bad in (math.nan, math.inf, -math.inf, 1e38):
        parameters = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5))]
        optimizer = make(parameters, plan)
        optimizer.zero_grad()
        for p in parameters:
            p.grad_sample = torch.full((4, *p.shape), 0.01)
            p.grad_sample[2] = bad
        optimizer.accumulate()
        total = torch.cat([p.summed_grad.flatten() for p in parameters])
        assert total.norm() <= 3 * 0.01 * math.sqrt(17) + C, "the sum is not bounded"
        optimizer.step()
        assert all(torch.isfinite(p).all() for p in parameters)


def test_row_06_a_row_that_is_not_finite_counts_as_nothing_and_nobody_is_told(plan_of, caplog):
    with caplog.at_level(logging.DEBUG):
        check_no_row_spoils_a_release(ours, plan_of())
    assert not caplog.records


def test_row_06_catches_stock_clipping(stock, plan_of):
    with pytest.raises(AssertionError, match="not bounded"):
        check_no_row_spoils_a_release(stock, plan_of())


# Row 9: no layer mixes rows


def text_batch(model, seed=0, rows=PHYSICAL, length=16):
    draw = torch.Generator().manual_seed(seed)
    own = torch.randint(2, length + 1, (rows, 1), generator=draw)
    return Batch(
        rows=np.arange(rows),
        hidden=torch.randn((rows, length, model.hidden), generator=draw),
        mask=torch.arange(length)[None] < own,
        wide=torch.rand((rows, model.wide.in_features), generator=draw) / 8,
        labels=torch.randint(0, 2, (rows,), generator=draw).float(),
        weights=torch.ones(rows),
    )


PARTS = ("hidden", "mask", "wide", "labels", "weights")


def row_of(batch, row):
    cut = {name: getattr(batch, name)[row : row + 1] for name in PARTS}
    return Batch(rows=np.arange(1), **cut)


def beside(batch, others):
    """The first row of one batch with the other rows of another."""
    mixed = {n: torch.cat([getattr(batch, n)[:1], getattr(others, n)[1:]]) for n in PARTS}
    return Batch(rows=batch.rows, **mixed)


def filled(model, batch, fill=fill_grad_samples):
    """Name -> per-sample gradients, (rows, *shape)."""
    fill(model, batch, partial(losses, model.contract))
    out = {}
    for name, p in model.trained():
        out[name], p.grad_sample = p.grad_sample, None
    return out


def loss_of(model, batch, hidden):
    scores = model.score(model.text_features(hidden, batch.mask), batch.wide)
    return losses(model.contract, scores, batch.labels).sum()


def by_autograd(model, batch):
    """Gradients of a batch of one."""
    trained = dict(model.trained())
    grads = torch.autograd.grad(loss_of(model, batch, batch.hidden), list(trained.values()))
    return dict(zip(trained, grads, strict=True))


def check_rows_are_independent(model, gradients, alone):
    """Row 0 among any companions, and each row against a batch of one, for every tensor."""
    batch, strangers, huge = (text_batch(model, seed) for seed in (0, 1, 2))
    huge.hidden.mul_(100)
    mine = gradients(model, batch)
    assert set(mine) == set(model.schema())
    for others in (strangers, huge):
        mixed = gradients(model, beside(batch, others))
        for name, grad in mine.items():
            gap = (mixed[name][0] - grad[0]).norm() / grad[0].norm()
            assert gap < 1e-5, f"{name} knows its companions"
    for row in (0, 1, PHYSICAL - 1):
        for name, exact in alone(model, row_of(batch, row)).items():
            assert exact.norm() > 0
            assert (mine[name][row] - exact).norm() < 1e-5 * exact.norm(), name


@pytest.mark.parametrize("layers", [1, 3])
def test_row_09_a_rows_gradient_is_that_of_a_batch_of_one(shop, shaken, layers):
    model, *_ = shop(1, model={"layers": layers})
    model.load_adapter(shaken(model, scale=0.1))
    check_rows_are_independent(model, filled, by_autograd)


def test_row_09_catches_batch_norm_that_opacus_lets_pass(batch_norm_model, shaken):
    from opacus.validators import ModuleValidator

    model, norm = batch_norm_model
    assert not ModuleValidator.validate(norm, strict=False)
    model.load_adapter(shaken(model, scale=0.1))
    with pytest.raises(AssertionError, match="knows its companions"):
        check_rows_are_independent(model, filled, by_autograd)


# Row 10: adversarial training

RADIUS = 0.3


def adversarial_filled(model, batch):
    return filled(model, batch, partial(fill_adversarial, radius=RADIUS))


def adversarial_by_autograd(model, batch):
    """The mean of both gradients of a batch of one, written out."""
    hidden = batch.hidden.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(loss_of(model, batch, hidden), hidden)
    scale = batch.hidden[batch.mask].norm(dim=1).mean()
    moved = batch.hidden + RADIUS * scale * ascent / ascent.norm()
    trained = dict(model.trained())
    mean = (loss_of(model, batch, batch.hidden) + loss_of(model, batch, moved)) / 2
    return dict(zip(trained, torch.autograd.grad(mean, list(trained.values())), strict=True))


def check_a_perturbed_user_counts_once(add, model, plan):
    tight = dataclasses.replace(plan, clip_norm=0.01)
    optimizer = ours([p for _, p in model.trained()], tight)
    optimizer.zero_grad()
    add(optimizer, model, text_batch(model, rows=1), RADIUS)
    total = torch.cat([p.summed_grad.flatten() for _, p in model.trained()]).norm()
    optimizer.zero_grad()
    assert total > 0.0099
    assert total <= 0.01, "a user counts more than once"


def one_clip(optimizer, model, batch, radius):
    fill_adversarial(model, batch, partial(losses, model.contract), radius)
    optimizer.accumulate()


@pytest.mark.parametrize("layers", [1, 3])
def test_row_10_an_adversarial_step_is_each_rows_own_and_clipped_once(shop, shaken, layers):
    model, plan, _ = shop(1, model={"layers": layers})
    model.load_adapter(shaken(model, scale=0.1))
    check_rows_are_independent(model, adversarial_filled, adversarial_by_autograd)
    check_a_perturbed_user_counts_once(one_clip, model, plan)


@pytest.mark.usefixtures("coupled_moves")
def test_row_10_catches_a_step_normalised_over_the_batch(shop, shaken):
    model, *_ = shop(1)
    model.load_adapter(shaken(model, scale=0.1))
    with pytest.raises(AssertionError, match="knows its companions"):
        check_rows_are_independent(model, adversarial_filled, adversarial_by_autograd)


def test_row_10_catches_a_copy_clipped_on_its_own(shop, shaken, two_examples):
    model, plan, _ = shop(1)
    model.load_adapter(shaken(model, scale=0.1))
    with pytest.raises(AssertionError, match="more than once"):
        check_a_perturbed_user_counts_once(two_examples, model, plan)


# Row 11: the grid


def check_releases_lie_on_the_grid(make, plan):
    for scale in (1e-6, 1.0, 1e6):
        parameter = nn.Parameter(torch.zeros(5000))
        optimizer = make(torch.optim.SGD([parameter], lr=1.0), plan, SecureRandom())
        optimizer.zero_grad()
        parameter.grad_sample = torch.full((3, 5000), scale)
        optimizer.accumulate()
        optimizer.step()
        cell = plan.noise_multiplier * plan.clip_norm * GRID
        nearest = torch.round(parameter.detach().double() / cell) * cell
        assert torch.equal(nearest.float(), parameter.detach()), "off the grid"


def test_row_11_noised_sums_lie_on_a_public_grid(plan_of):
    check_releases_lie_on_the_grid(NoisySumOptimizer, plan_of(1.25, expected_batch_size=1.0))


def test_row_11_catches_noise_that_is_not_snapped(plan_of, unsnapped):
    with pytest.raises(AssertionError, match="off the grid"):
        check_releases_lie_on_the_grid(unsnapped, plan_of(1.25, expected_batch_size=1.0))


# Row 14: empty batches

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


# Row 15: what a broken-off step leaves


class BreaksOff:
    """Examples whose second physical batch never comes."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def batches(self, rows):
        yield next(self.examples.batches(rows))
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


# Row 16: half precision and shapes


def check_half_precision_is_bounded(make, plan):
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(11, 40)), nn.Parameter(torch.zeros(11))]
    for _ in range(200):
        optimizer = make(parameters, plan)
        optimizer.zero_grad()
        error, x = 10 * torch.randn((1, 11), generator=draw), torch.randn((1, 40), generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            parameters[0].grad_sample = error[:, :, None] @ x[:, None]
        assert parameters[0].grad_sample.dtype == torch.bfloat16
        parameters[1].grad_sample = error.bfloat16()
        optimizer.accumulate()
        total = torch.cat([p.summed_grad.double().flatten() for p in parameters])
        assert total.norm() > 0.98 * C
        assert total.norm() <= C, "a row passes the clip norm"


def check_shapes_know_nobody_else(make_examples, model, records, autocast):
    """A row's gradients, bit by bit, among users with short texts and with long ones."""
    own, *others = records(60)
    others.sort(key=lambda record: len(record.values["note"] or ""))
    seen = []
    for companions in ([], others[:20], others[-20:]):
        examples = make_examples(model, model.contract, [own, *companions])
        for batch in examples.batches(np.arange(len(examples))):
            if 0 in batch.rows:
                with autocast():
                    grads = filled(model, batch)
                row = int(np.flatnonzero(batch.rows == 0)[0])
                seen.append({name: grad[row].numpy().tobytes() for name, grad in grads.items()})
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2], "a row knows its companions"


def half():
    return torch.autocast("cpu", torch.bfloat16)


def test_row_16_norms_hold_and_shapes_are_fixed_in_every_precision(
    shop, shaken, records, plan_of, monkeypatch
):
    check_half_precision_is_bounded(ours, plan_of())
    model, *_ = shop(1, model={"layers": 3})
    model.load_adapter(shaken(model, scale=0.1))
    for autocast in (nullcontext, half):
        monkeypatch.setattr(gradients, "autocast", lambda _, chosen=autocast: chosen())
        check_shapes_know_nobody_else(Examples, model, records, nullcontext)


def test_row_16_catches_norms_in_half_precision(stock, plan_of):
    with pytest.raises(AssertionError, match="passes the clip"):
        check_half_precision_is_bounded(stock, plan_of())


@pytest.mark.parametrize("autocast", [nullcontext, half])
def test_row_16_catches_dynamic_padding(
    shop, shaken, records, dynamic_padding, monkeypatch, autocast
):
    model, *_ = shop(1, model={"layers": 3})
    model.load_adapter(shaken(model, scale=0.1))
    monkeypatch.setattr(gradients, "autocast", lambda _: autocast())
    with pytest.raises(AssertionError, match="knows its companions"):
        check_shapes_know_nobody_else(dynamic_padding, model, records, nullcontext)


# Row 20: clipping by groups of weights


def check_groups_stay_within_the_clip_norm(make):
    draw = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, 1e20):
        groups = [
            {"params": [nn.Parameter(torch.zeros(6))], "group": name}
            for name in ("lora", "head", "wide")
        ]
        optimizer = make(groups)
        optimizer.zero_grad()
        parameters = [group["params"][0] for group in groups]
        for p in parameters:
            p.grad_sample = scale * torch.randn((1, 6), generator=draw)
        optimizer.accumulate()
        total = torch.cat([p.summed_grad for p in parameters]).double().norm()
        assert total <= C, "a row passes the clip norm"


def test_row_20_the_bounds_of_groups_stay_within_the_clip_norm(plan_of, federation_file):
    equal = C / math.sqrt(3)
    plan = plan_of(group_clip=(("lora", equal), ("head", equal), ("wide", equal)))
    check_groups_stay_within_the_clip_norm(lambda groups: ours(groups, plan))
    more = (("lora", equal), ("head", equal), ("wide", 1.001 * equal))
    with pytest.raises(PrivacyError, match=r"privacy\.group_clip .*privacy\.clip_norm squared"):
        plan_of(group_clip=more)
    given = parse_contract(
        federation_file(privacy={"group_clip": {"lora": 0.8, "head": 0.8, "wide": 0.8}})
    )
    with pytest.raises(PrivacyError, match=r"1\.92, must be at most .* = 1$"):
        mechanism_plan(given, "small")


def test_row_20_catches_groups_that_pass_it_together(wide_groups):
    with pytest.raises(AssertionError, match="passes the clip"):
        check_groups_stay_within_the_clip_norm(wide_groups)


# Row 22: a proximal term


def check_a_proximal_term_acts_or_is_refused(step):
    try:
        plain, pulled = step(0.0), step(10.0)
    except ContractError:
        return
    assert np.abs(plain - pulled).max() > 1e-3, "no effect"


def test_row_22_no_proximal_term_is_offered(federation_file):
    def step(mu):
        return parse_contract(federation_file(training={"proximal": mu}))

    check_a_proximal_term_acts_or_is_refused(step)
    with pytest.raises(ContractError, match="unknown key 'proximal'"):
        step(0.1)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_row_22_catches_a_proximal_term_in_the_loss(stock_proximal):
    with pytest.raises(AssertionError, match="no effect"):
        check_a_proximal_term_acts_or_is_refused(stock_proximal)


# Row 23: what never moves


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
