"""The process that starts the workers, starts dead ones anew, and ends them in order.

It never loads torch, and holds the listening socket: while a worker is away, the others answer.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from credit_client.service.access import read_tokens
from credit_client.service.connection import listen, tls_context
from credit_client.service.figures import DIRECTORY
from credit_client.service.places import complete
from credit_client.service.settings import Settings
from credit_common.command import log_to_stderr
from credit_common.errors import CreditError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a dead worker is started anew; doubled where it dies before it is ready."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)

Tell = Callable[..., None]
"""Called with "ready" and facts for people."""


def supervise(settings: Settings, tell: Tell) -> int:
    """Serve until a signal; returns 0 after SIGTERM.

    Raises:
        CreditError: If the service cannot start.
        KeyboardInterrupt: After Ctrl-C, when all has ended.
    """
    if settings.token_file is not None:
        read_tokens(settings.token_file)
    if settings.tls is not None:
        tls_context(settings.tls)
    complete(settings.release)
    shared = Path(tempfile.mkdtemp(prefix="credit-serve-"))  # 0700
    with listen(settings) as listening, _environment(DIRECTORY, str(shared)):
        log_to_stderr()
        try:
            return _Supervisor(settings, listening, shared, tell).run()
        finally:
            shutil.rmtree(shared, ignore_errors=True)


class _Worker:
    """A process and the channel that it says it is ready by."""

    def __init__(
        self, settings: Settings, listening: socket.socket, shared: Path, contract: str | None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel, its = context.Pipe()
        own = (settings, listening, its, shared, contract)
        self.process = context.Process(target=_work, args=own)
        self.process.start()
        its.close()  # so that either side sees the other's end
        self.digest: str | None = None
        """Of the release that it began with, once it is ready."""

    def said(self) -> tuple[str, ...] | None:
        """What it has said since, if anything."""
        with suppress(EOFError, OSError):
            if self.channel.poll():
                message: tuple[str, ...] = self.channel.recv()
                return message
        return None

    def end(self) -> None:
        self.process.join()
        self.channel.close()
        assert self.process.pid is not None
        # Its figures count on, but for those of now.
        mark_process_dead(self.process.pid)  # type: ignore[no-untyped-call]
        self.process.close()


def _work(
    settings: Settings,
    listening: socket.socket,
    channel: Connection,
    shared: Path,
    contract: str | None,
) -> None:
    from credit_client.service.worker import run_worker

    run_worker(settings, listening, channel, shared, contract)


class _Supervisor:
    def __init__(
        self, settings: Settings, listening: socket.socket, shared: Path, tell: Tell
    ) -> None:
        self._settings, self._listening, self._shared = settings, listening, shared
        self._tell = tell
        self._workers: list[_Worker] = []
        self._contract: str | None = None  # of the first release that a worker had ready
        self._started = False
        self._pause = FIRST_PAUSE
        self._due: list[float] = []  # when dead workers are started anew

    def run(self) -> int:
        with _signals() as heard:
            try:
                # The first alone: the others, and those that take a dead one's place, are to serve
                # its contract, whatever lies there by then.
                self._start()
                ended_by = self._watch(heard)
            finally:
                self._stop(heard)
        if ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        return 0

    def _start(self) -> None:
        worker = _Worker(self._settings, self._listening, self._shared, self._contract)
        self._workers.append(worker)

    def _watch(self, heard: int) -> int:
        """Until a signal that ends the service; returns which."""
        while True:
            now = time.monotonic()
            for _ in [due for due in self._due if due <= now]:
                self._start()
            self._due = [due for due in self._due if due > now]
            timeout = min(self._due) - now if self._due else None
            new = [worker.channel for worker in self._workers if worker.digest is None]
            ends = [worker.process.sentinel for worker in self._workers]
            if heard in wait([heard, *new, *ends], timeout):
                for number in os.read(heard, 64):
                    if number != signal.SIGHUP:
                        return number
                    self._look()
            for worker in list(self._workers):
                self._hear(worker)

    def _look(self) -> None:
        for worker in self._workers:
            if worker.digest is not None and worker.process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGHUP)

    def _hear(self, worker: _Worker) -> None:
        failed = ""
        said = worker.said() if worker.digest is None else None
        if said is not None and said[0] == "ready":
            worker.digest = said[1]
            self._pause = FIRST_PAUSE
            if self._contract is None:
                self._contract = said[2]
                for _ in range(self._settings.workers - 1):
                    self._start()
            ready = [own for own in self._workers if own.digest is not None]
            if not self._started and len(ready) == self._settings.workers:
                self._started = True
                self._tell_ready(worker.digest)
        elif said is not None:
            failed = said[1]
        if worker.process.is_alive() and not failed:
            return
        self._workers.remove(worker)
        worker.process.join()
        code = worker.process.exitcode
        was_ready = worker.digest is not None
        worker.end()
        why = failed or f"it ended with exit code {code}"
        if not self._started:
            raise CreditError(failed or f"a worker could not start: {why}")
        self._due.append(time.monotonic() + self._pause)
        log.error("a worker is lost, and started anew in %.1f s: %s", self._pause, why)
        if not was_ready:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _tell_ready(self, digest: str) -> None:
        host, port = self._listening.getsockname()[:2]
        scheme = "http" if self._settings.tls is None else "https"
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        self._tell("ready", url=url, workers=self._settings.workers, release=digest)

    def _stop(self, heard: int) -> None:
        """End all workers: what runs is finished, until the grace is over or Ctrl-C comes again."""
        until = time.monotonic() + self._settings.grace_seconds + 5
        self._listening.close()
        for worker in self._workers:
            worker.process.terminate()
        while alive := [w.process for w in self._workers if w.process.is_alive()]:
            left = until - time.monotonic()
            found = wait([heard, *(process.sentinel for process in alive)], max(left, 0))
            again = heard in found and signal.SIGINT in os.read(heard, 64)
            if left <= 0 or again:
                for process in alive:
                    process.kill()
                break
        for worker in self._workers:
            worker.end()


@contextmanager
def _signals() -> Iterator[int]:
    """A file descriptor on which the numbers of signals arrive."""
    hears, says = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def hear(number: int, _: object) -> None:
        with suppress(BlockingIOError):
            os.write(says, bytes([number]))

    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield hears
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(hears)
        os.close(says)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
