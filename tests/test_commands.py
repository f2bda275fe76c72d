"""The commands as a newcomer types them: processes of their own, real data, real BERT weights."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from credit_client.identity import open_identity
from credit_client.shard import read_shard
from credit_common.backbone import resolve_backbone
from credit_common.contract import load_contract, parse_contract
from credit_common.model import CreditModel
from credit_common.release import open_release, release_scores
from credit_common.text import wide_features
from credit_common.upload import upload_bytes
from credit_simulations.data import contract_path
from credit_simulations.federation import make_parties, read_shards, simulate
from credit_simulations.packaged import packaged_shards

pytestmark = pytest.mark.long(330)

ENOUGH = 120.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "NONE"}
FINGERPRINT = re.compile(r"fingerprint of .*: ([0-9a-f ]+)$", re.MULTILINE)


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"{module}.cli", *map(str, arguments)]


def run(module: str, *arguments: object, code: int = 0, stdin: str = "") -> str:
    done = subprocess.run(
        command(module, *arguments),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        input=stdin,
        timeout=ENOUGH,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def server(*arguments: object, **options) -> str:
    return run("credit_server", *arguments, **options)


def client(*arguments: object, **options) -> str:
    return run("credit_client", *arguments, **options)


class Process:
    """A command that tells its events as JSON lines."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            command(module, *arguments, "--format", "json", "--threads", "1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self.events: list[dict] = []

    def until(self, event: str, **facts: object) -> dict:
        """The next event of a kind; the ones before it are kept too."""
        for line in self._process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == event and facts.items() <= self.events[-1].items():
                return self.events[-1]
        raise AssertionError(f"ended before {event}: {self._process.stderr.read()}")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code, and what stood on stderr."""
        rest, said = self._process.communicate(timeout=ENOUGH)
        self.events += [json.loads(line) for line in rest.splitlines()]
        return self._process.returncode, said

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()


@pytest.fixture(scope="module")
def shards() -> dict[str, Path]:
    return dict(packaged_shards("german", 3))


def make_federation(folder: Path, names: list[str], text: str) -> Path:
    """What the README has two people type, up to the first run; returns the coordinator's home."""
    home = folder / "coordinator"
    home.mkdir()
    (home / "federation.toml").write_text(text, "utf-8")
    said = server("init", "--home", home, "--address", "localhost:9440")
    bundle = next(home.glob("*.bundle"))
    read_out = FINGERPRINT.search(said)[1]
    for name in names:
        own = folder / name
        asked = client(
            *("request", bundle, "--home", own, "--name", name),
            *("--size-class", "small", "--fingerprint", read_out),
        )
        request = own / f"{name}.csr"
        server("enrol", request, "--home", home, "--fingerprint", FINGERPRINT.search(asked)[1])
    return home


@pytest.fixture(scope="module")
def whole_contract() -> str:
    """Three rounds of the German credit contract, with BERT."""
    return contract_path("german").read_text("utf-8")


@pytest.fixture(scope="module")
def quick_contract(whole_contract) -> str:
    """The same with the wide part alone, which needs no weights."""
    text = whole_contract.replace("[model]\n", '[model]\ntrain = ["wide"]\n')
    assert not parse_contract(text).model.reads_text
    return text


def without_privacy(text: str) -> str:
    text = re.sub(r"(?m)^epsilon = .*\n", "", text)
    text = re.sub(r"(?m)^noise_multiplier = .*$", "noise_multiplier = 0.0", text)
    assert not parse_contract(text).privacy.private
    return text


@contextlib.contextmanager
def running(
    home: Path,
    folder: Path,
    shards: dict[str, Path],
    *more: object,
    seeded: bool = False,
    of_holders: tuple[object, ...] = (),
) -> Iterator[tuple[Process, dict[str, Process], str]]:
    """A coordinator, and holders on it."""
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(
            Process("credit_server", "--home", home, "--listen", "127.0.0.1:0", *more)
        )
        address = coordinator.until("listening")["address"]
        holders = {}
        for index, (name, shard) in enumerate(sorted(shards.items())):
            seed = ("--seed", 1000 + index) if seeded else ()
            options = ("--home", folder / name, "--shard", shard, "--server", address)
            options = (*options, *more, *seed, *of_holders)
            holders[name] = stack.enter_context(Process("credit_client", *options))
        yield coordinator, holders, address


