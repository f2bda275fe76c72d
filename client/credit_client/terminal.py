"""How the client's pages for people are laid out in a terminal: paragraphs, and aligned columns."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

WIDTH = 100


def up(epsilon: float) -> str:
    """ε to two decimals, never less than it is."""
    return f"{math.ceil(epsilon * 100) / 100:.2f}" if math.isfinite(epsilon) else "infinite"


def heading(title: str, note: str = "") -> Iterator[str]:
    """A part's title, after an empty line."""
    yield ""
    yield f"{title} ({note})" if note else title


def paragraph(words: str, mark: str = "") -> list[str]:
    """Words in lines of `WIDTH`, the first with a mark."""
    return wrapped(words, "  " + mark, " " * (2 + len(mark)))


def wrapped(words: str, first: str = "", rest: str = "", width: int = WIDTH) -> list[str]:
    """Words in lines of a width, with what each line begins with."""
    return textwrap.wrap(
        words, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def table(
    heads: Sequence[str], widths: Sequence[int], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    """Aligned columns; a head begins with < or >, its side. Long cells go on below themselves."""
    titles = [head[1:] for head in heads]
    columns = zip(titles, *rows, strict=True)
    found = [max(len(part) for cell in column for part in cell.split("\n")) for column in columns]
    sizes = [min(pair) for pair in zip(found, widths, strict=True)]
    sizes[0] = min(found[0], WIDTH - 2 * len(sizes) - sum(sizes[1:]))
    for row in (titles, *rows):
        cells = [
            [line for part in cell.split("\n") for line in wrapped(part, width=size)]
            for cell, size in zip(row, sizes, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            line = zip(parts, heads, sizes, strict=True)
            yield "  " + "  ".join(f"{part:{head[0]}{size}}" for part, head, size in line)
