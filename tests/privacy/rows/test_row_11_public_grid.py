"""Row 11: noised sums lie on a grid that does not depend on the data.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import pytest
import torch
from torch import nn

from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import GRID, SecureRandom


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
