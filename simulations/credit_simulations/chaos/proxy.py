"""A line between each holder and the coordinator that can be made to fail: a TCP forwarder.

It sees TLS records and can neither read nor change them. All of it runs on an event loop in a
thread of its own; its methods may be called from any other.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
CHUNK = 1 << 14
_SETTLES = 0.02
"""Seconds in which a connection that was made just before the end comes to its handler: not every
kernel resets the ones that nobody had taken yet."""


@dataclass(kw_only=True)
class _Line:
    """The state of one holder's line.

    Attributes:
        whole: Set while nothing is cut.
        delay: Seconds that each piece is held back.
        left: Bytes from the holder until the line breaks; None for no such point.
        transports: Of the connections that are open, both ends.
    """

    whole: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0.0
    left: int | None = None
    transports: set[asyncio.WriteTransport] = field(default_factory=set)


class Proxy:
    """Forwards one port of its own for each name to one address; use as a context manager.

    Args:
        target: HOST:PORT of the coordinator, which need not be up yet.
        names: Of the holders.
    """

    def __init__(self, target: str, names: Iterable[str]) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._names = list(names)
        self._lines: dict[str, _Line] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> "Proxy":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def drop(self, name: str) -> None:
        """Close all connections of a holder; it may come back at once."""
        self._soon(lambda: self._break(self._lines[name]))

    def delay(self, name: str, seconds: float, lasting: float) -> None:
        """Hold back each piece, either way, by `seconds`; for `lasting` seconds."""

        def slow() -> None:
            line = self._lines[name]
            line.delay = seconds
            self._loop.call_later(lasting, lambda: setattr(line, "delay", 0.0))

        self._soon(slow)

    def truncate(self, name: str, size: int) -> None:
        """Let `size` more bytes of a holder pass, and close its connections after them."""
        self._soon(lambda: setattr(self._lines[name], "left", size))

    def cut(self, name: str) -> None:
        """Let nothing pass either way, without a word to either end, until `heal`."""
        self._soon(lambda: self._lines[name].whole.clear())

    def heal(self, name: str) -> None:
        """Let everything pass again; what was held back goes on."""
        self._soon(lambda: self._lines[name].whole.set())

    def _soon(self, call: Callable[[], Any]) -> None:
        """Call it in the loop's thread, and wait until that is done."""

        async def called() -> None:
            call()

        asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    async def _start(self) -> None:
        for name in self._names:
            line = self._lines[name] = _Line()
            line.whole.set()
            server = await asyncio.start_server(self._accept(line), HOST, 0)
            self.addresses[name] = f"{HOST}:{server.sockets[0].getsockname()[1]}"
            self._servers.append(server)

    async def _stop(self) -> None:
        await asyncio.sleep(_SETTLES)
        for server in self._servers:
            server.close()
        for line in self._lines.values():
            self._break(line)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    def _accept(self, line: _Line) -> Callable[..., None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._loop.create_task(self._forward(line, reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return accept

    async def _forward(
        self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ends = {writer.transport}
        line.transports |= ends
        try:
            await line.whole.wait()
            back_reader, back_writer = await asyncio.open_connection(*self._target)
            ends.add(back_writer.transport)
            line.transports |= ends
            up = asyncio.ensure_future(_pump(line, reader, back_writer, self._break))
            down = asyncio.ensure_future(_pump(line, back_reader, writer, None))
            try:  # what one end closes is closed at the other
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except OSError:
            pass  # the coordinator is down: so is the line
        finally:
            for transport in ends:
                transport.abort()
            line.transports -= ends

    @staticmethod
    def _break(line: _Line) -> None:
        for transport in tuple(line.transports):
            transport.abort()


async def _pump(
    line: _Line,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    break_: Callable[[_Line], None] | None,
) -> None:
    """Forward one direction to its end; `break_` is given for what comes from the holder."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            await line.whole.wait()
            if line.delay:
                await asyncio.sleep(line.delay)
            if break_ is not None and line.left is not None:
                data = data[: line.left]
                line.left -= len(data)
            writer.write(data)
            await writer.drain()
            if break_ is not None and line.left == 0:
                line.left = None
                break_(line)
                return
