"""What a fetched data set is: its pinned archive, and raw files -> typed frame."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from credit_common.fetch import Pinned


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that is fetched.

    Attributes:
        pinned: Its archive, and the files that are read out of it.
        read: Content of each of these files by its name in the cache -> typed frame.
    """

    pinned: Pinned
    read: Callable[[Mapping[str, bytes]], pd.DataFrame]

    def frame(self, folder: Path) -> pd.DataFrame:
        """The frame, from the files in the folder that they were fetched to."""
        return self.read({name: (folder / name).read_bytes() for name in self.pinned.members})


def client_ids(prefix: str, frame: pd.DataFrame) -> list[str]:
    """One id for each row: the running number of the raw row.

    Example:
        >>> client_ids("german", pd.DataFrame({"age": [67, 22]}))
        ['german-000001', 'german-000002']
    """
    return [f"{prefix}-{number:06d}" for number in range(1, len(frame) + 1)]


def slug(text: str) -> str:
    """A holder's name that is safe as a file name.

    Example:
        >>> slug("car (new)"), slug("radio/television")
        ('car-new', 'radio-television')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
