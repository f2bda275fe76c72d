"""The whole way on real data and real weights: German credit, three holders, a few rounds."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import credit_simulations
from credit_client.ledger import Ledger
from credit_common.contract import Contract
from credit_common.errors import ContractError, CreditError, PrivacyError
from credit_simulations.arms import ARMS
from credit_simulations.data import prepare
from credit_simulations.federation import Progress
from credit_simulations.packaged import packaged_contract, packaged_shards
from credit_simulations.partition import biggest, write_shards
from credit_simulations.runs import RunResult, Watcher, run_arms

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def short() -> Contract:
    contract = packaged_contract("german")
    training = dataclasses.replace(contract.training, rounds=2, steps=2)
    evaluation = dataclasses.replace(contract.evaluation, every=1)
    return dataclasses.replace(contract, training=training, evaluation=evaluation)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    frame = pd.read_parquet(prepare("german"))
    parts = {name: part.head(90) for name, part in biggest(frame, "holder", 3).items()}
    return write_shards(parts, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledgers")


@pytest.fixture(scope="module")
def rounds() -> list[tuple[str, int, Progress]]:
    return []


@pytest.fixture(scope="module")
def result(
    short: Contract, shards: dict[str, Path], kept: Path, rounds: list[tuple[str, int, Progress]]
) -> RunResult:
    watcher = Watcher(round=lambda *line: rounds.append(line))
    return run_arms(short, shards, draws=2, state=kept, watcher=watcher)


def test_every_arm_has_its_rows(result: RunResult) -> None:
    draws = result.table.groupby("arm")["draw"].max().to_dict()
    private = {"federated", "wide_only", "frozen_bert"}
    assert draws == {arm: 2 if arm in private else 1 for arm in ARMS}
    assert list(result.means()["arm"]) == [
        "federated",
        "no_dp",
        "wide_only",
        "frozen_bert",
        "central_logistic",
        "local_only",
    ]
    first = result.table.iloc[0]
    assert 0 <= first["auc_released_low"] <= first["auc_released_high"] <= 1


def test_private_arms_spend_what_their_ledgers_say(
    result: RunResult, short: Contract, kept: Path
) -> None:
    rows = result.table.set_index(["arm", "draw"])
    ledgers = sorted(kept.glob("*.ledger"))
    assert len(ledgers) == 3
    for path in ledgers:
        with Ledger.open(path) as ledger:
            spent = ledger.epsilon_overall(short.privacy.delta)
        assert spent == rows.loc[("federated", 1), "epsilon"]
    for arm in ("no_dp", "central_logistic", "local_only"):
        assert pd.isna(rows.loc[(arm, 1), "epsilon"])


def test_progress_reports_each_round_with_a_growing_epsilon(
    rounds: list[tuple[str, int, Progress]], result: RunResult
) -> None:
    lines = [p for arm, draw, p in rounds if arm == "federated" and draw == 1]
    assert [p.round for p in lines] == [1, 2]
    assert 0 < lines[0].epsilon <= lines[1].epsilon
    # 60 users: a figure is nan where noise swamps them, and its interval the whole range.
    assert all(list(p.figures)[:2] == ["auc", "ks"] == list(p.intervals)[:2] for p in lines)
    for p in lines:
        for name, value in p.figures.items():
            low, high = p.intervals[name]
            assert -1 <= low <= high <= 1
            assert math.isnan(value) or low <= value <= high
    calm = [p for arm, _, p in rounds if arm == "no_dp"]
    assert all(0 <= p.figures["auc"] <= 1 and math.isinf(p.epsilon) for p in calm)


def test_two_private_runs_differ_whatever_the_seeds(
    short: Contract, shards: dict[str, Path], result: RunResult
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the point is that it does not matter
    once = run_arms(short, shards, arms=[], seed=5)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    again = run_arms(short, shards, arms=[], seed=5)
    for name, array in once.adapter.items():
        assert not np.array_equal(array, again.adapter[name]), name


def test_two_runs_without_privacy_and_equal_seeds_give_the_same_bits(
    short: Contract, shards: dict[str, Path]
) -> None:
    contract = short.without_privacy()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        once, again, other = (
            run_arms(contract, shards, arms=[], seed=seed, allow_no_privacy=True).adapter
            for seed in (3, 3, 4)
        )
    finally:
        torch.set_num_threads(threads)
    assert {n: a.tobytes() for n, a in once.items()} == {n: a.tobytes() for n, a in again.items()}
    assert any(not np.array_equal(once[name], other[name]) for name in once)


def test_a_kept_ledger_refuses_a_second_run_past_the_budget(
    short: Contract, shards: dict[str, Path], tmp_path: Path
) -> None:
    wide = short.training_only("wide")
    run_arms(wide, shards, arms=[], state=tmp_path)
    with Ledger.open(next(iter(sorted(tmp_path.glob("*.ledger"))))) as ledger:
        spent = ledger.epsilon_overall(wide.privacy.delta)
    tight = dataclasses.replace(
        wide, privacy=dataclasses.replace(wide.privacy, epsilon=spent * 1.01)
    )
    with pytest.raises(CreditError, match=r"round 1: 0 of 3 holders answered"):
        run_arms(tight, shards, arms=[], state=tmp_path)


def test_no_privacy_is_refused_unless_allowed(short: Contract, shards: dict[str, Path]) -> None:
    with pytest.raises(PrivacyError, match="--allow-no-privacy"):
        run_arms(short.without_privacy(), shards, arms=[])


def test_an_unknown_arm_is_named(short: Contract) -> None:
    with pytest.raises(ContractError, match="'best'"):
        run_arms(short, arms=["best"])


def test_run_returns_a_frame_for_notebooks(short: Contract) -> None:
    wide = short.training_only("wide")
    frame = credit_simulations.run(wide, packaged_shards("german", 2), arms=[])
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["arm"]) == ["federated"]


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "credit_simulations.cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_prints_one_json_object(tmp_path: Path, short: Contract) -> None:
    shards = packaged_shards("german", 2)
    done = command(
        "run", "german", "--shards", *map(str, shards.values()), "--arms", "wide_only",
        "--tensorboard", str(tmp_path / "events"), "--format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [row["arm"] for row in shown["arms"]] == ["federated", "wide_only"]
    assert 0 < shown["arms"][0]["epsilon"] <= 8
    assert shown["digest"] == packaged_contract("german").digest
    assert set(shown["holders"]) == set(shards)
    assert list((tmp_path / "events").glob("events.*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "no-such.toml"), "cannot read the contract"),
        (("run", "german", "--shards", "nothing.csv"), "nothing.csv"),
        (("run", "german", "--arms", "best"), "'best'"),
        (("data", "nothing"), "unknown data set"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_1(words: tuple[str, ...], says: str) -> None:
    done = command(*words)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, credit_simulations.cli as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'flwr', 'pandas', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


def test_plan_says_what_the_schedule_spends() -> None:
    done = command("plan", "german", "--format", "json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert 0 < shown["epsilon_train"] <= shown["epsilon_budget"]
    assert shown["noise_multiplier_needed"] <= shown["noise_multiplier"]


def test_prepared_german_data_has_an_id_column_written_once() -> None:
    frame = pd.read_parquet(prepare("german"))
    assert frame["client_id"].is_unique
