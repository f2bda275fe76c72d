import dataclasses
import math

import numpy as np
import pytest
import torch

from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import GRID, SecureRandom
from credit_common.errors import PrivacyError
from credit_common.privacy import MechanismPlan

C = 0.7
Z = 6.0  # false alarm 2e-9


def plan_of(sigma=1.0, clip=C, batch=25.0):
    return MechanismPlan(
        sampling_rate=0.1,
        noise_multiplier=sigma,
        clip_norm=clip,
        steps=1,
        rounds=1,
        expected_batch_size=batch,
        evaluation_noise_multiplier=sigma,
        evaluations=1,
        epsilon=4.0 if sigma else None,
        delta=1e-5,
    )


class Silent:
    """Noise that is zero, to see the sum beneath."""

    def uniform(self, n):
        return np.full(n, 0.5)

    def normal(self, n):
        return np.zeros(n)


def made(plan=None, noise=None, sizes=((3, 4), (5,)), rate=1.0):
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    sgd = torch.optim.SGD(parameters, lr=rate)
    return NoisySumOptimizer(sgd, plan or plan_of(), noise or SecureRandom()), parameters


def give(parameters, rows, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad_sample = scale * torch.randn((rows, *p.shape), generator=draw)


def summed(parameters):
    return torch.cat([p.summed_grad.flatten() for p in parameters])


def norm(parameters):
    return summed(parameters).norm().item()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e20, 1e30, 1e37])
def test_one_users_contribution_is_bounded(scale):
    optimizer, parameters = made()
    give(parameters, 1, scale=scale)
    raw = math.sqrt(sum(p.grad_sample.double().square().sum().item() for p in parameters))
    optimizer.accumulate()
    assert norm(parameters) <= C
    assert norm(parameters) == pytest.approx(min(C, raw), rel=2e-6)


def test_one_user_in_many_rows_would_be_seen_to_pass_the_bound():
    optimizer, parameters = made()
    for p in parameters:
        p.grad_sample = torch.ones((5, *p.shape))
    optimizer.accumulate()
    assert norm(parameters) == pytest.approx(5 * C, rel=2e-6)


GROUPS = {"lora": 0.3, "head": 0.4, "wide": 0.2}


def grouped(sigma=1.0, noise=None):
    """An optimizer with a bound for each group; lora has two tensors, in two places."""
    plan = dataclasses.replace(plan_of(sigma), group_clip=tuple(GROUPS.items()))
    names, sizes = ("lora", "head", "lora", "wide"), ((3, 4), (5,), (2, 2), (6,))
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    groups = [{"params": [p], "group": n} for p, n in zip(parameters, names, strict=True)]
    sgd = torch.optim.SGD(groups, lr=1.0)
    parts = {n: [p for p, own in zip(parameters, names, strict=True) if own == n] for n in GROUPS}
    return NoisySumOptimizer(sgd, plan, noise or SecureRandom()), parts


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e30])
def test_each_group_of_an_example_is_clipped_to_its_own_bound(scale):
    optimizer, parts = grouped()
    for seed, part in enumerate(parts.values()):
        give(part, 1, seed=seed, scale=scale)
    raw = {n: torch.cat([p.grad_sample.double().flatten() for p in parts[n]]) for n in parts}
    optimizer.accumulate()
    for name, bound in GROUPS.items():
        assert norm(parts[name]) <= bound
        size = raw[name].norm().item()
        expected = raw[name] * min(1.0, bound / size)
        assert torch.allclose(summed(parts[name]), expected, rtol=3e-6, atol=0)
    assert norm([p for part in parts.values() for p in part]) <= C


def test_a_group_that_is_not_finite_spoils_its_example_in_every_group():
    optimizer, parts = grouped()
    for seed, part in enumerate(parts.values()):
        give(part, 2, seed=seed)
        for p in part:
            p.grad_sample[0] = 0.0
    parts["head"][0].grad_sample[1, 0] = math.nan
    optimizer.accumulate()
    assert all(not summed(part).any() for part in parts.values())


