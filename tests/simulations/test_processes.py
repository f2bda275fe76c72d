"""Children are heard, missed when they die, and ended, whatever happens to their parent."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from credit_common.errors import CreditError
from credit_simulations import processes
from credit_simulations.processes import Children, ended_by_signals

LASTS = 'import time; print(\'{"event": "up"}\', flush=True); time.sleep(60)'
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + LASTS
WATCHES_STDIN = 'import sys; print(\'{"event": "up"}\', flush=True); sys.stdin.read()'


def say(*lines: str, code: int = 0) -> list[str]:
    said = "".join(f"print({line!r}, flush=True)\n" for line in lines)
    return python(f"{said}raise SystemExit({code})")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # gone before, or while it was read
        return False


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def test_lines_arrive_as_events_of_their_child_in_its_order(tmp_path: Path) -> None:
    with Children() as children:
        for name in ("a", "b"):
            lines = ('{"event": "up", "n": 1}', '{"event": "round", "n": 2}', '{"event": "done"}')
            children.start(name, say(*lines), tmp_path / name)
        heard = [(e.who, e.what, e.line.get("n")) for e in children.events()]
    for name in ("a", "b"):
        own = [(what, n) for who, what, n in heard if who == name]
        assert own == [("up", 1), ("round", 2), ("done", None)]


def test_a_child_started_in_the_midst_is_waited_for(tmp_path: Path) -> None:
    heard = []
    with Children() as children:
        children.start("first", say('{"event": "up"}', '{"event": "done"}'), tmp_path / "first")
        for event in children.events():
            heard.append((event.who, event.what))
            if event.what == "up":
                children.start("second", say('{"event": "done"}'), tmp_path / "second")
    assert sorted(heard) == [("first", "done"), ("first", "up"), ("second", "done")]


@pytest.mark.parametrize("line", ["a warning", "[1, 2]", '"event"', '{"event": 3}', "{", "NaN"])
def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path, line: str) -> None:
    with Children() as children:
        children.start("one", say(line, '{"event": "done"}'), tmp_path / "log")
        assert [event.what for event in children.events()] == ["done"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (say('{"event": "up"}', code=3), "shop-1 ended with code 3 before it was done"),
        (say(), "shop-1 ended with code 0 before it was done"),
        (say('{"event": "failed", "reason": "no such shard"}'), "shop-1 failed: no such shard"),
        (python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "by signal 9"),
    ],
)
def test_a_child_that_does_not_end_well_is_named_with_its_log(
    tmp_path: Path, command: list[str], says: str
) -> None:
    log = tmp_path / "client.log"
    with Children() as children:
        children.start("shop-1", command, log)
        with pytest.raises(CreditError) as caught:
            list(children.events())
    assert says in str(caught.value)
    assert str(log) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_was_killed_is_missed_by_nobody_and_its_name_is_free(tmp_path: Path) -> None:
    with Children() as children:
        children.start("one", python(LASTS), tmp_path / "log")
        children.start("two", python(LASTS), tmp_path / "log")
        children.until("two", "up", 30)
        pid = children._children["one"].process.pid
        children.kill("one")
        assert not alive(pid)
        children.start(
            "one", say('{"event": "back", "n": 1}', '{"event": "done"}'), tmp_path / "log"
        )
        assert children.until("one", "back", 30, n=1).line["n"] == 1
        children.kill("two")
        assert [(e.who, e.what) for e in children.events(30)] == [("one", "done")]
        with pytest.raises(CreditError, match="one ended without up"):
            children.until("one", "up", 30)


def test_a_child_that_is_held_up_is_told_to_go_on(tmp_path: Path) -> None:
    count = "import itertools, time\nfor n in itertools.count():\n"
    count += '    print(\'{"event": "n"}\', flush=True); time.sleep(0.02)'
    with Children() as children:
        children.start("one", python(count), tmp_path / "log")
        children.until("one", "n", 30)
        children.send("one", signal.SIGSTOP)
        with pytest.raises(CreditError, match=r"not over within 0\.3 s: one"):
            for _ in children.events(0.3):
                pass
        children.send("one", signal.SIGCONT)
        children.until("one", "n", 30)


def test_when_one_dies_the_others_are_ended(tmp_path: Path) -> None:
    with Children() as children:
        children.start("lasts", python(LASTS), tmp_path / "lasts")
        children.start("dies", say(code=1), tmp_path / "dies")
        with pytest.raises(CreditError, match="dies"):
            list(children.events())
        pids = [child.process.pid for child in children._children.values()]
    assert not any(alive(pid) for pid in pids)


def test_what_a_child_says_on_stderr_is_in_its_log_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("from before\n")
    with Children() as children:
        noise = "import sys; print('trouble', file=sys.stderr); print('{\"event\": \"done\"}')"
        children.start("one", python(noise), log)
        list(children.events())
    assert log.read_text() == "from before\ntrouble\n"
    assert capfd.readouterr() == ("", "")


def test_children_compute_on_one_thread_in_sessions_of_their_own(tmp_path: Path) -> None:
    tell = (
        "import json, os; print(json.dumps({'event': 'done', 'sid': os.getsid(0), "
        "'omp': os.environ['OMP_NUM_THREADS']}))"
    )
    with Children() as children:
        children.start("one", python(tell), tmp_path / "log")
        (event,) = children.events()
    assert event.line["omp"] == "1"
    assert event.line["sid"] != os.getsid(0)


def test_a_child_that_ignores_the_request_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.3)
    with Children() as children:
        children.start("stubborn", python(STUBBORN), tmp_path / "log")
        next(children.events())
        pid = children._children["stubborn"].process.pid
    assert not alive(pid)


def test_stopping_twice_and_stopping_what_has_ended_is_nothing(tmp_path: Path) -> None:
    with Children() as children:
        children.start("one", say('{"event": "done"}'), tmp_path / "log")
        list(children.events())
        children.stop()


PARENT = """
import sys
from pathlib import Path
from credit_simulations.processes import Children, ended_by_signals
try:
    with ended_by_signals(), Children() as children:
        for name in ("a", "b"):
            children.start(name, [sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]) / name)
        up = 0
        for event in children.events():
            up += 1
            if up == 2:
                print(*[child.process.pid for child in children._children.values()], flush=True)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def parent(tmp_path: Path, child: str) -> "tuple[subprocess.Popen[str], list[int]]":
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, child, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    return process, pids


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_ends_its_children(tmp_path: Path, number: int) -> None:
    process, pids = parent(tmp_path, LASTS)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert errors == ""
    assert not any(alive(pid) for pid in pids)


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path) -> None:
    process, pids = parent(tmp_path, STUBBORN)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # it waits for children that do not want to end
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert time.monotonic() - start < 3
    assert not any(alive(pid) for pid in pids)


