"""The file that a coordinator goes on from: always a whole one, and refused in one line."""

import dataclasses
import os
import signal
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from credit_common import fetch
from credit_common.certificates import new_key
from credit_common.errors import CreditError, WireError
from credit_common.heads import sign_head
from credit_server.aggregate import RoundReport, State
from credit_server.checkpoint import (
    FILE,
    Checkpoint,
    Closing,
    Keeper,
    from_bytes,
    to_bytes,
    unfinished,
)
from credit_server.lock import only_server

DRAW = np.random.default_rng(0)


def adapter() -> dict[str, np.ndarray]:
    return {"w": DRAW.normal(size=(2, 3)).astype(np.float32), "b/x": np.zeros(1, np.float32)}


EDGES = {"age": (25.0, 40.100000381469727), "none": ()}
HEAD = sign_head(
    new_key(),
    node_id=2,
    contract_digest="c" * 64,
    counter=7,
    blinded_hash="b" * 64,
    overrides=0,
    delta=1e-5,
    epsilon=1.5,
    epsilon_replace_one=None,
)


def report(number: int, *, evaluated: int = 0) -> RoundReport:
    return RoundReport(
        round=number,
        holders=3 + number,
        adapter=adapter(),
        histogram=DRAW.normal(size=(2, 5)) if evaluated else None,
        evaluated=evaluated,
        edges=EDGES,
    )


@pytest.fixture
def begun(contract) -> Checkpoint:
    return Checkpoint(contract_digest=contract.digest, run="a" * 32, state=State(adapter=adapter()))


@pytest.fixture
def full(begun) -> Checkpoint:
    """A run that has been through everything, as its file has it."""
    released = adapter()
    state = State(
        round=3,
        holders=7,
        pending=True,
        adapter=adapter(),
        released=released,
        velocity={name: array.astype(np.float64) / 3 for name, array in adapter().items()},
        edges=EDGES,
    )
    reports = (report(1), report(2, evaluated=3), report(4, evaluated=4))
    lean = (
        dataclasses.replace(reports[0], adapter={}),
        dataclasses.replace(reports[1], adapter={}),
        dataclasses.replace(reports[2], adapter=released),
    )
    closing = Closing(release="003", created="2026-01-02T03:04:05+00:00", heads=(HEAD,))
    return dataclasses.replace(begun, state=state, reports=lean, closing=closing)


def same(one: object, other: object) -> bool:
    """Equal to the last bit, types of arrays included."""
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and (
            one.tobytes() == other.tobytes()
        )
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and same(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_what_is_kept_is_read_back_to_the_last_bit(begun, full):
    for kept in (begun, full):
        assert same(from_bytes(to_bytes(kept)), kept)
    assert not same(from_bytes(to_bytes(full)), begun)
    assert to_bytes(full) == to_bytes(full)


def test_a_keeper_keeps_each_step_and_forgets_a_run_that_is_over(tmp_path, begun, contract):
    keeper = Keeper(tmp_path, begun)
    assert unfinished(tmp_path, contract, resume=False) is None  # nothing was asked yet
    keeper.settle(begun.state, None)
    assert same(unfinished(tmp_path, contract, resume=True), begun)
    moved = dataclasses.replace(begun.state, round=1, released=adapter(), edges=EDGES)
    keeper.settle(moved, report(1, evaluated=2))
    kept = unfinished(tmp_path, contract, resume=True)
    assert (kept.run, kept.state.round, len(kept.reports)) == (begun.run, 1, 1)
    keeper.close(Closing(release="001", created="2026-01-02T03:04:05+00:00", heads=()))
    assert unfinished(tmp_path, contract, resume=True).closing.release == "001"
    keeper.over()
    assert list(tmp_path.iterdir()) == []
    keeper.over()
    assert unfinished(tmp_path, contract, resume=False) is None


def test_the_file_does_not_grow_with_adapters_or_histograms_of_rounds(tmp_path, begun):
    keeper, sizes = Keeper(tmp_path, begun), []
    for number in range(1, 42):
        keeper.settle(begun.state, report(number, evaluated=3 if number % 2 else 0))
        sizes.append((tmp_path / FILE).stat().st_size)
    assert sizes[40] - sizes[2] < 38 * 60  # a line of JSON each, where a histogram has 80 bytes
    kept = [r.round for r in keeper.kept.reports if r.histogram is not None]
    assert kept == [1, 41]  # the first evaluation, which later ones are compared with, and the last
    assert min(r.holders for r in keeper.kept.reports) == 4


# -- atomicity ---------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone."""


STEPS = ("mkstemp", "fsync", "replace", "fsync of the folder", "done")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_between_any_two_steps_leaves_the_old_file_or_the_new_one(
    tmp_path, monkeypatch, begun, full, contract, step, before
):
    keeper = Keeper(tmp_path, begun)
    if before:
        keeper.settle(begun.state, None)
    synced = []

    def crash(at, real=None):
        def called(*arguments, **named):
            folder = at == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            if step == ("fsync of the folder" if folder else at):
                raise Crash
            synced.append(folder)
            return real(*arguments, **named)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(fetch.tempfile, "mkstemp", crash("mkstemp", fetch.tempfile.mkstemp))
        patch.setattr(fetch.os, "fsync", crash("fsync", fetch.os.fsync))
        patch.setattr(fetch.Path, "replace", crash("replace", fetch.Path.replace))
        patch.setattr(fetch.Path, "unlink", lambda *_, **__: None)  # a process that is gone
        if step == "done":
            keeper.settle(full.state, None)
            assert True in synced  # the folder too
        else:
            with pytest.raises(Crash):
                keeper.settle(full.state, None)
    new = step in ("fsync of the folder", "done")
    if not (new or before):
        assert unfinished(tmp_path, contract, resume=False) is None
    else:
        kept = unfinished(tmp_path, contract, resume=True)
        assert same(kept.state, full.state if new else begun.state)
    assert {path.name for path in tmp_path.iterdir()} <= {FILE}  # parts are cleared away


WRITER = """
import sys
from pathlib import Path
import numpy as np
from credit_server.aggregate import State
from credit_server.checkpoint import Checkpoint, Keeper
keeper = Keeper(Path(sys.argv[1]), Checkpoint(contract_digest=sys.argv[2], run="r", state=None))
print("up", flush=True)
number = 0
while True:
    number += 1
    adapter = {"w": np.full(20_000, number, np.float32)}
    keeper.settle(State(round=number, adapter=adapter), None)
"""


def test_a_writer_that_is_killed_at_any_time_leaves_a_whole_file(tmp_path, contract):
    seen = []
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), contract.digest],
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdout.readline() == "up\n"
        while not (tmp_path / FILE).exists():
            assert writer.poll() is None
        # It writes meanwhile, as fast as the disk lets it: each look finds a whole file.
        while len(seen) < 50 or len(set(seen)) < 5:
            assert writer.poll() is None
            state = from_bytes((tmp_path / FILE).read_bytes()).state
            assert (state.adapter["w"] == state.round).all()
            seen.append(state.round)
        writer.send_signal(signal.SIGKILL)
    last = unfinished(tmp_path, contract, resume=True).state
    assert (last.adapter["w"] == last.round).all()
    assert last.round >= seen[-1] > seen[0]
    assert {path.name for path in tmp_path.iterdir()} == {FILE}


