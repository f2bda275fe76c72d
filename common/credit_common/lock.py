"""A lock on a file that the kernel lets go of when its process ends, however."""

import sys
from pathlib import Path
from typing import BinaryIO

from credit_common.errors import CreditError

if sys.platform != "win32":
    import fcntl


def hold(path: Path, busy: CreditError) -> BinaryIO:
    """Lock a file, made where there is none, until what is returned is closed.

    Windows has no such lock: nobody is kept out there.

    Args:
        busy: Raised if the file is locked already, in this process or another.

    Raises:
        CreditError: If the file cannot be written or locked, naming it.
    """
    try:
        # Closed on exec, so that no child could keep it; never removed, since whoever opened the
        # file just before would then lock one that nobody finds.
        file = path.open("ab")
    except OSError as error:
        raise CreditError(f"cannot write {path}: {error.strerror}") from None
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise busy from None
        except OSError as error:  # a file system without locks
            file.close()
            raise CreditError(f"cannot lock {path}: {error.strerror}") from None
    return file
