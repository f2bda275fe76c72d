import ast
import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import credit_client
from credit_client.training.randomness import SecureRandom, SeededRandom, poisson_sample
from credit_common.errors import PrivacyError
from credit_common.privacy import mechanism_plan

Z = 6.0  # false alarm 2e-9 of a Gaussian; the statistics below are close to one
P = 1e-7


@pytest.fixture(scope="module")
def plan(contract):
    return mechanism_plan(contract, "small")


def set_every_seed():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the old global state is one of the seeds
    torch.manual_seed(1)


def test_no_seed_reaches_the_secure_source():
    draws = []
    for _ in range(2):
        set_every_seed()
        source = SecureRandom()
        draws += [source.uniform(8), source.normal(8), source.uniform(8)]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_drawing_leaves_the_seeded_generators_alone():
    set_every_seed()
    first = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    set_every_seed()
    SecureRandom().normal(100)
    assert first == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_differ_from_each_other_and_from_their_parent(contract):
    source = SecureRandom()
    source.normal(3)
    draws = [in_a_child(source), in_a_child(source), source.normal(8).tobytes()]
    assert len(set(draws)) == 3
    seeded = SeededRandom(1, mechanism_plan(contract.without_privacy(), "small"))
    assert in_a_child(seeded) == in_a_child(seeded)  # what the check is for


def test_uniform_numbers_lie_inside_the_open_interval(monkeypatch):
    source = SecureRandom()
    drawn = source.uniform(1_000_000)
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, "uniform").pvalue > P
    extremes = np.array([0, 2**64 - 1], np.uint64)
    monkeypatch.setattr(source, "_words", lambda n: extremes)
    low, high = source.uniform(2)
    assert 0 < low < 1e-15
    assert 1 - 1e-15 < high < 1


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_as_many_numbers_come_as_are_asked_for(n):
    assert SecureRandom().uniform(n).shape == SecureRandom().normal(n).shape == (n,)