@pytest.mark.parametrize("upload", ["float32", "int8"])
def test_processes_and_loop_give_the_same_adapter_bit_for_bit(
    tmp_path, shards, whole_contract, quick_contract, upload
):
    text = without_privacy({"float32": quick_contract, "int8": whole_contract}[upload])
    text = re.sub(r"(?m)^upload = .*\n", "", text)
    text = text.replace("[training]\n", f'[training]\nupload = "{upload}"\n')
    home = make_federation(tmp_path, sorted(shards), text)
    no_privacy, in_files = "--allow-no-privacy", ("--cache", "file")
    started = running(home, tmp_path, shards, no_privacy, seeded=True, of_holders=in_files)
    with started as (coordinator, holders, _):
        done = coordinator.until("done")
        assert coordinator.end()[0] == 0
        assert all(holder.end()[0] == 0 for holder in holders.values())
    assert list(tmp_path.glob("*/frozen-*")) == []
    contract = load_contract(home / "federation.toml")
    torch.set_num_threads(1)
    backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
    model = CreditModel(contract, backbone)
    parties = [
        dataclasses.replace(party, size_class="small")
        for party in make_parties(contract, read_shards(contract, shards), model)
    ]
    looped = simulate(contract, parties, model, ledgers=tmp_path, allow_no_privacy=True, seed=1)
    networked = open_release(Path(done["release"])).adapter
    assert set(networked) == set(looped.adapter)
    for name, values in looped.adapter.items():
        assert np.array_equal(networked[name], values), name
    assert any(np.abs(values).max() > 0 for name, values in networked.items() if "wide" in name)
    for name, holder in holders.items():
        own = open_release(Path(holder.events[-1]["release"]))
        assert own.digest == open_release(Path(done["release"])).digest, name
        assert own.facts.evaluated == len(holders)
        assert holder.events[-1]["epsilon"] is None
    # What the manifests list is what is promised, and a quarter of it in int8.
    numbers = upload_bytes(upload, model.schema())
    assert done["bytes_up"] == pytest.approx(numbers, abs=1500)
    plain = sum(values.nbytes for values in looped.adapter.values())
    assert plain * {"float32": 1, "int8": 0.25}[upload] <= numbers
    assert numbers <= plain * {"float32": 1, "int8": 0.26}[upload]
    for name in shards:
        lines = open_identity(tmp_path / name).manifest.lines()
        listed = [line.bytes for line in lines if line.message == "adapter"]
        assert len(listed) == contract.training.rounds
        assert all(numbers < size < numbers + 1500 for size in listed)


def test_federated_edges_are_found_trained_under_released_and_scored_with(
    tmp_path, shards, quick_contract
):
    text = re.sub(
        r"edges = \[500, 1000, .*\]",
        'edges = "federated"\nbins = 8\nscale = "log"',
        quick_contract,
    ).replace("[evaluation]\n", "[statistics]\nnoise_multiplier = 10.0\n\n[evaluation]\n")
    contract = parse_contract(text)
    assert [f.name for f in contract.federated_fields] == ["credit_amount"]
    two = dict(sorted(shards.items())[:2])
    name, shard = next(iter(two.items()))
    home = make_federation(tmp_path, list(two), text)
    checked = client("--home", tmp_path / name, "--shard", shard, "--check", "--format", "json")
    foretold = json.loads(checked)["schedule"]
    with running(home, tmp_path, two) as (coordinator, holders, _):
        done = coordinator.until("done")
        assert coordinator.end()[0] == 0
        assert all(holder.end()[0] == 0 for holder in holders.values())
    opened = open_release(Path(done["release"]))
    (field,) = opened.resolved.federated_fields
    assert len(field.edges) == 7
    for other, holder in holders.items():
        answered = [e for e in holder.events if e["event"] == "answered"]
        assert [e["kind"] for e in answered] == ["statistics", *["train"] * 3, "evaluate"]
        assert not any(e["refused"] for e in answered)
        assert holder.events[-1]["epsilon"] == pytest.approx(foretold["any"])
        own = open_release(Path(holder.events[-1]["release"]))
        assert (own.digest, own.edges) == (opened.digest, opened.edges), other
    assert opened.facts.epsilon == pytest.approx(foretold["train"])
    with contextlib.closing(sqlite3.connect(tmp_path / name / f"{name}.ledger")) as ledger:
        charged = [str(row) for row in ledger.execute("SELECT account, event FROM entries")]
    assert sum("train" in row and "field_histograms" in row for row in charged) == 1
    out = tmp_path / "scores.csv"
    client("score", "--release", done["release"], "--shard", shard, "--out", out)
    rows = pd.read_csv(out)
    read = read_shard(shard, contract, require_label=False)
    records = {e.row: e.record for e in (*read.train, *read.holdout)}
    wide = np.stack([wide_features(opened.resolved, records[row]) for row in rows["row"]])
    assert np.abs(release_scores(opened.head, None, wide)[:, 0] - rows["logit"]).max() < 1e-5
    # Other edges are seen. Noise may leave all users in one bin, and edges that moved a little too;
    # edges that put all users in bin `at`, for each `at`, change some score unless all bins weigh
    # the same.
    amounts = [records[row].values[field.name] for row in rows["row"]]
    (low, high), bins = field.range, len(field.edges) + 1
    changed = []
    for at in range(bins):
        under = np.linspace(low, min(amounts), at + 2)[1:-1]
        over = np.linspace(max(amounts), high, bins - at + 1)[1:-1]
        moved = contract.with_edges({field.name: [*under, *over]})
        others = np.stack([wide_features(moved, records[row]) for row in rows["row"]])
        found = release_scores(opened.head, None, others)[:, 0]
        changed.append(np.abs(found - rows["logit"]).max())
    assert max(changed) > 1e-4