def test_children_that_watch_stdin_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process, pids = parent(tmp_path, WATCHES_STDIN)
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.communicate()
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_an_error_that_an_interrupt_became_is_an_interrupt() -> None:
    def half_imported() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("half a library") from None

    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        half_imported()


def test_an_interrupt_that_was_swallowed_still_counts_at_the_end() -> None:
    def deaf() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        deaf()


def test_other_errors_and_the_handlers_of_before_stay_as_they_were() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ImportError), ended_by_signals():
        raise ImportError("no such library")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_waiting_for_events_does_not_hold_up_a_signal(tmp_path: Path) -> None:
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    start = time.monotonic()
    with Children() as children:
        children.start("lasts", python("import time; time.sleep(60)"), tmp_path / "log")
        timer.start()
        with pytest.raises(KeyboardInterrupt), ended_by_signals():
            list(children.events())
    assert time.monotonic() - start < 5


KILLS_ITSELF = (
    'import os, signal; print(\'{"event": "up"}\', flush=True); '
    "os.kill(os.getpid(), signal.SIGKILL)"
)


def test_a_mortal_child_that_dies_is_told_and_may_be_started_again(tmp_path: Path) -> None:
    heard = []
    with Children(mortal=True) as children:
        children.start("one", python(KILLS_ITSELF), tmp_path / "one")
        for event in children.events(30):
            heard.append(event.what)
            if heard == ["up", "killed"]:
                children.start("one", say('{"event": "done"}'), tmp_path / "one")
    assert heard == ["up", "killed", "done"]


def test_a_mortal_child_that_is_not_started_again_is_not_waited_for(tmp_path: Path) -> None:
    with Children(mortal=True) as children:
        children.start("one", python(KILLS_ITSELF), tmp_path / "one")
        assert [event.what for event in children.events(30)] == ["up", "killed"]


def test_a_mortal_child_that_ends_otherwise_is_an_error_still(tmp_path: Path) -> None:
    with Children(mortal=True) as children:
        children.start("one", say(code=3), tmp_path / "one")
        with pytest.raises(CreditError, match="one ended with code 3"):
            list(children.events(30))


def test_what_the_parent_posts_comes_among_the_events(tmp_path: Path) -> None:
    with Children() as children:
        children.start("one", say('{"event": "up"}', '{"event": "done"}'), tmp_path / "one")
        children.post("parent", "due")
        heard = [(event.who, event.what) for event in children.events(30)]
    assert sorted(heard) == [("one", "done"), ("one", "up"), ("parent", "due")]
