"""Row 2: no seed and no fork repeats noise.

The check passes on the real thing, and is shown to fail on broken variants (conftest.py).
"""

import os
import random

import numpy as np
import pytest
import torch

from credit_client.training.loop import train
from credit_client.training.randomness import SecureRandom
from credit_common import wire

WIDE = {"train": ["wide"]}


def private_round(run, model, plan, examples, source=SecureRandom):
    start = model.initial_adapter()
    return start, run(model, examples, plan, start, sampling=source(), noise=source())


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