def test_a_cache_in_a_file_is_left_by_a_kill_alone_and_forgotten(
    tmp_path, shards, whole_contract, tiny_bert
):
    digest = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()
    tiny = f'backbone = "{tiny_bert}"\nbackbone_sha256 = "{digest}"'
    name = min(shards)
    make_federation(tmp_path, [name], re.sub(r"(?m)^backbone = .*$", tiny, whole_contract))
    own = tmp_path / name

    def left() -> list[Path]:
        return list(own.glob("frozen-*"))

    # Nobody listens there; a client encodes before it waits.
    options = ("--home", own, "--shard", shards[name], "--server", "127.0.0.1:9")
    options = (*options, "--cache", "file", "--cache-limit", "100kB")
    with Process("credit_client", *options) as victim:
        victim.until("ready")
        (file,) = left()
        size = file.stat().st_size
        assert file.stat().st_mode & 0o777 == 0o600
        assert 90_000 < size <= 100_000
        assert "in use" in client("forget", "--home", own, code=1)
        victim.send(signal.SIGKILL)
        victim.end()
    assert left() == [file]
    assert f"removed 1 cache, {size:,} bytes" in client("forget", "--home", own)
    assert left() == []
    file.write_bytes(bytes(20))  # as of another that was killed
    with Process("credit_client", *options) as back:
        back.until("ready")
        assert len(left()) == 1
        assert left() != [file]
        back.send(signal.SIGTERM)
        code, said = back.end()
    assert code == 130
    assert "killed clients left: 1, of 20 bytes" in said
    assert re.search(r"output of \d+ users kept in .* encrypted .* of \d+ users run anew", said)
    assert left() == []


def test_a_holder_killed_in_a_round_and_started_again_answers_it_once(
    tmp_path, shards, quick_contract
):
    home = make_federation(tmp_path, sorted(shards), quick_contract)
    with running(home, tmp_path, shards) as (coordinator, holders, address):
        name = sorted(shards)[0]
        victim = holders[name]
        victim.until("answered", round=1)
        coordinator.until("round", round=1)
        victim.send(signal.SIGKILL)
        assert victim.end()[0] == -signal.SIGKILL
        options = ("--home", tmp_path / name, "--shard", shards[name], "--server", address)
        with Process("credit_client", *options) as back:
            done = coordinator.until("done")
            assert back.end()[0] == 0
        coordinator.end()
        rounds = [e for e in coordinator.events if e["event"] == "round"]
        assert [r["holders"] for r in rounds] == [3] * len(rounds)
        assert done["holders"] == 3
        others = [holder for other, holder in holders.items() if other != name]
        assert all(holder.end()[0] == 0 for holder in others)
    with contextlib.closing(sqlite3.connect(tmp_path / name / f"{name}.ledger")) as ledger:
        charged = [row[0] for row in ledger.execute("SELECT message_id FROM entries") if row[0]]
    assert len(charged) == len(set(charged))
    spent = {holder.events[-1]["epsilon"] for holder in (back, *others)}
    assert len(spent) == 1  # the killed holder was charged for each round once, like the others


def test_what_can_be_wrong_at_a_holder_is_one_line(tmp_path, shards, quick_contract):
    (name, shard), *_ = sorted(shards.items())
    home = make_federation(tmp_path, [name], quick_contract)
    own = tmp_path / name
    port = free_port()
    usual = ("--home", own, "--server", f"127.0.0.1:{port}")
    wrongs = {
        "no-such-file.csv": ("--shard", "no-such-file.csv", *usual),
        "HOST:PORT": ("--shard", shard, "--home", own, "--server", "nowhere"),
        "--max-epsilon is 1": ("--shard", shard, *usual, "--max-epsilon", 1),
        "--max-delta is 1e-09": ("--shard", shard, *usual, "--max-delta", 1e-9),
        "--seed is for a contract without privacy alone": ("--shard", shard, *usual, "--seed", 1),
        "holds no identity": ("--shard", shard, "--home", tmp_path),
    }
    for words, options in wrongs.items():
        said = client(*options, code=1)
        assert words in said
        assert said.count("\n") == 1, said
    bundle = next(home.glob("*.bundle"))
    again = ("request", bundle, "--home", tmp_path / "x", "--name", "x", "--size-class", "small")
    assert "--fingerprint is not that of the bundle" in client(
        *again, "--fingerprint", "0000 1111", code=1
    )
    assert "give --fingerprint: that of the bundle, as the coordinator" in client(*again, code=1)
    assert not (tmp_path / "x").exists()


