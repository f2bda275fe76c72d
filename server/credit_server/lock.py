"""One coordinator a folder: a lock that the kernel lets go of when its process ends, however."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from credit_common.errors import CreditError

if sys.platform != "win32":
    import fcntl

FILE = "run.lock"
CHECKPOINT = "run.checkpoint"
"""The run that is not over (see `checkpoint`, which is slower to import)."""


@contextlib.contextmanager
def only_server(home: Path) -> Iterator[None]:
    """Keep other coordinators out of a folder; Windows has no such lock, and is left to the port.

    Raises:
        CreditError: If one runs there, naming the folder, or the lock's file cannot be written.
    """
    path = home / FILE
    try:
        # Closed on exec, so that no child could keep it; never removed, since whoever opened the
        # file just before would then lock one that nobody finds.
        file = path.open("ab")
    except OSError as error:
        raise CreditError(f"cannot write {path}: {error.strerror}") from None
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CreditError(
                    f"another flower-server runs in {home.resolve()}: a folder has one at a time"
                ) from None
            except OSError as error:  # a file system without locks
                raise CreditError(f"cannot lock {path}: {error.strerror}") from None
        yield
