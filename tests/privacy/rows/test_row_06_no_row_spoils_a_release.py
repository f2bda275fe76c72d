"""Row 6: a row that is not finite counts as nothing, and nobody learns of it.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import logging
import math

import pytest
import torch
from torch import nn

from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom

C = 0.7  # of the plans of `plan_of`


def ours(parameters, plan, noise=None):
    return NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), plan, noise or SecureRandom())


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
