"""The demo: its folders, its events, its end by signals, and all of it once on German credit."""

import contextlib
import io
import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from credit_client.identity import open_identity
from credit_client.ledger import Ledger
from credit_client.shard import read_shard
from credit_common.bundle import read_bundle
from credit_common.claim import Facts
from credit_common.contract import Contract, parse_contract
from credit_common.errors import CreditError
from credit_common.model import CreditModel
from credit_common.privacy import mechanism_plan
from credit_common.release import open_release, write_release
from credit_common.upload import upload_bytes
from credit_server.enrol import Registry
from credit_simulations import live
from credit_simulations.data import contract_path
from credit_simulations.demo import new_home, run_demo
from credit_simulations.federation import Progress, nearest_size_class
from credit_simulations.live import federate, found
from credit_simulations.packaged import newcomer_shards, packaged_contract, packaged_shards
from credit_simulations.runs import Watcher
from credit_simulations.view import write_demo_json


@pytest.fixture(scope="module")
def contract() -> Contract:
    return packaged_contract("german")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shards(home: Path) -> dict[str, Path]:
    return found(home, contract_path("german"), packaged_shards("german", 3))


def test_every_holder_is_enrolled_in_the_order_of_names_with_the_nearest_class(
    home: Path, shards: dict[str, Path], contract: Contract
) -> None:
    enrolled = Registry(home / "coordinator").holders()
    assert [h.name for h in sorted(enrolled.values(), key=lambda h: h.node_id)] == sorted(shards)
    for name, path in shards.items():
        users = len(read_shard(path, contract).train)
        assert enrolled[name].size_class == nearest_size_class(contract, users)


def test_each_home_is_a_holders_own_and_agrees_with_the_coordinators_contract(
    home: Path, shards: dict[str, Path], contract: Contract
) -> None:
    (path,) = (home / "coordinator").glob("*.bundle")
    bundle = read_bundle(path)
    assert bundle.contract_digest == contract.digest
    assert (home / "coordinator" / "federation.toml").read_text() == bundle.contract_text
    for name in shards:
        identity = open_identity(home / name)  # raises unless all its parts fit together
        assert identity.bundle == bundle
        assert identity.subject.name == name
        assert stat.S_IMODE((home / name / f"{name}.key").stat().st_mode) == 0o600


def test_a_holder_works_on_a_copy_of_its_shard(home: Path, shards: dict[str, Path]) -> None:
    for name, original in packaged_shards("german", 3).items():
        assert shards[name].parent == home / name
        assert shards[name].read_bytes() == original.read_bytes()


def test_a_new_folder_is_taken_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "credit-demo-2").write_text("a file of that name")
    assert [new_home(None).name for _ in range(3)] == [
        "credit-demo",
        "credit-demo-3",
        "credit-demo-4",
    ]
    assert (tmp_path / "credit-demo-2").read_text() == "a file of that name"


