"""A file that appears when it is complete, or not at all, for its owner's eyes alone."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from credit_common.errors import ShardError


@contextmanager
def draft_of(path: Path, what: str) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends without an error.

    Args:
        path: Its place; a file that is there is replaced.
        what: What is written, for an error.

    Raises:
        ShardError: If it cannot be written there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ShardError(f"cannot write {what} to {path}: {error.strerror}") from None
