"""What the service counts, for Prometheus: requests, rows, passes, releases; no value, no score.

With several workers each writes its own files in PROMETHEUS_MULTIPROC_DIR, and any of them tells
the sums.
"""

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Figures:
    """The metrics of one worker."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter(
            "credit_requests",
            "Requests by route, status and client",
            ["route", "status", "client"],
            registry=own,
        )
        self.seconds = Histogram(
            "credit_request_seconds",
            "From the head of a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.rows = Counter("credit_rows", "Records by outcome", ["outcome"], registry=own)
        self.passes = Counter("credit_forward_passes", "Passes of the model", registry=own)
        self.pass_rows = Histogram(
            "credit_pass_rows", "Rows of a pass, as of those that wait", buckets=_ROWS, registry=own
        )
        self.pass_seconds = Histogram(
            "credit_pass_seconds", "Time of a pass", buckets=_SECONDS, registry=own
        )
        self.waiting = Gauge(
            "credit_waiting_rows",
            "Rows that wait for the model: a record, and a field of it whose share is asked for",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.release = Gauge(
            "credit_release",
            "Workers that score by a release",
            ["digest", "folder"],
            multiprocess_mode="livesum",
            registry=own,
        )
        self.swaps = Counter(
            "credit_swaps", "Newer releases, by what became of them", ["outcome"], registry=own
        )
        self.workers = Counter("credit_workers_started", "Workers, anew ones too", registry=own)

    def passed(self, rows: int, seconds: float, waiting: int) -> None:
        """A pass of the model is done, and so many rows wait for the next."""
        self.waiting.set(waiting)
        self.passes.inc()
        self.pass_rows.observe(rows)
        self.pass_seconds.observe(seconds)

    def text(self) -> bytes:
        """All workers' figures in Prometheus' text format."""
        if DIRECTORY not in os.environ:
            return generate_latest(self._registry)
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)
