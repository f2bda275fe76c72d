"""Commands as child processes: started, listened to line by line, ended together.

A child writes one JSON object a line to stdout, with an "event" in each; the last one is "done" or
"failed". Its stderr goes to a log file. Where children are to be killed, as in `chaos`, a death by
SIGKILL is an event, and a child may be started again under its name.

Children get sessions of their own, so that a terminal's Ctrl-C reaches their parent alone, which
ends them. Their stdin is a pipe: when the parent is gone, however it went, the pipe closes, and a
child that watches it ends too.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess  # commands are lists of arguments, without a shell
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from credit_common.errors import CreditError

GRACE_SECONDS = 5.0
"""From the request to end until the kill."""
SHOWN = 300
"""Characters of a log's last line that an error quotes."""
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "RAYON")
}  # children share the cores; two threads each slow one another tenfold


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a child.

    Attributes:
        who: The child's name.
        what: The line's "event".
        line: The whole object.
    """

    who: str
    what: str
    line: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    log: Path


class Children:
    """Running commands by name; leaving the context ends them all.

    Args:
        environment: Variables that they get beside this process' own.
        mortal: Whether a child that is ended by SIGKILL is told as an event "killed", instead of
            as an error. It is waited for no longer unless it is started again.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, mortal: bool = False
    ) -> None:
        self._mortal = mortal
        self._environment = {**ONE_THREAD, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._children: dict[str, _Child] = {}
        self._past: list[_Child] = []
        self._lines: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a command under a name; its stderr is added to the file `log`."""
        if name in self._children:
            self._past.append(self._children[name])
        with log.open("ab") as errors:
            process = subprocess.Popen(  # noqa: S603  # this project's own commands
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._children[name] = _Child(process=process, log=log)
        threading.Thread(target=self._listen, args=(name, process), daemon=True).start()

    def kill(self, name: str) -> None:
        """End a child by SIGKILL, as the kernel would that is out of memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._children[name].process.pid, signal.SIGKILL)

    def post(self, who: str, what: str) -> None:
        """Put an event of the parent's own among the children's; from any thread."""
        self._lines.put((who, json.dumps({"event": what}).encode()))

    def events(self) -> Iterator[Event]:
        """What the children say, in the order in which it arrives, until all have ended.

        Raises:
            CreditError: If a child says "failed", or ends before it said "done"; names child,
                reason and log.
        """
        done: set[str] = set()
        ended: set[str] = set()
        while ended != set(self._children):
            name, text = self._lines.get()
            if text is not None:
                event = _parsed(name, text)
                if event is None:
                    continue  # a library that prints to stdout is no event
                if event.what == "failed":
                    raise self._failure(name, str(event.line.get("reason", "")))
                if event.what == "done":
                    done.add(name)
                yield event
            elif name in done:
                ended.add(name)
            elif self._mortal and self._children[name].process.wait() == -signal.SIGKILL:
                dead = self._children[name]
                yield Event(who=name, what="killed", line={})
                if self._children[name] is dead:
                    ended.add(name)
            else:
                raise self._failure(name, "")

    def stop(self) -> None:
        """End all children: ask, wait, then kill."""
        running = [child.process for child in (*self._past, *self._children.values())]
        for process in running:
            process.terminate()
        try:
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and any(p.poll() is None for p in running):
                time.sleep(0.05)
        finally:  # also when the user presses Ctrl-C once more
            for process in running:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert process.stdin is not None
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def _listen(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((name, line))
        self._lines.put((name, None))

    def _failure(self, name: str, reason: str) -> CreditError:
        child = self._children[name]
        if reason:
            return CreditError(f"{name} failed: {reason}; its log: {child.log}")
        with contextlib.suppress(subprocess.TimeoutExpired):  # it closed stdout and goes on
            child.process.wait(GRACE_SECONDS)
        code = child.process.returncode
        how = f"was ended by signal {-code}" if code and code < 0 else f"ended with code {code}"
        lines = child.log.read_text("utf-8", errors="replace").strip().splitlines()
        said = f" ({lines[-1][:SHOWN]})" if lines else ""
        return CreditError(f"{name} {how} before it was done{said}; its log: {child.log}")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM interrupts like Ctrl-C, and an interrupt stays one.

    Libraries turn a KeyboardInterrupt in the midst of their work, of an import above all, into
    errors of other kinds; those come out as the interrupt that caused them.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    except Exception:  # whatever it is, if it followed an interrupt it is one
        if not seen:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if seen:
        raise KeyboardInterrupt


def _parsed(name: str, text: bytes) -> Event | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("event"), str):
        return None
    return Event(who=name, what=line["event"], line=line)
