"""HTML from plain words: everything that comes from a file is text, and never markup."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from credit_simulations.results.drawing import Plot
from credit_simulations.results.grid import Grid
from credit_simulations.results.sentences import shown


def words(text: str) -> str:
    """Escaped, on one line, without characters that cannot be shown."""
    return escape(shown(text))


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of a class if it has one."""
    return f'<p class="{kind}">{words(text)}</p>' if kind else f"<p>{words(text)}</p>"


def table(grid: Grid, loud: Iterable[tuple[int, int]] = ()) -> str:
    """A table that scrolls within itself; `loud` cells (line, column) are those who lose."""
    marked = set(loud)
    sides = ["left" if i < grid.left else "right" for i in range(len(grid.heads))]
    heads = "".join(
        f'<th scope="col" class="{side}">{words(head)}</th>'
        for head, side in zip(grid.heads, sides, strict=True)
    )
    lines = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{sides[j]}{" loses" if (i, j) in marked else ""}">{words(cell)}</td>'
            for j, cell in enumerate(line)
        )
        + "</tr>"
        for i, line in enumerate(grid.cells)
    )
    return (
        f'<div class="wide" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def figure(plot: Plot) -> str:
    """A figure with its picture in the page itself."""
    picture = base64.b64encode(plot.png).decode("ascii")
    kind = ' class="half"' if plot.half else ""
    return (
        f'<figure id="{words(plot.name)}"{kind}>\n<h3>{words(plot.title)}</h3>\n'
        f'<div class="wide" tabindex="0"><img alt="{words(plot.alt)}" '
        f'src="data:image/png;base64,{picture}"></div>\n'
        f"<figcaption>{words(plot.caption)}</figcaption>\n</figure>"
    )


def figures(plots: Sequence[Plot]) -> str:
    """Figures below one another; halves are side by side where there is room."""
    whole = [figure(plot) for plot in plots if not plot.half]
    halves = [figure(plot) for plot in plots if plot.half]
    pair = [f'<div class="pair">\n{chr(10).join(halves)}\n</div>'] if halves else []
    return "\n".join([*whole, *pair])


def section(name: str, title: str, *blocks: str) -> str:
    """A part of the page under its title."""
    body = "\n".join(block for block in blocks if block)
    return (
        f'<section aria-labelledby="{words(name)}">\n'
        f'<h2 id="{words(name)}">{words(title)}</h2>\n{body}\n</section>'
    )