def test_a_disk_that_is_full_ends_the_run_in_one_line_and_the_file_stays(
    tmp_path, monkeypatch, begun, full
):
    keeper = Keeper(tmp_path, begun)
    keeper.settle(begun.state, None)

    def no_room(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.os, "fsync", no_room)
    with pytest.raises(CreditError, match=r"cannot write .*run\.checkpoint: No space left"):
        keeper.settle(full.state, None)
    assert same(from_bytes((tmp_path / FILE).read_bytes()), begun)


# -- what is refused ---------------------------------------------------------------------------


def refused(home: Path, contract, *, resume: bool) -> str:
    before = {path: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(CreditError) as caught:
        unfinished(home, contract, resume=resume)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in home.iterdir()} == before  # nothing written over
    return str(caught.value)


def test_a_run_that_is_not_over_is_never_silently_begun_anew(tmp_path, contract, full):
    (tmp_path / FILE).write_bytes(to_bytes(full))
    said = refused(tmp_path, contract, resume=False)
    assert f"{tmp_path / FILE} is a run that is not over, 3 of 3 rounds trained" in said
    assert "flower-server --resume goes on" in said
    assert f"charged for anew, remove {tmp_path / FILE}" in said


def test_without_a_run_there_is_nothing_to_resume(tmp_path, contract):
    said = refused(tmp_path, contract, resume=True)
    assert said == f"{tmp_path} has no run to go on with; without --resume a new one begins"


@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_of_another_contract_is_refused(tmp_path, contract, federated, full, resume):
    (tmp_path / FILE).write_bytes(to_bytes(full))
    said = refused(tmp_path, federated, resume=resume)
    assert f"is of contract {contract.digest[:12]}, and {federated.digest[:12]} is in force" in said


@pytest.mark.parametrize("resume", [False, True])
def test_a_truncated_checkpoint_is_refused(tmp_path, contract, full, resume):
    whole = to_bytes(full)
    for length in (0, 1, 30, 31, 60, 95, 96, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:length])
        assert f"{tmp_path / FILE} is damaged: " in refused(tmp_path, contract, resume=resume)


def test_any_flipped_bit_is_found(full):
    whole = to_bytes(full)
    for place in {*range(140), *DRAW.integers(0, len(whole), 400).tolist(), len(whole) - 1}:
        for bit in (0, 7):
            bad = bytearray(whole)
            bad[place] ^= 1 << bit
            with pytest.raises(WireError):
                from_bytes(bytes(bad))


def test_something_else_with_a_right_digest_is_refused(full):
    start = to_bytes(full).split(b"\n")[0] + b"\n"
    for body in (
        b"",
        b"{}",
        b"{}\n",
        b"[]\nx",
        b'{"run": 1}\n' + to_bytes(full).split(b"\n", 3)[3],
    ):
        with pytest.raises(WireError):
            from_bytes(start + sha256(body).hexdigest().encode() + b"\n" + body)


# -- one coordinator a folder ------------------------------------------------------------------

LOCKER = """
import sys, time
from pathlib import Path
from credit_server.lock import only_server
with only_server(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_coordinator_and_the_lock_dies_with_it(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout.readline() == "in\n"
        says = f"another flower-server runs in {tmp_path}"
        with pytest.raises(CreditError, match=says), only_server(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
    with only_server(tmp_path):
        pass
    second = only_server(tmp_path)  # it was let go of
    with second, pytest.raises(CreditError, match="another flower-server"), only_server(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    says = r"cannot write .*nowhere/run\.lock: No such file"
    with pytest.raises(CreditError, match=says), only_server(tmp_path / "nowhere"):
        pass
