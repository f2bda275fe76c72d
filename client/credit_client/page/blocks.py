"""Blocks of a page, whichever way it is shown: paragraphs, tables, lists, facts, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under heads; a head begins with < or >, the side that its column leans to.

    Attributes:
        widths: Most characters of each column in a terminal.
        folded: What a long table is called where a page folds it away and a terminal leaves it
            out; empty for one that is always there.
        dense: Whether it keeps its columns on a phone, and scrolls: numbers that are compared.
        loud: Places of rows that are marked.
    """

    heads: tuple[str, ...]
    widths: tuple[int, ...]
    rows: Sequence[tuple[str, ...]]
    folded: str = ""
    dense: bool = False
    loud: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Loud:
    """Words that nobody may miss."""

    words: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure; only a page shows it.

    Attributes:
        title: In words, above it.
        caption: How to read it.
        alt: What it shows, for who cannot see it.
        png: The picture.
        half: Whether two of its kind stand side by side where there is room.
    """

    title: str
    caption: str
    alt: str
    png: bytes
    half: bool = False


Block = str | Table | Points | Loud | Facts | Picture
"""A str is a paragraph."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A title and what stands under it."""

    title: str
    blocks: Sequence[Block]
