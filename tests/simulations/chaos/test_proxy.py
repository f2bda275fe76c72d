"""The line between a holder and the coordinator: it forwards, and fails when it is told to."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from credit_simulations.chaos.proxy import Proxy

SOON, LATE = 5.0, 0.3


class Echo:
    """A server that sends back what it gets, and keeps count of it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.got = b""
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.got += data
                    connection.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address, ["a", "b"]) as made:
        yield made


def connect(proxy: Proxy, name: str) -> socket.socket:
    host, _, port = proxy.addresses[name].rpartition(":")
    connection = socket.create_connection((host, int(port)), SOON)
    connection.settimeout(SOON)
    return connection


def told(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    got = b""
    while len(got) < len(words):
        more = connection.recv(1 << 16)
        if not more:
            return got
        got += more
    return got


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_bytes_pass_both_ways_as_they_are(proxy: Proxy) -> None:
    words = bytes(range(256)) * 4000
    with connect(proxy, "a") as a, connect(proxy, "b") as b:
        assert told(a, words) == words
        assert told(b, b"hello") == b"hello"


def test_a_dropped_line_is_closed_at_once_the_other_stays_and_it_may_come_back(
    proxy: Proxy,
) -> None:
    with connect(proxy, "a") as a, connect(proxy, "b") as b:
        assert told(a, b"x") == told(b, b"x") == b"x"
        proxy.drop("a")
        assert is_closed(a)
        assert told(b, b"y") == b"y"
        with connect(proxy, "a") as again:
            assert told(again, b"z") == b"z"


def test_a_truncated_line_lets_so_many_bytes_pass_and_breaks_once(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy, "a") as a:
        proxy.truncate("a", 7)
        a.sendall(b"0123456789")
        while not is_closed(a):
            pass  # the echo of what passed may come first
    until = time.monotonic() + SOON  # the server's thread may be later than the end of the line
    while len(echo.got) < 7 and time.monotonic() < until:
        time.sleep(0.01)
    assert echo.got == b"0123456"
    with connect(proxy, "a") as a:
        assert told(a, b"0123456789") == b"0123456789"


def test_a_slow_line_delivers_late_and_is_quick_again(proxy: Proxy) -> None:
    with connect(proxy, "a") as a:
        proxy.delay("a", LATE, lasting=0.1)
        start = time.monotonic()
        assert told(a, b"x") == b"x"
        assert time.monotonic() - start >= LATE
        start = time.monotonic()
        assert told(a, b"y") == b"y"
        assert time.monotonic() - start < LATE


def test_a_cut_line_is_silent_and_whole_again_when_it_is_healed(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy, "a") as a, connect(proxy, "b") as b:
        assert told(a, b"x") == b"x"
        proxy.cut("a")
        a.sendall(b"held")
        a.settimeout(LATE)
        with pytest.raises(TimeoutError):
            a.recv(1)
        assert told(b, b"passes") == b"passes"
        assert b"held" not in echo.got
        proxy.heal("a")
        a.settimeout(SOON)
        assert a.recv(4) == b"held"


def test_a_line_to_nobody_is_closed() -> None:
    with socket.socket() as silent:  # never listens, and keeps the port from others
        silent.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        with Proxy(nobody, ["a"]) as proxy, connect(proxy, "a") as a:
            assert is_closed(a)


def test_the_end_closes_what_is_open(echo: Echo) -> None:
    with Proxy(echo.address, ["a"]) as proxy:
        a = connect(proxy, "a")
        assert told(a, b"x") == b"x"
        proxy.cut("a")
        held = connect(proxy, "a")
    with a, held:
        assert is_closed(a)
        assert is_closed(held)
