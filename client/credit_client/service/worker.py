"""One worker: a process with one event loop, one model thread, and its own copy of the release."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn

from credit_client.scoring.reference import use_threads
from credit_client.service.access import Token, read_tokens
from credit_client.service.app import make_app
from credit_client.service.connection import configured
from credit_client.service.door import Door
from credit_client.service.figures import Figures
from credit_client.service.limits import Buckets
from credit_client.service.opened import Opened, open_scorer
from credit_client.service.places import open_newest
from credit_client.service.serving import Serving
from credit_client.service.settings import Settings
from credit_client.service.watch import Watch
from credit_common.command import log_to_stderr
from credit_common.errors import CreditError, WireError
from credit_common.release import Release

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a worker is made of."""

    server: uvicorn.Server
    serving: Serving
    door: Door
    watch: Watch


def assemble(settings: Settings, shared: Path, contract: str | None = None) -> Parts:
    """Open the newest release and put a worker together.

    Args:
        settings: Of the service.
        shared: Folder of the files that its workers have in common.
        contract: Digest of the one that is served; releases of others are passed by. None where
            nothing is served yet.

    Raises:
        CreditError: If a release, a token or a certificate cannot be used.
    """

    def open_(release: Release) -> Opened:
        return open_scorer(release, settings)

    def open_served(release: Release) -> Opened:
        if contract is not None and release.contract.digest != contract:
            raise WireError(
                f"{release.folder}: its contract is {release.contract.digest[:12]}, served is "
                f"{contract[:12]}; start the service anew for it"
            )
        return open_(release)

    tokens = read_tokens(settings.token_file) if settings.token_file else ()
    place, opened = open_newest(settings.release, open_served)
    figures = Figures()
    serving = Serving(opened, settings, figures)
    buckets = Buckets(shared / "buckets", rate=settings.rate, burst=settings.burst)
    door = Door(make_app(serving), settings, figures, tokens=tokens, buckets=buckets)
    server = uvicorn.Server(configured(door, settings))
    serving.draining = door.draining = lambda: server.should_exit
    figures.workers.inc()
    return Parts(server=server, serving=serving, door=door, watch=Watch(serving, place, open_))


async def serve(parts: Parts, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until the server is told to exit; what runs then is finished."""
    tasks = [
        asyncio.create_task(parts.serving.coalescer.run()),
        asyncio.create_task(parts.watch.run()),
    ]
    ready()
    try:
        await parts.server.serve(sockets=[listening])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        parts.door.close()


def run_worker(
    settings: Settings,
    listening: socket.socket,
    supervisor: Connection,
    shared: Path,
    contract: str | None,
) -> None:
    """Serve until SIGTERM, or until the supervisor is gone; the target of a process.

    Sends ("ready", the release's digest, its contract's) or ("failed", why) to the supervisor, and
    nothing else. `contract` is as for `assemble`.
    """
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C at the terminal is the supervisor's to hear
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log_to_stderr()
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # its errors show what was sent
    use_threads(settings.threads)
    try:
        parts = assemble(settings, shared, contract)
    except CreditError as error:
        supervisor.send(("failed", str(error)))
        return

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def look() -> None:
            parts.watch.look_again()
            if settings.token_file is not None:
                parts.door.tokens = _tokens_anew(settings.token_file, parts.door.tokens)

        def orphaned() -> None:
            loop.remove_reader(supervisor.fileno())
            parts.server.should_exit = True

        loop.add_signal_handler(signal.SIGHUP, look)
        loop.add_reader(supervisor.fileno(), orphaned)  # it says nothing: this is its end
        # uvicorn raises the signals that ended it anew, when it has ended and all is dealt with.
        signal.signal(signal.SIGTERM, lambda *_: None)
        release = parts.serving.opened.release
        said = ("ready", release.digest, release.contract.digest)
        await serve(parts, listening, lambda: supervisor.send(said))
        loop.remove_reader(supervisor.fileno())

    factory = parts.server.config.get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def _tokens_anew(path: Path, before: tuple[Token, ...]) -> tuple[Token, ...]:
    """The tokens as they are now; where the file is wrong, those that were."""
    try:
        return read_tokens(path)
    except CreditError as error:
        log.error("tokens NOT read anew, the former ones stay: %s", error)
        return before
