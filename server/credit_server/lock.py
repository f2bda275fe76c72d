"""One coordinator a folder: a lock that the kernel lets go of when its process ends, however."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from credit_common.errors import CreditError
from credit_common.lock import hold

FILE = "run.lock"
CHECKPOINT = "run.checkpoint"
"""The run that is not over (see `checkpoint`, which is slower to import)."""


@contextlib.contextmanager
def only_server(home: Path) -> Iterator[None]:
    """Keep other coordinators out of a folder; Windows has no such lock, and is left to the port.

    Raises:
        CreditError: If one runs there, naming the folder, or the lock's file cannot be written.
    """
    busy = f"another flower-server runs in {home.resolve()}: a folder has one at a time"
    with hold(home / FILE, CreditError(busy)):
        yield
