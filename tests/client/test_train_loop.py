import dataclasses

import numpy as np
import pytest
import torch

from credit_client.training import loop
from credit_client.training.examples import Examples
from credit_client.training.gradients import fill_grad_samples, summed_gradients
from credit_client.training.loop import losses, score, train
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom, SeededRandom
from credit_common.errors import PrivacyError, WireError
from credit_common.privacy import mechanism_plan

KINDS = ("binary", "multiclass", "regression")


class Everybody(SeededRandom):
    """Samples every user; no noise is asked of it."""

    def uniform(self, n):
        return np.zeros(n)


@pytest.fixture(scope="module")
def shop(variant, model_for, records, task):
    """Model, plan and examples of a kind of task without privacy."""

    def make(kind="binary", n=60, **changes):
        changes = {"task": task[kind], **changes}
        contract = variant(private=False, **changes)
        model = model_for(contract)
        examples = Examples(model, contract, records(n, kind))
        return model, mechanism_plan(contract, "small"), examples

    return make


@pytest.fixture(scope="module")
def private_shop(variant, model_for, records):
    contract = variant()
    model = model_for(contract)
    plan = mechanism_plan(contract, "small")
    return model, plan, Examples(model, contract, records(60))


def run(model, plan, examples, adapter=None, seed=0, source=None, fill=None):
    source = source or SeededRandom(seed, plan)
    start = adapter or model.initial_adapter()
    return train(model, examples, plan, start, sampling=source, noise=source, fill=fill)


def private_run(model, plan, examples):
    return train(
        model,
        examples,
        plan,
        model.initial_adapter(),
        sampling=SecureRandom(),
        noise=SecureRandom(),
    )


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_without_privacy_a_seed_repeats_an_adapter_bit_for_bit(shop):
    model, plan, examples = shop()
    first, second, other = (run(model, plan, examples, seed=seed) for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)


def test_a_private_release_differs_though_every_seed_is_set(private_shop):
    releases = []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002  # the old global state is one of the seeds
        torch.manual_seed(1)
        releases.append(private_run(*private_shop))
    for name in releases[0]:
        assert (releases[0][name] != releases[1][name]).mean() > 0.9, name  # on a grid


def test_a_private_plan_takes_secure_randomness_alone(private_shop, variant):
    model, plan, examples = private_shop
    seeded = SeededRandom(1, mechanism_plan(variant(private=False), "small"))
    secure, start = SecureRandom(), model.initial_adapter()
    for sampling, noise in ((seeded, seeded), (secure, seeded), (seeded, secure)):
        with pytest.raises(PrivacyError, match="SecureRandom alone"):
            train(model, examples, plan, start, sampling=sampling, noise=noise)


def test_one_noised_step_moves_every_number_of_every_tensor(private_shop):
    model, plan, examples = private_shop
    start, end = model.initial_adapter(), private_run(model, plan, examples)
    for name in start:
        assert (start[name] != end[name]).mean() > 0.9, name  # on a grid


def test_weights_too_large_for_noise_to_move_are_refused_before_a_user_is_drawn(private_shop):
    model, plan, examples = private_shop

    class Untouched(SecureRandom):
        def uniform(self, n):
            raise AssertionError("drawn")

    for name in model.schema():
        start = model.initial_adapter()
        start[name] = np.full_like(start[name], 1e30)
        with pytest.raises(PrivacyError, match=f"do not move {name}"):
            train(model, examples, plan, start, sampling=Untouched(), noise=SecureRandom())


def test_trying_the_noise_leaves_nothing_in_the_round(private_shop, shaken):
    model, plan, examples = private_shop
    seen = []

    class Looking(SecureRandom):
        def uniform(self, n):
            seen.append(model.adapter())
            return super().uniform(n)

    start = shaken(model)
    train(model, examples, plan, start, sampling=Looking(), noise=SecureRandom())
    assert len(seen) == plan.steps
    assert same(seen[0], start)
    assert not same(seen[1], start)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("factors", ["fedavg", "ffa"])