def test_a_folder_that_is_asked_for_must_be_new_or_empty(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert new_home(empty) == empty
    assert new_home(tmp_path / "deep" / "er").is_dir()
    (empty / "ca.key").write_text("precious")
    with pytest.raises(CreditError, match="something in it"):
        new_home(empty)
    (tmp_path / "file").write_text("")
    with pytest.raises(CreditError, match="cannot make"):
        new_home(tmp_path / "file" / "home")


@pytest.mark.parametrize(
    ("options", "says"),
    [({"holders": 1}, "at least 2"), ({"holders": 40}, "holders = 40"), ({"arms": ["x"]}, "'x'")],
)
def test_a_mistake_is_told_before_a_folder_is_made(
    tmp_path: Path, options: dict[str, object], says: str
) -> None:
    with pytest.raises(CreditError, match=says):
        run_demo(tmp_path / "home", data_set="german", **options)
    assert not (tmp_path / "home").exists()


# Events come from children that say what the real commands say, so that a test is quick.

LINES = {
    "coordinator": [
        {"event": "listening", "address": "127.0.0.1:4", "enrolled": 2},
        {"event": "waiting", "connected": 1, "enrolled": 2, "minimum": 2, "missing": ["b"]},
        {"event": "round", "round": 1, "rounds": 2, "holders": 2, "figures": {}, "epsilon": 0.5,
         "intervals": {}, "seconds": 1.0},
        {"event": "round", "round": 2, "rounds": 2, "holders": 2, "epsilon": 0.75, "seconds": 1.0,
         "figures": {"auc": 0.75, "ks": None}, "intervals": {"auc": [0.5, 0.875], "ks": [0, 1]}},
    ],
    "a": [{"event": "ready", "train": 9, "holdout": 3}, {"event": "connected"}],
    "b": [{"event": "ready", "train": 9, "holdout": 3}, {"event": "connected"},
          {"event": "answered", "round": 1, "kind": "train", "refused": False, "epsilon": 0.25}],
}  # fmt: skip
DONE = {
    "a": {"event": "done", "epsilon": 1.5, "delta": 1e-5, "release": "releases/001"},
    "b": {"event": "done", "epsilon": 1.25, "delta": 1e-5, "release": "releases/001"},
}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = contract_path("german").read_text().replace("[model]", '[model]\ntrain = ["wide"]')
    wide = parse_contract(text)
    model = CreditModel(wide, None)
    plan = mechanism_plan(wide, wide.privacy.size_classes[0][0])
    facts = Facts(
        rounds=plan.rounds,
        holders=2,
        epsilon=plan.train_epsilon(),
        holdout_epsilon=plan.holdout_epsilon(),
        created="2026-01-01T00:00:00+00:00",
    )
    folder = tmp_path_factory.mktemp("release") / "001"
    write_release(folder, text, model, model.initial_adapter(), facts)
    return folder


@pytest.fixture
def act(tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., live.Live]:
    """Federate with children that say the given lines instead of the real commands."""

    def run(watcher: Watcher, lines: dict[str, list[dict[str, object]]]) -> live.Live:
        def command(package: str, home: Path, *more: str) -> list[str]:
            said = "".join(
                f"print({json.dumps(line)!r}, flush=True)\n" for line in lines[home.name]
            )
            return [sys.executable, "-c", said]

        monkeypatch.setattr(live, "_command", command)
        home = tmp_path / "home"
        home.mkdir()
        shards = found(home, contract_path("german"), packaged_shards("german", 2))
        names = dict(zip(shards, ("a", "b"), strict=True))
        for old, new in names.items():
            (home / old).rename(home / new)
        return federate(home, {new: shards[old] for old, new in names.items()}, watcher)

    return run


def acted(release: Path) -> dict[str, list[dict[str, object]]]:
    end = {
        "event": "done", "release": str(release), "rounds": 2, "holders": 2, "seconds": 2.0,
        "figures": {"auc": 0.75, "ks": None}, "bytes_up": 1234,
    }  # fmt: skip
    return {name: [*said, DONE.get(name, end)] for name, said in LINES.items()}


def test_rounds_are_told_as_they_come_and_epsilon_is_the_holders_own(
    act: Callable[..., live.Live], release: Path
) -> None:
    told: list[tuple[str, int, Progress]] = []
    done = act(Watcher(round=lambda *line: told.append(line)), acted(release))
    assert [(arm, draw, p.round, p.holders) for arm, draw, p in told] == [
        ("federated", 1, 1, 2),
        ("federated", 1, 2, 2),
    ]
    assert dict(told[0][2].figures) == {}
    assert told[1][2].figures["auc"] == 0.75
    assert math.isnan(told[1][2].figures["ks"])
    assert told[1][2].intervals == {"auc": (0.5, 0.875), "ks": (0, 1)}
    assert all(p.epsilon in (0.25, 0.5, 0.75, 1.25, 1.5) for _, _, p in told)
    assert done.outcome.epsilon == 1.5  # the largest of the two ledgers
    assert done.outcome.history == tuple(p for _, _, p in told)
    assert (done.outcome.bytes_up, done.release) == (1234, release)
    assert np.array_equal(
        done.outcome.adapter["wide.weight"], open_release(release).adapter["wide.weight"]
    )


def test_a_shop_that_dies_ends_the_demo_with_its_name_its_words_and_its_log(
    act: Callable[..., live.Live], release: Path, tmp_path: Path
) -> None:
    lines = acted(release)
    lines["b"] = lines["b"][:2]
    with pytest.raises(CreditError) as caught:
        act(Watcher(), lines)
    assert str(caught.value).startswith("b ended with code 0")
    assert str(tmp_path / "home" / "b" / "credit-client.log") in str(caught.value)


def test_a_coordinator_that_fails_is_quoted(act: Callable[..., live.Live], release: Path) -> None:
    lines = acted(release)
    lines["coordinator"] = [{"event": "failed", "reason": "1 holder is connected"}]
    with pytest.raises(CreditError, match="flower-server failed: 1 holder is connected"):
        act(Watcher(), lines)


# The command itself, with real processes.


def of_home(home: Path) -> list[int]:
    """Processes that have the folder in their command line, other than credit-sim."""
    found_pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            if str(home) in words and "credit_simulations" not in words:
                found_pids.append(int(entry.name))
    return found_pids


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def demo(tmp_path: Path) -> "Iterator[tuple[subprocess.Popen[str], Path]]":
    home = tmp_path / "home"
    words = ["-m", "credit_simulations.cli", "demo", "--home", str(home), "--holders", "2"]
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process, home
        process.kill()
    for pid in of_home(home):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_shops_work_ends_every_process_with_code_130(
    demo: "tuple[subprocess.Popen[str], Path]", number: int
) -> None:
    process, home = demo
    assert eventually(lambda: len(of_home(home)) == 3)
    process.send_signal(number)
    shown, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert shown == ""
    assert errors.splitlines()[-1] == "credit-sim: interrupted"
    assert "Traceback" not in errors
    assert of_home(home) == []


@pytest.mark.slow
def test_ctrl_c_in_the_midst_of_imports_is_one_line_too(
    demo: "tuple[subprocess.Popen[str], Path]",
) -> None:
    process, home = demo
    maps = Path(f"/proc/{process.pid}/maps")
    assert eventually(lambda: "libtorch" in maps.read_text())
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=20)
    assert (process.returncode, shown) == (130, "")
    assert errors.splitlines()[-1] == "credit-sim: interrupted"
    assert "Traceback" not in errors
    assert of_home(home) == []


