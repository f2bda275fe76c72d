"""A table of words and numbers, whatever it is written as."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table as text: title, heads, cells; `left` columns are of words, the others of numbers."""

    title: str
    heads: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]
    left: int
