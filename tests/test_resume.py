"""Crashes of a whole federation: processes of their own, mutual TLS, real data, kill -9."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from credit_common.bundle import read_bundle
from credit_common.contract import parse_contract
from credit_common.release import open_release
from credit_simulations.data import contract_path
from credit_simulations.live import COORDINATOR, SERVER, found, start_coordinator, start_holder
from credit_simulations.packaged import packaged_shards
from credit_simulations.processes import Children, Event

pytestmark = pytest.mark.slow
ENOUGH = 90.0  # seconds that nothing here takes unless it hangs
GRACE = 6.0  # holders ask at least every 3.6 s


@pytest.fixture(scope="module")
def text() -> str:
    """Three rounds of the German credit contract, the wide part alone, evaluated in each."""
    text = contract_path("german").read_text("utf-8")
    text = text.replace("[model]\n", '[model]\ntrain = ["wide"]\n')
    text = text.replace("min_holders = 2", f"min_holders = 2\ngrace_seconds = {GRACE:g}")
    contract = parse_contract(text)
    assert not contract.model.reads_text
    assert contract.training.rounds == 3
    return text


DIES = """
import os, signal, sys, time
from credit_server.cli import main
from credit_server.grid import GrpcGrid

def dies(*arguments, **named):
    print('{"event": "dies"}', flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name, when):
    real = getattr(owner, name)
    def called(self, *arguments):
        result = real(self, *arguments)
        if when(*arguments, result):
            dies()
        return result
    setattr(owner, name, called)

moment = sys.argv[1]
if moment == "one answered":
    after(GrpcGrid, "answer", lambda node, reply, counts: counts)
elif moment == "all answered":  # in the ServerApp's thread; the loop's still sends its receipts
    after(GrpcGrid, "_take_back", lambda ids, result: time.sleep(1) is None)
elif moment == "nobody told":
    GrpcGrid.finish = dies
sys.exit(main(sys.argv[2:]))
"""


class Stage:
    """A coordinator's and holders' folders, and the processes over them."""

    def __init__(self, home: Path, text: str, children: Children, names: int = 2) -> None:
        home.mkdir()
        (home / "federation.toml").write_text(text, "utf-8")
        self.home, self.children = home, children
        self.contract = parse_contract(text)
        shards = dict(packaged_shards("german", names))
        self.shards = found(home, home / "federation.toml", shards)
        self.names = sorted(self.shards)
        self.coordinator = home / COORDINATOR
        self.heard: list[Event] = []

    def server(self, *more: str) -> None:
        start_coordinator(self.children, self.home, *more)

    def server_that_dies(self, moment: str, *more: str) -> None:
        """A coordinator that is killed at a moment of `DIES`."""
        address = read_bundle(next(self.coordinator.glob("*.bundle"))).address
        command = [sys.executable, "-c", DIES, moment, "--home", str(self.coordinator), *more]
        command += ["--listen", address, "--threads", "1", "--format", "json"]
        self.children.start(SERVER, command, self.coordinator / f"{SERVER}.log")

    def dies(self) -> None:
        """Wait until the coordinator is gone."""
        self.until(SERVER, "dies")
        self.children.kill(SERVER)

    def holder(self, name: str) -> None:
        start_holder(self.children, self.home, name, self.shards[name])

    def until(self, who: str, what: str, **facts: object) -> Event:
        for event in self.children.events(ENOUGH):
            self.heard.append(event)
            if (event.who, event.what) == (who, what) and facts.items() <= event.line.items():
                return event
        raise AssertionError(f"{who} ended without {what}")

    def to_the_end(self) -> None:
        self.heard.extend(self.children.events(ENOUGH))

    def said(self, who: str, what: str) -> list[dict]:
        return [dict(e.line) for e in self.heard if (e.who, e.what) == (who, what)]

    def charged(self, name: str) -> list[tuple[str, str]]:
        """Kind and round of each message that the holder's ledger has a charge for, in order."""
        path = self.home / name / f"{name}.ledger"
        with contextlib.closing(sqlite3.connect(path)) as ledger:
            rows = ledger.execute("SELECT message_id FROM entries ORDER BY sequence").fetchall()
        ids = [message_id for (message_id,) in rows if message_id]
        assert len(ids) == len(set(ids))
        parts = [message_id.split("-") for message_id in ids]
        assert len({run for run, *_ in parts}) <= 1  # one run, however many processes
        return [(kind, round_) for _, round_, kind, *_ in parts]


@pytest.fixture
def stage(tmp_path, text) -> Iterator[Stage]:
    with Children({"XDG_STATE_HOME": str(tmp_path / "state")}) as children:
        yield Stage(tmp_path / "home", text, children)


def test_a_coordinator_killed_at_any_moment_goes_on_and_nothing_counts_twice(stage):
    stage.server_that_dies("one answered")
    stage.until(SERVER, "waiting")
    status = (stage.coordinator / "status.json").read_bytes()
    assert "another flower-server runs in" in refused(stage)
    assert (stage.coordinator / "status.json").read_bytes() == status
    for name in stage.names:
        stage.holder(name)
    stage.dies()  # one was charged at least, and its answer is lost with the process
    checkpoint = (stage.coordinator / "run.checkpoint").read_bytes()
    assert "flower-server --resume goes on" in refused(stage)
    assert (stage.coordinator / "run.checkpoint").read_bytes() == checkpoint
    # Once more in the same round, then with the release written.
    for moment in ("all answered", "nobody told"):
        stage.server_that_dies(moment, "--resume")
        assert stage.until(SERVER, "resumed").line["round"] == 0
        stage.dies()
    (written,) = (stage.coordinator / "releases").iterdir()
    digest = open_release(written).digest
    stage.server("--resume")
    assert stage.until(SERVER, "resumed").line["round"] == 3
    stage.to_the_end()

    (done,) = stage.said(SERVER, "done")
    assert (done["rounds"], done["holders"], Path(done["release"])) == (3, 2, written)
    assert [line["round"] for line in stage.said(SERVER, "round")] == [1, 2, 3]
    release = open_release(written)
    assert release.digest == digest
    assert (release.facts.rounds, release.facts.holders, release.facts.evaluated) == (3, 2, 2)
    assert list(written.parent.iterdir()) == [written]
    asked = [("train", "1"), ("train", "2"), ("train", "3"), ("evaluate", "3")]
    for name in stage.names:
        assert stage.charged(name) == asked
        assert not any(line["refused"] for line in stage.said(name, "answered"))
        own = stage.said(name, "done")[0]
        # What the public schedule foretells is what the ledgers say: not a charge more.
        spent = max(release.facts.epsilon, release.facts.holdout_epsilon)
        assert own["epsilon"] == pytest.approx(spent, rel=1e-6)
        assert open_release(Path(own["release"])).digest == digest
    # The first round was answered three times, with one charge.
    firsts = [line for name in stage.names for line in stage.said(name, "answered")]
    assert sum(line["round"] == 1 for line in firsts) >= 4
    assert not (stage.coordinator / "run.checkpoint").exists()


def refused(stage: Stage, *more: str) -> str:
    """What a coordinator says that does not start."""
    command = [sys.executable, "-m", "credit_server.cli", "--home", str(stage.coordinator), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr
