"""Where releases lie: one folder, or a folder of folders by number (001, 002, ...)."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from credit_common.errors import CreditError, WireError
from credit_common.release import MANIFEST, Release, open_release

T = TypeVar("T")
_NUMBER = re.compile(r"\d{3,9}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A release in its folder, as its files are now: other files are another release."""

    folder: Path
    number: int
    files: tuple[tuple[str, int, int, int], ...]


def places(path: Path) -> Iterator[Place]:
    """Complete releases, the newest first: the one that `path` is, or those in it by number."""
    single = _place(path, 0)
    if single is not None:
        yield single
        return
    try:
        numbered = [child for child in path.iterdir() if _NUMBER.fullmatch(child.name)]
    except OSError:
        return
    for child in sorted(numbered, key=lambda child: int(child.name), reverse=True):
        place = _place(child, int(child.name))
        if place is not None:
            yield place


def complete(path: Path) -> list[Place]:
    """Complete releases, the newest first.

    Raises:
        WireError: If there is none.
    """
    found = list(places(path))
    if not found:
        what = "is neither a release nor a folder of releases (001, 002, ...)"
        raise WireError(f"--release {path}: {what if path.is_dir() else 'is no folder'}")
    return found


def open_newest(path: Path, open_: Callable[[Release], T]) -> tuple[Place, T]:
    """The newest release that can be opened; broken ones that are newer are told and passed by.

    Raises:
        CreditError: If there is none, or the only one cannot be opened.
    """
    found = complete(path)
    for place in found:
        try:
            return place, open_(open_release(place.folder))
        except CreditError as error:
            if place is found[-1]:
                raise
            log.warning("passed by: %s", error)
    raise AssertionError("found is not empty")


def _place(folder: Path, number: int) -> Place | None:
    """The folder if it is a release that looks complete; its files are not opened."""
    files = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                stat = entry.stat()
                files.append((entry.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    except OSError:  # no folder, or one that goes away just now
        return None
    if MANIFEST not in (name for name, *_ in files):
        return None
    return Place(folder=folder, number=number, files=tuple(sorted(files)))
