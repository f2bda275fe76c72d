"""The scoring service under load: latency of single requests, and a hot swap in the middle.

`credit-client serve` runs as it would at a merchant, one process a core. Requests come at random
times at a fixed mean rate, whether the one before is answered or not, and a request's latency
counts from the time at which it was due.
"""

import json
import select
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from credit_client.scoring.engine import Engine
from credit_client.scoring.export import export
from credit_client.scoring.reference import open_model
from credit_client.scoring.runtime import open_export
from credit_common.contract import Contract
from credit_common.errors import CreditError
from credit_common.fields import CategoryField, NumberField, TextField
from credit_common.record import OTHER, Record
from credit_common.release import Release, open_release, write_release

RATE = 20.0
"""Requests a second."""
CONNECTIONS = 16
"""Requests that are under way at once, at the most."""
SINGLES = 200
"""Single rows that the model's own time is the median of."""
READY_SECONDS = 120.0
UNLISTED = "a code that no contract has"
SWAP_SECONDS = 60.0
"""How much longer a load goes on until a newer release has answered."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a load saw.

    Attributes:
        requests: Sent in both loads.
        single_ms: The model's own time for one row, median, in this process, the service idle.
        p50_ms, p99_ms: Of the first load.
        swap_p99_ms: Of the load during which a newer release came.
        failed, failed_during_swap: Requests without a 200, in either load.
        releases: How many releases answered in the second load.
        pd_difference: Largest difference of a PD from the engine's in this process.
    """

    requests: int
    single_ms: float
    p50_ms: float
    p99_ms: float
    swap_p99_ms: float
    failed: int
    failed_during_swap: int
    releases: int
    pd_difference: float


def measure_service(
    release: Release, records: Sequence[Record], folder: Path, seconds: float, workers: int
) -> Served:
    """Serve a release, load it, and swap in another one under load.

    Args:
        release: To serve first.
        records: Sent in turn.
        folder: An empty one, for releases and exports.
        seconds: Of each of the two loads.
        workers: Processes of the service.

    Raises:
        CreditError: If the service does not come up.
    """
    homes, exports = folder / "releases", folder / "exports"
    homes.mkdir()
    exports.mkdir()
    shutil.copytree(release.folder, homes / "001")
    export(release, exports / "001", "float32")
    _another(release, folder / "002")
    export(open_release(folder / "002"), exports / "002", "float32")
    engine = open_export(release, exports / "001", 1)
    bodies = [json.dumps(as_json(engine.contract, record)).encode() for record in records]
    with _service(homes, exports, workers) as url:
        single = _single_ms(engine, records)
        calm = _load(url, bodies, seconds)
        swapped = _load(url, bodies, seconds, lambda: _publish(folder, homes))
    answered = [answer for answer in calm if answer.pd is not None]
    direct = _pds(engine, [records[answer.row] for answer in answered])
    return Served(
        requests=len(calm) + len(swapped),
        single_ms=single,
        p50_ms=_quantile(calm, 0.5),
        p99_ms=_quantile(calm, 0.99),
        swap_p99_ms=_quantile(swapped, 0.99),
        failed=sum(answer.pd is None for answer in calm),
        failed_during_swap=sum(answer.pd is None for answer in swapped),
        releases=len({answer.release for answer in swapped if answer.pd is not None}),
        pd_difference=max(abs(a.pd - b) for a, b in zip(answered, direct, strict=True) if a.pd),
    )


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One request: which record, its latency from when it was due, and its PD if it got one."""

    row: int
    ms: float
    pd: float | None
    release: str


def as_json(contract: Contract, record: Record) -> dict[str, Any]:
    """A record as a body of the service; of contracts without lists of events."""
    body: dict[str, Any] = {}
    for field in contract.fields:
        if isinstance(field, NumberField | CategoryField | TextField):
            value = record.values.get(field.name)
            body[field.name] = UNLISTED if value == OTHER else value
    return body


def _another(release: Release, folder: Path) -> None:
    """A release of the same contract with another adapter."""
    model = open_model(release)
    plain = dict(release.adapter)
    moved = {name: (array * np.float32(0.9)).astype(np.float32) for name, array in plain.items()}
    model.contract = release.contract
    write_release(folder, release.contract_text, model, moved, release.facts, dict(release.edges))


def _publish(folder: Path, homes: Path) -> None:
    (folder / "002").rename(homes / "002")


@contextmanager
def _service(homes: Path, exports: Path, workers: int) -> Iterator[str]:
    command = [
        *(sys.executable, "-m", "credit_client.cli", "serve", "--release", str(homes)),
        *("--export", str(exports / "{}"), "--port", "0", "--workers", str(workers)),
        *("--threads", "1", "--rate", "0", "--format", "json"),
    ]
    with subprocess.Popen(  # noqa: S603  this project's own command
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                assert process.stderr is not None
                raise CreditError(f"the service did not come up: {process.stderr.read()[-500:]}")
            yield str(json.loads(line)["url"])
        finally:
            process.terminate()
            process.communicate(timeout=READY_SECONDS)


def _single_ms(engine: Engine, records: Sequence[Record]) -> float:
    """Median milliseconds of one row, tokens and features counted in."""
    seconds = []
    for number in range(SINGLES + 10):
        record = records[number % len(records)]
        start = time.perf_counter()
        engine.score([record], filled=False)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[10:])


class _Client:
    """Requests over one connection for each thread that asks.

    A client that does no more than that: what it computes is taken from the service's own cores,
    and counts into every latency.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port)
        self._own = threading.local()
        self._links: list[HTTPConnection] = []

    def close(self) -> None:
        """Close all connections; no thread may ask any more."""
        for link in self._links:
            link.close()

    def score(self, body: bytes) -> tuple[float | None, str]:
        """PD and release; no PD where the answer is no 200."""
        try:
            link = self._link()
            link.request("POST", "/v1/score", body, {"Content-Type": "application/json"})
            answer = link.getresponse()
            content = answer.read()
        except (OSError, HTTPException):
            self._own.link.close()  # the next request connects anew
            return None, ""
        if answer.status != 200:
            return None, ""
        told = json.loads(content)
        return told["pd"], told["release"]

    def _link(self) -> HTTPConnection:
        link: HTTPConnection | None = getattr(self._own, "link", None)
        # An idle connection that can be read was closed by the other side.
        if link is None or link.sock is None or select.select([link.sock], [], [], 0)[0]:
            if link is not None:
                link.close()
            link = self._own.link = HTTPConnection(*self._address, timeout=30)
            self._links.append(link)
            link.connect()
            link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link