def test_the_noise_of_clipped_groups_is_that_of_the_whole_clip_norm():
    class One:
        def normal(self, n):
            return np.ones(n)

    optimizer, parts = grouped(1.5, One())
    optimizer.zero_grad()
    optimizer.step()
    for part in parts.values():
        for p in part:
            assert torch.allclose(-p.detach() * 25.0, torch.full(p.shape, 1.5 * C), rtol=1e-5)


def test_a_group_without_a_bound_is_refused():
    plan = dataclasses.replace(plan_of(), group_clip=(("lora", 0.3),))
    for group in ({}, {"group": "head"}):
        sgd = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(2))], **group}], lr=1.0)
        with pytest.raises(PrivacyError, match=r"weights of '(None|head)'"):
            NoisySumOptimizer(sgd, plan, SecureRandom())


def test_direction_is_kept():
    optimizer, parameters = made()
    give(parameters, 1, scale=50.0)
    raw = torch.cat([p.grad_sample.flatten().double() for p in parameters])
    optimizer.accumulate()
    assert torch.allclose(summed(parameters) / norm(parameters), raw / raw.norm(), atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sigma", [1.0, 0.0])
def test_an_example_that_is_not_finite_counts_as_zero(bad, sigma):
    optimizer, parameters = made(plan_of(sigma))
    give(parameters, 6)
    for p in parameters:
        p.grad_sample[2] = 0.0
    optimizer.accumulate()
    without = summed(parameters).clone()
    optimizer.zero_grad()
    give(parameters, 6)
    parameters[1].grad_sample[2, 0] = bad  # one number of one tensor spoils the whole example
    optimizer.accumulate()
    assert torch.equal(summed(parameters), without)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38, -3.4e38])
def test_a_step_with_extreme_examples_is_finite(bad):
    optimizer, parameters = made()
    for p in parameters:
        p.grad_sample = torch.full((4, *p.shape), bad)
    optimizer.accumulate()
    assert norm(parameters) <= 4 * C
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in parameters)


def test_sums_are_made_in_float64():
    # 2^24 small numbers after a large one: float32 would lose each of them.
    optimizer, parameters = made(plan_of(clip=1e9), Silent(), sizes=((2,),))
    (p,) = parameters
    p.grad_sample = torch.tensor([[2.0**25, 0.0]])
    optimizer.accumulate()
    p.grad_sample = torch.ones(64, 2)
    optimizer.accumulate()
    assert p.summed_grad.dtype == torch.float64
    assert p.summed_grad.tolist() == [2.0**25 + 64, 64.0]


@pytest.mark.parametrize("seed", range(5))
def test_random_rows_in_half_precision_stay_below_the_bound(seed):
    optimizer, parameters = made(sizes=((37, 11), (1001,)))
    for p in parameters:
        draw = torch.Generator().manual_seed(seed)
        p.grad_sample = (10 * torch.randn((1, *p.shape), generator=draw)).bfloat16()
    optimizer.accumulate()
    assert norm(parameters) <= C


N = 400_000


def excess(noise, sigma):
    """Standard deviations by which the sum of squares is away from its expectation."""
    return (noise.double().square().sum().item() / sigma**2 - len(noise)) / math.sqrt(2 * N)


@pytest.mark.parametrize("rows", [0, 3])
def test_noise_has_the_plans_deviation(rows):
    batch = 25.0
    optimizer, (p,) = made(plan_of(1.5, batch=batch), sizes=((N,),))
    kept = 0.0
    if rows:
        p.grad_sample = torch.zeros(rows, N)
        p.grad_sample[:, 0] = 5.0
        optimizer.accumulate()
        kept = p.summed_grad[0].item()
        assert kept == pytest.approx(rows * C, rel=2e-6)
    optimizer.step()
    noise = -p.detach() * batch
    noise[0] -= kept
    assert abs(excess(noise, 1.5 * C)) < Z
    assert excess(0.98 * noise, 1.5 * C) < -Z  # 2% of missing noise is seen
    assert excess(1.02 * noise, 1.5 * C) > Z