def test_normal_numbers_are_normal_and_independent():
    drawn = SecureRandom().normal(1_000_000)
    assert stats.kstest(drawn, "norm").pvalue > P
    assert stats.kstest(0.97 * drawn, "norm").pvalue < P  # 3% of missing noise is seen
    n = len(drawn)
    for lag in (1, n // 2):  # n / 2: the two halves of Box and Muller
        assert abs(drawn[:-lag] @ drawn[lag:]) < Z * np.sqrt(n - lag)
        squares = (drawn[:-lag] ** 2 - 1) @ (drawn[lag:] ** 2 - 1)
        assert abs(squares) < Z * 2 * np.sqrt(n - lag)


USERS, RATE, STEPS = 1000, 0.05, 2000


def deviations(took_part):
    """How many standard deviations a (steps, users) table is away from Poisson sampling."""
    steps, users = took_part.shape
    each = RATE * (1 - RATE)
    sizes, times = took_part.sum(1), took_part.sum(0)
    centred = took_part - RATE
    pairs = float((centred[1:] * centred[:-1]).sum())  # the same user in two steps that follow
    step_pairs = float(np.corrcoef(sizes[1:], sizes[:-1])[0, 1])
    return {
        "mean": (took_part.sum() - took_part.size * RATE) / np.sqrt(took_part.size * each),
        "sizes": (sizes.var(ddof=1) / (users * each) - 1) * np.sqrt(steps / 2),
        "inclusions": (times.var(ddof=1) / (steps * each) - 1) * np.sqrt(users / 2),
        "lag of a user": pairs / (each * np.sqrt((steps - 1) * users)),
        "lag of a size": step_pairs * np.sqrt(steps),
    }


def table(rows):
    took_part = np.zeros((STEPS, USERS))
    for step, chosen in enumerate(rows):
        took_part[step, chosen] = 1
    return took_part


def test_batches_are_poisson_samples():
    source = SecureRandom()
    seen = deviations(table(poisson_sample(source, USERS, RATE) for _ in range(STEPS)))
    assert max(map(abs, seen.values())) < Z, seen


def shuffled(draw):
    for _ in range(STEPS * 50 // USERS):
        yield from draw.permutation(USERS).reshape(-1, 50)


def sticky(draw):
    last = draw.random(USERS) < RATE
    for _ in range(STEPS):
        last = np.where(draw.random(USERS) < 0.05, last, draw.random(USERS) < RATE)
        yield np.flatnonzero(last)


def favoured(draw):
    rates = RATE * (1 + 0.3 * np.where(np.arange(USERS) % 2, 1, -1))
    for _ in range(STEPS):
        yield np.flatnonzero(draw.random(USERS) < rates)


def together(draw):
    for _ in range(STEPS):
        yield np.flatnonzero(draw.random(USERS) < RATE * (1 + 0.2 * draw.standard_normal()))


@pytest.mark.parametrize(
    ("broken", "seen_by"),
    [
        (shuffled, {"sizes", "inclusions", "lag of a user"}),
        (sticky, {"lag of a user"}),
        (favoured, {"inclusions"}),
        (together, {"sizes"}),
    ],
)
def test_other_samplers_are_told_from_poisson_sampling(broken, seen_by):
    with np.errstate(invalid="ignore"):  # sizes that never change have no correlation
        seen = deviations(table(broken(np.random.default_rng(0))))
    assert {name for name, value in seen.items() if abs(value) > Z} >= seen_by, seen


def test_a_rate_of_one_takes_everybody():
    assert len(poisson_sample(SecureRandom(), 50, 1.0)) == 50
    assert len(poisson_sample(SecureRandom(), 0, 0.5)) == 0


def test_a_seeded_source_is_refused_where_there_is_a_budget(contract, plan):
    with pytest.raises(PrivacyError, match="refused where epsilon is finite"):
        SeededRandom(0, plan)
    open_plan = mechanism_plan(contract.without_privacy(), "small")
    first, second = SeededRandom(3, open_plan), SeededRandom(3, open_plan)
    assert np.array_equal(first.uniform(5), second.uniform(5))
    assert np.array_equal(first.normal(5), second.normal(5))
    with pytest.raises(PrivacyError):
        SeededRandom(0, dataclasses.replace(plan, noise_multiplier=0.0))


@pytest.mark.slow
def test_no_environment_variable_makes_two_processes_draw_the_same():
    program = (
        "import random, numpy, torch; random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n"
        "from credit_client.training.randomness import SecureRandom\n"
        "print(SecureRandom().normal(4).tobytes().hex())"
    )
    names = ("PYTHONHASHSEED", "SEED", "CREDIT_SEED", "PL_GLOBAL_SEED", "NUMPY_SEED", "TORCH_SEED")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict.fromkeys(names, "1")}
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(printed) == 2


SEEDED = {"random", "default_rng", "RandomState", "seed", "manual_seed", "Generator", "randn"}
SEEDED |= {"randn_like", "rand", "normal_", "bernoulli", "environ", "getenv", "multinomial"}


def seeded_names(source):
    """Names in a module through which a seed or the environment could come in."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in SEEDED:
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            found |= {name for name in names if name.split(".")[0] in SEEDED}
    return found


def test_only_seeded_random_itself_can_be_seeded_in_the_holders_package():
    root = Path(credit_client.__file__).parent
    found = {
        str(path.relative_to(root)): names
        for path in root.rglob("*.py")
        if (names := seeded_names(path.read_text("utf-8")))
    }
    assert found == {
        # default_rng, and random() of the generator that it makes, behind the refusal above
        "training/randomness.py": {"random", "default_rng"},
        # --seed, which a private contract refuses, and which reaches SeededRandom alone
        "cli.py": {"seed"},
        "participate.py": {"seed"},
        "reach.py": {"environ"},  # proxies
        "service/figures.py": {"environ"},  # where Prometheus' library has workers' figures
        "service/supervisor.py": {"environ"},  # the same, for the workers that it starts
        "witness.py": {"environ"},  # the user's state folder
    }
    assert seeded_names("import random\nimport os\nos.environ['SEED']") == {"random", "environ"}