def _load(
    url: str,
    bodies: Sequence[bytes],
    seconds: float,
    halfway: Callable[[], None] | None = None,
) -> list[_Answer]:
    """Requests at random times for `seconds`, and on until a second release has answered.

    Args:
        halfway: Called after a third of them, to bring that release.
    """
    draw = np.random.default_rng(0)  # of arrival times
    client, found = _Client(url), set[str]()
    with closing(client), ThreadPoolExecutor(CONNECTIONS) as pool:
        # Connections and caches are warm.
        list(pool.map(client.score, bodies[: 2 * CONNECTIONS]))
        start = time.perf_counter()

        def one(number: int, at: float) -> _Answer:
            row = number % len(bodies)
            pd, release = client.score(bodies[row])
            ms = 1000 * (time.perf_counter() - start - at)
            found.update([release] if release else [])
            return _Answer(row=row, ms=ms, pd=pd, release=release)

        sent: list[Future[_Answer]] = []
        at, swapped = 0.0, halfway is None
        while at < seconds or (len(found) < 2 and halfway and at < seconds + SWAP_SECONDS):
            at += float(draw.exponential(1 / RATE))
            time.sleep(max(0.0, start + at - time.perf_counter()))
            if not swapped and halfway and at > seconds / 3:
                halfway()
                swapped = True
            sent.append(pool.submit(one, len(sent), at))
        return [each.result() for each in sent]


def _pds(engine: Engine, records: Sequence[Record]) -> list[float]:
    logits = engine.score(records)[:, 0].astype(np.float64)
    return [float(pd) for pd in 1 / (1 + np.exp(-logits))]


def _quantile(answers: Sequence[_Answer], share: float) -> float:
    return float(np.quantile([answer.ms for answer in answers], share))