def test_noise_is_added_once_a_step_however_many_physical_batches_there_are():
    optimizer, (p,) = made(sizes=((N,),))
    for _ in range(3):
        p.grad_sample = torch.zeros(2, N)
        optimizer.accumulate()
    optimizer.step()
    assert abs(excess(p.detach() * 25.0, C)) < Z


def test_two_steps_have_different_noise_whatever_the_seeds():
    releases = []
    for _ in range(2):
        torch.manual_seed(1)
        optimizer, parameters = made()
        for _ in range(2):
            optimizer.zero_grad()
            optimizer.step()
            releases.append(torch.cat([p.grad.flatten() for p in parameters]))
    assert len({release.numpy().tobytes() for release in releases}) == 4


def off_grid(values, cell):
    """Values that are not the float32 neighbour of a multiple of `cell`."""
    exact = torch.round(values.double() / cell) * cell
    return int((exact.float() != values).sum())


def test_each_noised_sum_lies_on_a_grid_that_does_not_know_the_data():
    sigma = 1.25
    cell = sigma * C * GRID
    for scale in (1e-6, 1.0, 1e6):
        optimizer, parameters = made(plan_of(sigma), sizes=((5000,),))
        give(parameters, 4, scale=scale)
        optimizer.accumulate()
        optimizer.pre_step()
        optimizer.add_noise()
        released = parameters[0].grad
        assert off_grid(released, cell) == 0
        assert off_grid(released + 0.4 * cell, cell) > 1000  # what is not snapped is seen


def test_an_empty_batch_is_noised_and_stepped():
    optimizer, parameters = made()
    optimizer.zero_grad()
    optimizer.step()
    moved = torch.cat([p.detach().flatten() != 0 for p in parameters])
    assert int(moved.sum()) >= len(moved) - 2  # the noise lies on a grid, where zero is too


def test_a_broken_off_step_leaves_nothing_behind():
    optimizer, parameters = made(noise=Silent())
    give(parameters, 4, seed=1)
    optimizer.accumulate()
    give(parameters, 4, seed=2)  # broken off before it is accumulated
    optimizer.zero_grad()
    assert all(p.summed_grad is None and p.grad_sample is None for p in parameters)
    give(parameters, 3, seed=3)
    optimizer.accumulate()
    after = summed(parameters).clone()
    fresh, others = made(noise=Silent())
    give(others, 3, seed=3)
    fresh.accumulate()
    assert torch.equal(after, summed(others))


def test_accumulating_forgets_the_examples():
    optimizer, parameters = made()
    give(parameters, 4)
    optimizer.accumulate()
    assert all(p.grad_sample is None for p in parameters)


@pytest.mark.parametrize("rows", [0, 1, 24, 25, 26, 64])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_the_denominator_is_the_plans_whatever_the_number_of_examples(rows, sigma):
    optimizer, (p,) = made(plan_of(sigma, batch=25.0), Silent(), sizes=((4,),))
    if rows:
        p.grad_sample = torch.full((rows, 4), 0.01)
        optimizer.accumulate()
    optimizer.step()
    assert torch.allclose(-p.detach() * 25.0, torch.full((4,), 0.01 * rows), atol=1e-5)


def test_without_privacy_nothing_is_clipped():
    optimizer, parameters = made(plan_of(0.0))
    give(parameters, 3, scale=1e4)
    raw = torch.cat([p.grad_sample.double().sum(0).flatten() for p in parameters])
    optimizer.accumulate()
    assert torch.allclose(summed(parameters), raw)


def test_physical_batches_add_up_to_the_whole():
    optimizer, parameters = made()
    give(parameters, 10, seed=4)
    whole = [p.grad_sample.clone() for p in parameters]
    optimizer.accumulate()
    at_once = summed(parameters).clone()
    optimizer.zero_grad()
    for part in (slice(0, 3), slice(3, 10)):
        for p, rows in zip(parameters, whole, strict=True):
            p.grad_sample = rows[part]
        optimizer.accumulate()
    assert torch.allclose(summed(parameters), at_once, atol=1e-12)
