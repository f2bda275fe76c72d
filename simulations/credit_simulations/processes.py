"""Commands as child processes: started, listened to line by line, ended together.

A child writes one JSON object a line to stdout, with an "event" in each; the last one is "done" or
"failed". Its stderr goes to a log file. Children get sessions of their own, so that a terminal's
Ctrl-C reaches their parent alone, which ends them. Their stdin is a pipe: when the parent is gone,
however it went, the pipe closes, and a child that watches it ends too.

Where children are there to die, as in `chaos`, a death by SIGKILL is an event, not an error.
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
from typing import Any, TypeAlias

from credit_common.errors import CreditError

GRACE_SECONDS = 5.0
"""From the request to end until the kill."""
SHOWN = 300
"""Characters of a log's last line that an error quotes."""
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "RAYON")
}  # children share the cores; two threads each slow one another tenfold

Process: TypeAlias = "subprocess.Popen[bytes]"


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
    process: Process
    log: Path


class Children:
    """Running commands by name; leaving the context ends them all.

    Args:
        environment: Variables that they get beside this process' own.
        mortal: Whether a child that ends by SIGKILL, of its own or another's doing, is told as an
            event "killed" instead of as an error; it is waited for no longer.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, mortal: bool = False
    ) -> None:
        self._mortal = mortal
        self._environment = {**ONE_THREAD, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._children: dict[str, _Child] = {}
        self._lines: queue.SimpleQueue[tuple[str, Process | None, bytes | None]] = (
            queue.SimpleQueue()
        )
        self._done: set[str] = set()
        self._ended: set[str] = set()

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a command under a name; its stderr is added to the file `log`.

        The name of one that was killed, or has ended, can be given again.
        """
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
        self._done.discard(name)
        self._ended.discard(name)
        threading.Thread(target=self._listen, args=(name, process), daemon=True).start()

    def events(self, seconds: float | None = None) -> Iterator[Event]:
        """What the children say, in the order in which it arrives, until all have ended.

        It can be left and asked for again: each event comes once.

        Args:
            seconds: How long to listen at most; None listens for ever.

        Raises:
            CreditError: If a child says "failed", or ends before it said "done"; names child,
                reason and log. If it is not over in time.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._ended != set(self._children):
            try:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                name, process, text = self._lines.get(timeout=left)
            except queue.Empty:
                going = ", ".join(sorted(set(self._children) - self._ended))
                raise CreditError(f"not over within {seconds:g} s: {going}") from None
            if text is not None:
                event = _parsed(name, text)
                if event is None:
                    continue  # a library that prints to stdout is no event
                if event.what == "failed":
                    raise self._failure(name, str(event.line.get("reason", "")))
                if event.what == "done":
                    self._done.add(name)
                yield event
            elif name not in self._children or self._children[name].process is not process:
                continue  # it was killed
            elif name in self._done:
                self._ended.add(name)
            elif self._mortal and process.wait() == -signal.SIGKILL:
                self.kill(name)  # what is left of it is put away
                yield Event(who=name, what="killed", line={})
            else:
                raise self._failure(name, "")

    def until(self, who: str, what: str, seconds: float, **facts: object) -> Event:
        """The next event of a child that has these facts; those before it are passed over.

        Raises:
            CreditError: As in `events`, and if all have ended without it.
        """
        for event in self.events(seconds):
            if (event.who, event.what) == (who, what) and facts.items() <= event.line.items():
                return event
        raise CreditError(f"{who} ended without {what}")

    def post(self, who: str, what: str) -> None:
        """Put an event among those of the children; from any thread."""
        self._lines.put((who, None, json.dumps({"event": what}).encode()))

    def send(self, name: str, number: int) -> None:
        """Send a signal to a child, to hold it up (SIGSTOP, SIGCONT) or to ask something of it."""
        self._children[name].process.send_signal(number)

    def kill(self, name: str) -> None:
        """End a child by SIGKILL, as a power cut does; nobody waits for it to be done any more."""
        process = self._children.pop(name).process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._ended.discard(name)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()

    def stop(self) -> None:
        """End all children: ask, wait, then kill."""
        running = [child.process for child in self._children.values()]
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

    def _listen(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((name, process, line))
        self._lines.put((name, process, None))

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
