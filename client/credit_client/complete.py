"""A file that appears when it is complete, or not at all, for its owner's eyes alone."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from credit_common.errors import ShardError


@contextmanager
def complete(path: Path, what: str) -> Iterator[TextIO]:
    """A file beside `path` that takes its place when the block ends without an error.

    Args:
        path: Its place; a file that is there is replaced.
        what: What is written, for an error.

    Raises:
        ShardError: If it cannot be written there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
        draft = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                yield file
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ShardError(f"cannot write {what} to {path}: {error.strerror}") from None


def check_place(path: Path, shard: Path, release: Path, overwrite: bool) -> None:
    """Refuse a place that loses something, before the work is done.

    Raises:
        ShardError: If it is the shard, lies in the release, exists, or cannot be written.
    """
    if path.exists():
        if shard.exists() and path.samefile(shard):
            raise ShardError(f"{path}: is the shard itself, and would be lost")
        if not overwrite:
            raise ShardError(f"{path}: exists already; --overwrite replaces it")
        if not path.is_file():
            raise ShardError(f"{path}: is not a file, and is not replaced")
    if path.resolve().is_relative_to(release.resolve()):
        raise ShardError(f"{path}: is inside the release, which would no longer be one")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ShardError(f"{path}: its folder does not exist or cannot be written to")
