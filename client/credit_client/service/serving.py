"""What a worker holds while it serves: the release that scores now, its queue, its figures."""

from collections.abc import Callable

from credit_client.service.coalesce import Coalescer
from credit_client.service.figures import Figures
from credit_client.service.opened import Opened
from credit_client.service.reading import Reader
from credit_client.service.settings import Settings


class Serving:
    """The state of one worker. `swap` alone changes what scores."""

    def __init__(self, opened: Opened, settings: Settings, figures: Figures) -> None:
        self.opened = opened
        self.settings = settings
        self.figures = figures
        self.reader = Reader(opened.contract)
        self.coalescer = Coalescer(
            waiting=settings.max_waiting, deadline=settings.deadline, on_pass=figures.passed
        )
        self.draining: Callable[[], bool] = lambda: False
        self._label(opened, 1)

    def swap(self, opened: Opened) -> None:
        """Score by another release from the next request on; those that wait keep theirs."""
        self._label(self.opened, 0)
        self.opened = opened
        self._label(opened, 1)

    def _label(self, opened: Opened, workers: int) -> None:
        release = opened.release
        self.figures.release.labels(release.digest, release.folder.name).set(workers)