def test_two_steps_without_noise_move_every_tensor(shop, layers, factors):
    # Two: while B is zero, A has no gradient.
    model, plan, examples = shop(model={"layers": layers, "factors": factors})
    plan = dataclasses.replace(plan, steps=2)
    start = model.initial_adapter()
    end = run(model, plan, examples, source=Everybody(0, plan))
    for name in start:
        assert not np.array_equal(start[name], end[name]), name
    one = run(model, dataclasses.replace(plan, steps=1), examples, source=Everybody(0, plan))
    still = [name for name in start if np.array_equal(start[name], one[name])]
    assert all(name.endswith(".A") for name in still)


def mean_loss(model, examples, adapter):
    scores = torch.from_numpy(score(model, examples, adapter))
    return losses(model.contract, scores, torch.from_numpy(examples.labels)).mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [("lora", "head"), ("wide",)])
def test_every_kind_of_task_learns_a_separable_toy(contract, shop, kind, groups):
    known = contract.training.learning_rate
    rates = dataclasses.replace(known, lora=0.02, head=0.02, wide=0.1)
    model, plan, examples = shop(
        kind,
        n=64,
        model={"train": groups, "text_scale": 4.0},
        training={"learning_rate": rates, "optimizer": "adam"},
    )
    plan = dataclasses.replace(plan, steps=30, expected_batch_size=64.0)
    start = model.initial_adapter()
    end = run(model, plan, examples, source=Everybody(0, plan))
    before, after = mean_loss(model, examples, start), mean_loss(model, examples, end)
    assert after < 0.7 * before, (before, after)


def test_one_example_is_enough_to_train_on(shop):
    model, plan, examples = shop("regression", n=1)
    plan = dataclasses.replace(plan, steps=20, expected_batch_size=1.0)
    end = run(model, plan, examples, source=Everybody(0, plan))
    start = model.initial_adapter()
    assert mean_loss(model, examples, end) < 0.5 * mean_loss(model, examples, start)


def denominators(monkeypatch):
    seen = []
    original = NoisySumOptimizer.scale_grad

    def scale(self):
        before = [p.grad.clone() for p in self.params]
        original(self)
        seen.extend(
            round((b.abs().max() / p.grad.abs().max()).item(), 3)
            for b, p in zip(before, self.params, strict=True)
            if p.grad.abs().max() > 0
        )

    monkeypatch.setattr(NoisySumOptimizer, "scale_grad", scale)
    return seen


@pytest.mark.parametrize("n", [63, 64, 65, 128, 129, 200])
def test_the_denominator_does_not_know_the_number_of_users(shop, monkeypatch, n):
    model, plan, examples = shop(n=n, model={"train": ("wide",)})
    seen = denominators(monkeypatch)
    run(model, plan, examples, source=Everybody(0, plan))
    assert set(seen) == {30.0}  # sampling_rate 0.1 of the size class's 300 users
    assert len(seen) == plan.steps


def test_a_users_effect_on_a_step_is_at_most_the_clip_norm(shop, records):
    # Without sampling and noise but with the clip: N and N + 1 users, one step of SGD at rate 1.
    model, plan, _ = shop(model={"train": ("wide",)})
    private = dataclasses.replace(plan, epsilon=4.0, clip_norm=0.05, steps=1)
    own = records(70)
    sums = []
    for users in (own, own[:-1]):
        examples = Examples(model, model.contract, users)
        model.load_adapter(model.initial_adapter())
        parameters = [p for _, p in model.trained()]
        optimizer = NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), private, SecureRandom())
        for batch in examples.batches(np.arange(len(users))):
            fill_grad_samples(model, batch, lambda s, y: losses(model.contract, s, y))
            optimizer.accumulate()
        sums.append(parameters[0].summed_grad.clone())
        optimizer.zero_grad()
    assert 0.04 < (sums[0] - sums[1]).norm().item() <= 0.05


@pytest.mark.parametrize("layers", [1, 3])
def test_a_round_clips_each_group_of_the_contract(variant, model_for, records, monkeypatch, layers):
    bounds = {"lora": 0.001, "head": 0.002, "wide": 0.003}
    contract = variant(model={"layers": layers}, privacy={"group_clip": tuple(bounds.items())})
    model, plan = model_for(contract), mechanism_plan(contract, "small")
    names, norms = [name.split(".")[0] for name, _ in model.trained()], []
    original = NoisySumOptimizer.accumulate

    def accumulate(self):
        original(self)
        for group in bounds:
            own = [p for p, name in zip(self.params, names, strict=True) if name == group]
            norms.append((group, torch.cat([p.summed_grad.flatten() for p in own]).norm().item()))

    monkeypatch.setattr(NoisySumOptimizer, "accumulate", accumulate)
    plan = dataclasses.replace(plan, sampling_rate=1.0)  # each batch is the one user
    private_run(model, plan, Examples(model, contract, records(1)))
    assert len(norms) == plan.steps * len(bounds)
    for group, norm in norms:
        assert 0.99 * bounds[group] < norm <= bounds[group], group


