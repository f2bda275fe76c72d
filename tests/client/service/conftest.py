import asyncio
import contextlib
import json
import threading

import httpx
import numpy as np
import pytest

from credit_client.service.connection import listen
from credit_client.service.settings import Settings
from credit_client.service.worker import assemble, serve

WORDS = "paid late twice then bought shoes and a lamp on a rainy day for the new flat"
DECISION = {
    "approve_below": 0.15,
    "decline_from": 0.2,
    "bands": {"A": 0.16, "B": 0.19, "C": 1.0},
}


@pytest.fixture(scope="session")
def write_of(federation_file, write_small):
    """Writes a release of the small contract, with changes, into a folder."""

    def write(folder, seed=0, **changes):
        changes = {"decision": DECISION, **changes}
        write_small(folder, federation_file(**changes), seed)
        return folder

    return write


@pytest.fixture(scope="session")
def release(write_of, tmp_path_factory):
    """A release that reads texts, on the tiny BERT."""
    return write_of(tmp_path_factory.mktemp("releases") / "release")


@pytest.fixture(scope="session")
def wide_release(write_of, tmp_path_factory):
    """One that reads numbers and categories alone, which is quick."""
    folder = tmp_path_factory.mktemp("releases") / "release"
    return write_of(folder, model={"train": ["wide"]})


class Here:
    """A worker of this process on loopback: its parts, its address, and a client."""

    def __init__(self, parts, port, thread):
        self.parts, self.port, self.thread = parts, port, thread
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def post(self, record, **query):
        return self.client.post("/v1/score", json=record, params=query)

    def figure(self, name, **labels):
        """A metric's value, summed over all other labels."""
        total = 0.0
        for metric in self.parts.serving.figures._registry.collect():
            for sample in metric.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total


@contextlib.contextmanager
def serving(folder, tmp_path, **changes):
    """The real worker, on a real socket, in a thread."""
    settings = Settings(**{"release": folder, "port": 0, "rate": 0, "grace_seconds": 20, **changes})
    listening = listen(settings)
    port = listening.getsockname()[1]
    parts = assemble(settings, tmp_path)
    ready = threading.Event()
    factory = parts.server.config.get_loop_factory()  # the loop that workers run on

    def run():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(parts, listening, ready.set))

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    here = Here(parts, port, thread)
    try:
        yield here
    finally:
        here.client.close()
        parts.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def serve_here(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda folder, **changes: stack.enter_context(serving(folder, tmp_path, **changes))


@pytest.fixture(scope="session")
def text_service(release, tmp_path_factory):
    """One service for all tests that change nothing in it."""
    with serving(release, tmp_path_factory.mktemp("shared")) as here:
        yield here


@pytest.fixture(scope="session")
def applicants():
    """Records as a client sends them."""

    def make(n, seed=0):
        draw = np.random.default_rng(seed)
        return [
            {
                "age": round(float(draw.uniform(18, 100)), 1),
                "income": round(float(draw.uniform(0, 100)), 2),
                "tenure": int(draw.integers(0, 40)),
                "home": str(draw.choice(["P", "R"])),
                "job": str(draw.choice(["clerk", "driver"])),
                "note": " ".join(draw.choice(WORDS.split(), int(draw.integers(0, 30)))),
                "at": "2025-01-02",
                "orders": [{"time": "2025-01-01", "value": float(draw.integers(1, 90))}],
            }
            for _ in range(n)
        ]

    return make


@pytest.fixture(scope="session")
def as_row():
    """A record as a row of a merchant's CSV."""

    def make(record, user):
        cells = {"user": user, "sex": "f", **record}
        cells["orders"] = json.dumps(record["orders"])
        return cells

    return make