def test_what_can_be_wrong_at_the_coordinator_is_one_line(tmp_path, quick_contract):
    home = make_federation(tmp_path, ["one"], quick_contract)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "cannot read the contract" in server("init", "--home", empty, "--address", "h:1", code=1)
    assert "flower-server init makes a federation's folder" in server("--home", empty, code=1)
    assert "address" in server("init", "--home", home, "--address", "no-port", code=1)
    assert "never replaced" in server("init", "--home", home, "--address", "h:1", code=1)
    assert "no-such.csr" in server("enrol", "no-such.csr", "--home", home, code=1)
    request = tmp_path / "one" / "one.csr"
    assert "--days 0: must be between 1 and 3652" in server(
        "enrol", request, "--home", home, "--days", 0, code=1
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = server("--home", home, "--listen", f"127.0.0.1:{port}", code=1)
        assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in said
    edited = quick_contract.replace("rounds = 3", "rounds = 4")
    assert edited != quick_contract
    (home / "federation.toml").write_text(edited, "utf-8")
    assert "has changed since german.bundle was written" in server("--home", home, code=1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_an_amended_contract_is_refused_until_the_holder_accepts_it(
    tmp_path, shards, quick_contract
):
    (name, shard), *_ = sorted(shards.items())
    home = make_federation(tmp_path, [name], quick_contract)
    (home / "federation.toml").write_text(quick_contract.replace("rounds = 3", "rounds = 2"))
    said = server("bundle", "--home", home)
    bundle = next(home.glob("*.bundle"))
    with Process("credit_server", "--home", home, "--listen", "127.0.0.1:0") as coordinator:
        address = coordinator.until("listening")["address"]
        usual = ("--home", tmp_path / name, "--shard", shard, "--server", address)
        refused = client(*usual, code=1)
        assert "contract digest: the coordinator runs" in refused.splitlines()[-1]
        checked = client(*usual, "--check", "--format", "json", code=1)
        assert checked == ""
        client(
            *("accept", bundle, "--home", tmp_path / name),
            *("--fingerprint", FINGERPRINT.search(said)[1]),
        )
        checked = json.loads(client(*usual, "--check", "--format", "json"))
        assert checked["network"]["refused"] is None
        assert coordinator.events[0]["enrolled"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_both_sides_with_one_line(tmp_path, shards, quick_contract, number):
    (name, shard), *_ = sorted(shards.items())
    home = make_federation(tmp_path, [name], quick_contract)
    with running(home, tmp_path, {name: shard}) as (coordinator, holders, _):
        coordinator.until("waiting", connected=1)
        for process, prog in ((holders[name], "credit-client"), (coordinator, "flower-server")):
            start = time.monotonic()
            process.send(number)
            code, said = process.end()
            assert code == 130
            assert said.splitlines()[-1] == f"{prog}: interrupted"
            assert "Traceback" not in said
            assert time.monotonic() - start < 10


def test_status_says_who_is_enrolled_and_what_the_run_does(tmp_path, quick_contract):
    home = make_federation(tmp_path, ["one", "two"], quick_contract)
    status = json.loads(server("status", "--home", home, "--format", "json"))
    assert sorted(status["holders"]) == ["one", "two"]
    assert status["run"] is None
    with Process("credit_server", "--home", home, "--listen", "127.0.0.1:0") as coordinator:
        waiting = coordinator.until("waiting")
        assert waiting["missing"] == ["one", "two"]
        run_ = json.loads(server("status", "--home", home, "--format", "json"))["run"]
        assert run_["state"] == "waiting"
        assert run_["alive"]
    assert not json.loads(server("status", "--home", home, "--format", "json"))["run"]["alive"]
    server("revoke", "one", "--home", home)
    assert "one: node 2, small, revoked" in server("status", "--home", home)


@pytest.mark.parametrize("module", ["credit_server", "credit_client"])
def test_help_starts_fast_and_needs_no_torch(module):
    code = f"import sys, {module}.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'flwr' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1] == "False False"
