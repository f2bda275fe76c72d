import itertools
import json

import pytest

from credit_simulations.results.trials import read_trials

COUNT = itertools.count(1)


def plain_line(**changes):
    """One line of a results file as a plain object; each call has a digest of its own."""
    return {
        "digest": f"{next(COUNT):064x}",
        "data": "pakdd2009",
        "partition": "natural",
        "holders": 3,
        "arm": "federated",
        "epsilon": 8.0,
        "seed": 0,
        "delta": 1e-5,
        "epsilon_spent": 7.93,
        "auc": 0.66,
        "ks": 0.24,
        "brier": 0.15,
        "in_holder_auc": 0.65,
        "in_holder": {},
        "bytes_up": 14512,
        "rounds": [],
        "calibration": [],
        "best_auc": None,
        "seconds": 41.2,
        **changes,
    }


@pytest.fixture
def line():
    return plain_line


@pytest.fixture
def written(tmp_path):
    """Plain objects, and raw text after them, as a results file."""

    def write(lines, tail=""):
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in lines) + tail, "utf-8")
        return path

    return write


@pytest.fixture
def read(written):
    def make(*lines):
        return read_trials(written(lines))

    return make


GAINS = {
    "north": (0.04, 0.041, 0.039),
    "south": (-0.03, -0.031, -0.029),
    "east": (0.1, -0.06, -0.01),
}
PRICE = {1.0: 0.03, 8.0: 0.01, None: 0.0}


def plain_sweep(data="pakdd2009"):
    """Lines of a whole sweep: three merchants, three seeds, all kinds of arms.

    North gains about .04 at ε = 8, south loses about .03, east gains .01 in the mean but not in
    every seed. All AUCs over all users move by .001 a seed.
    """
    lines = []
    for seed in range(3):
        alone = dict.fromkeys(GAINS, 0.6)
        lines.append(_trial(data, "local_only", None, seed, 0.6, alone, bytes_up=0))
        for arm in ("central", "gbm", "an arm of tomorrow"):
            lines.append(_trial(data, arm, None, seed, 0.68, alone, bytes_up=0))
        for epsilon, cost in PRICE.items():
            ours = {name: 0.61 + each[seed] - cost for name, each in GAINS.items()}
            curves = {
                "rounds": [{"round": r, "auc": 0.6 + r / 1000} for r in (5, 10, 15)],
                "calibration": [
                    {"predicted": p, "observed": p + cost, "users": 50} for p in (0.1, 0.2, 0.4)
                ],
            }
            for arm, auc in (("federated", 0.67), ("wide_only", 0.65)):
                lines.append(_trial(data, arm, epsilon, seed, auc - cost, ours, **curves))
    return lines


def _trial(data, arm, epsilon, seed, auc, holders, **more):
    return plain_line(
        data=data,
        arm=arm,
        epsilon=epsilon,
        seed=seed,
        delta=None if epsilon is None else 1e-5,
        epsilon_spent=None if epsilon is None else epsilon * 0.99,
        auc=auc + seed / 1000,
        ks=auc - 0.4,
        in_holder_auc=sum(holders.values()) / len(holders),
        in_holder={name: {"auc": value, "users": 100 + seed} for name, value in holders.items()},
        **more,
    )


@pytest.fixture
def sweep():
    return plain_sweep


@pytest.fixture(scope="module")
def module_sweep(tmp_path_factory):
    """The same, read."""
    path = tmp_path_factory.mktemp("sweep") / "results.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in plain_sweep()), "utf-8")
    return read_trials(path)
