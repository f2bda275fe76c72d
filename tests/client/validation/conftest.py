import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from credit_client.scoring.calibration import fit, write_calibration
from credit_client.scoring.reference import open_reference
from credit_client.shard import read_shard
from credit_client.validation.judge import Asked, judge
from credit_common.release import open_release

DECISION = {
    "approve_below": 0.15,
    "decline_from": 0.4,
    "bands": {"A": 0.05, "B": 0.2, "C": 0.5, "D": 1.0},
}


@dataclass(frozen=True)
class Trial:
    """A release and a merchant's file with outcomes that follow its scores."""

    release: Path
    shard: Path
    frame: pd.DataFrame


def make_rows(n, seed=0):
    draw = np.random.default_rng(seed)
    return [
        {
            "user": f"u{i:05}",
            "age": f"{draw.uniform(18, 100):.1f}",
            "income": f"{draw.uniform(0, 100):.2f}",
            "tenure": str(draw.integers(0, 12)),
            "home": str(draw.choice(["P", "R", "none", "elsewhere", ""])),
            "job": str(draw.choice(["clerk", "driver"])),
            "note": "",
            "at": f"2025-{draw.integers(1, 13):02}-{draw.integers(1, 29):02}",
            "orders": json.dumps([{"time": "2024-12-31", "value": float(draw.integers(1, 90))}]),
            "sex": str(draw.choice(["f", "m", "x"], p=[0.48, 0.48, 0.04])),
        }
        for i in range(n)
    ]


@pytest.fixture(scope="session")
def release_of(tmp_path_factory, federation_file, write_small):
    """Writes the release of the small federation file with changes, without privacy."""

    def make(seed=0, scale=2.5, **changes) -> Path:
        text = federation_file(private=False, **{"decision": DECISION, **changes})
        folder = tmp_path_factory.mktemp("validated") / "release"
        write_small(folder, text, seed, scale)
        return folder

    return make


@pytest.fixture(scope="session")
def outcomes_of(tmp_path_factory):
    """Writes rows with outcomes drawn by what a release says of them."""

    def make(release: Path, rows, seed=1) -> Path:
        path = tmp_path_factory.mktemp("shard") / "users.csv"
        pd.DataFrame([{**row, "defaulted": "0"} for row in rows]).to_csv(path, index=False)
        opened = open_release(release)
        read = read_shard(path, opened.contract)
        examples = sorted((*read.train, *read.holdout), key=lambda e: e.row)
        logits = open_reference(opened).score([e.record for e in examples])[:, 0]
        draw = np.random.default_rng(seed).random(len(rows))
        bads = draw < 1 / (1 + np.exp(-logits))
        frame = pd.DataFrame(rows)
        frame["defaulted"] = bads.astype(int).astype(str)
        frame.to_csv(path, index=False)
        return path

    return make


@pytest.fixture(scope="session")
def trial(release_of, outcomes_of) -> Trial:
    """A wide-only release on 1,000 users, a quarter of them held out."""
    release = release_of(model={"train": ["wide"]})
    shard = outcomes_of(release, make_rows(1000))
    return Trial(release, shard, pd.read_csv(shard, dtype=str, keep_default_na=False))


@pytest.fixture(scope="session")
def told(trial):
    """A study of the trial's hold-out users, made once."""
    return judge(trial.release, trial.shard, Asked(device="cpu"))


@pytest.fixture(scope="session")
def calibration_of(tmp_path_factory):
    """Writes a calibration for a release, fitted on outcomes that have nothing to do with it."""

    def make(release: Path, method: str) -> Path:
        draw = np.random.default_rng(0)
        logits = draw.normal(0, 2, 2000)
        labels = draw.random(2000) < 1 / (1 + np.exp(-logits))
        found = fit(method, logits, labels, open_release(release).digest)
        path = tmp_path_factory.mktemp("calibration") / "calibration.json"
        write_calibration(path, found)
        return path

    return make


@pytest.fixture(scope="session")
def drawn():
    """Logits, PDs and outcomes of users whose PDs are right."""

    def make(users, seed=0, ties=False):
        draw = np.random.default_rng(seed)
        logits = draw.normal(-1.2, 1.3, users)
        if ties:
            logits = logits.round()
        pds = 1 / (1 + np.exp(-logits))
        return logits, pds, (draw.random(users) < pds).astype(np.int64)

    return make
