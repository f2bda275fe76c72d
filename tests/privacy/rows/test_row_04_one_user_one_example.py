"""Row 4: the unit is a user, who is one example.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import csv
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from credit_client.shard import read_shard
from credit_client.training.examples import Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom

WIDE = {"train": ["wide"]}


def ours(parameters, plan, noise=None):
    return NoisySumOptimizer(torch.optim.SGD(parameters, lr=1.0), plan, noise or SecureRandom())


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