def test_a_round_starts_from_the_adapter_that_it_is_given(shop, shaken):
    model, plan, examples = shop()
    given = shaken(model)
    expected = run(model, plan, examples, adapter=given, seed=3)
    run(model, plan, examples, seed=4)  # another holder's round on the resident model
    assert same(run(model, plan, examples, adapter=given, seed=3), expected)


def test_a_broken_off_round_leaves_nothing_to_the_next(shop, monkeypatch):
    model, plan, examples = shop()
    clean = run(model, plan, examples, seed=5)
    calls = []

    def breaks(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return summed_gradients(*arguments)

    monkeypatch.setattr(loop, "summed_gradients", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        run(model, plan, examples, seed=6)
    monkeypatch.undo()
    assert same(run(model, plan, examples, seed=5), clean)


def test_without_privacy_ordinary_gradients_make_the_same_step(shop):
    model, plan, examples = shop()
    told_apart = run(model, plan, examples, seed=7, fill=fill_grad_samples)
    summed = run(model, plan, examples, seed=7)
    assert not same(summed, model.initial_adapter())
    for name, array in summed.items():
        assert np.allclose(array, told_apart[name], rtol=1e-4, atol=1e-6), name


def test_without_privacy_a_row_that_is_not_finite_is_left_out_all_the_same(shop):
    model, plan, examples = shop()
    plan = dataclasses.replace(plan, sampling_rate=1.0)
    clean = run(model, plan, examples, seed=8, fill=fill_grad_samples)
    examples.wide[3] = np.inf
    spoilt = run(model, plan, examples, seed=8)
    assert all(np.isfinite(array).all() for array in spoilt.values())
    assert not same(spoilt, clean)


def test_a_private_step_takes_no_sums(private_shop):
    model, plan, _ = private_shop
    optimizer = NoisySumOptimizer(loop._optimizer(model), plan, SecureRandom())
    with pytest.raises(PrivacyError, match="per-sample"):
        optimizer.accumulate_sums(tuple(p.detach() for _, p in model.trained()))


def test_a_round_leaves_no_gradients_in_the_model(shop):
    model, plan, examples = shop()
    run(model, plan, examples)
    for _, p in model.trained():
        assert p.grad is None
        assert p.grad_sample is None
        assert p.summed_grad is None


def test_an_adapter_outside_the_schema_is_refused_before_anything_is_drawn(shop):
    model, plan, examples = shop()

    class Untouched(SeededRandom):
        def uniform(self, n):
            raise AssertionError("drawn")

    with pytest.raises(WireError):
        run(
            model, plan, examples, adapter={"x": np.zeros(1, np.float32)}, source=Untouched(0, plan)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_loss_is_its_own(shop, kind):
    contract = shop(kind)[0].contract
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn((8, contract.task.outputs), generator=draw)
    labels = torch.tensor([0.0, 1.0] * 4)
    whole = losses(contract, scores, labels)
    assert whole.shape == (8,)
    for i in range(8):
        assert torch.allclose(losses(contract, scores[i : i + 1], labels[i : i + 1]), whole[i])


@pytest.mark.parametrize(
    ("optimizer", "kind"), [("adam", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_groups_have_their_own_rates_and_lora_no_decay(shop, optimizer, kind):
    model, *_ = shop(training={"optimizer": optimizer, "weight_decay": 0.25})
    made = loop._optimizer(model)
    assert isinstance(made, kind)
    names = [name for name, _ in model.trained()]
    expected = {"lora": (0.1, 0.0), "head": (0.2, 0.25), "wide": (0.5, 0.25)}
    for name, group in zip(names, made.param_groups, strict=True):
        assert (group["lr"], group["weight_decay"]) == expected[name.split(".")[0]]
