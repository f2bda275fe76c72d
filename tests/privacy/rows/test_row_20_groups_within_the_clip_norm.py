"""Row 20: bounds of groups of weights stay within the clip norm together.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import math

import pytest
import torch
from torch import nn

from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom
from credit_common.contract import parse_contract
from credit_common.errors import PrivacyError
from credit_common.privacy import mechanism_plan

C = 0.7  # of the plans of `plan_of`


def ours(parameters, plan, noise=None):
    return NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), plan, noise or SecureRandom())


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