@pytest.mark.slow
def test_no_process_outlives_a_demo_that_is_killed(
    demo: "tuple[subprocess.Popen[str], Path]",
) -> None:
    process, home = demo
    assert eventually(lambda: len(of_home(home)) == 3)
    process.kill()
    assert eventually(lambda: of_home(home) == [])


@pytest.mark.slow
def test_the_whole_demo_on_german_credit(tmp_path: Path, contract: Contract) -> None:
    rounds: list[Progress] = []
    watcher = Watcher(round=lambda arm, draw, progress: rounds.append(progress))
    result = run_demo(
        tmp_path, holders=2, arms=["local_only"], data_set="german", newcomer_rows=100,
        watcher=watcher,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as out:
        write_demo_json(result)
    shown = json.loads(out.getvalue())
    assert out.getvalue().count("\n") == 1
    assert (shown["rounds"], shown["holders"]) == (contract.training.rounds, 2)
    assert [p.round for p in rounds] == [1, 2, 3]
    assert 0 <= shown["auc"] <= 1
    assert 0 <= shown["auc_released_low"] <= shown["auc_released_high"] <= 1
    assert shown["auc_no_dp"] is None  # that arm was not asked for
    assert 0 < shown["auc_local_only"] < 1
    assert shown["newcomers"] == len(newcomer_shards("german", 2, 100)) > 0
    assert len(shown["scored"]) == 5
    assert Path(shown["release"]) == tmp_path / "coordinator" / "releases" / "001"
    spent = []
    for name in packaged_shards("german", 2):
        with Ledger.open(tmp_path / name / f"{name}.ledger") as ledger:
            spent.append(ledger.epsilon_overall(contract.privacy.delta))
    assert shown["epsilon"] == max(spent)
    assert shown["delta"] == contract.privacy.delta
    shapes = {name: array.shape for name, array in result.run.adapter.items()}
    assert shown["bytes_up_per_round"] >= upload_bytes(contract.training.upload, shapes) > 0
    assert of_home(tmp_path) == []
