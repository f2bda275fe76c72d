"""Blocks as one page of HTML: no script, nothing from outside, and no word that is markup."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from credit_client.page.blocks import Block, Facts, Loud, Part, Picture, Points, Table

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(
    title: str, header: str, parts: Iterable[Part], *, style: str = "", pictures: bool = False
) -> str:
    """A page that a browser shows from a file, and prints on A4.

    Args:
        title: In words.
        header: Markup of what stands above all parts.
        style: CSS beside that of all pages.
        pictures: Whether the page may show pictures, which stand in it.
    """
    body = []
    for number, part in enumerate(parts, start=1):
        body.append(
            f'<section aria-labelledby="part{number}">\n'
            f'<h2 id="part{number}">{escape(part.title)}</h2>\n{_blocks(part.blocks)}\n</section>'
        )
    sections = "\n".join(body)
    policy = f"{_POLICY}; img-src data:" if pictures else _POLICY
    shared = files("credit_client.page").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="robots" content="noindex">
<title>{escape(title)}</title>
<style>
{shared}{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{header}
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def words(text: str) -> str:
    """Escaped; what stands between backquotes is a command."""
    pieces = escape(str(text)).split("`")
    if len(pieces) % 2 == 0:  # a lone backquote is just one
        return "`".join(pieces)
    told = [f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces)]
    return "".join(told)


def _blocks(blocks: Sequence[Block]) -> str:
    """Blocks below one another; pictures of half a width that follow each other share a line."""
    told: list[str] = []
    pair: list[str] = []
    for block in [*blocks, ""]:
        if isinstance(block, Picture) and block.half:
            pair.append(_picture(block))
            continue
        if pair:
            told.append('<div class="pair">\n' + "\n".join(pair) + "\n</div>")
            pair = []
        if block:
            told.append(_block(block))
    return "\n".join(told)


def _block(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{words(block)}</p>"
    if isinstance(block, Loud):
        return f'<p class="loud" role="alert">{words(block.words)}</p>'
    if isinstance(block, Points):
        items = "\n".join(f"<li>{words(item)}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Facts):
        rows = "\n".join(f"<dt>{words(n)}</dt><dd>{words(v)}</dd>" for n, v in block.rows)
        return f"<dl>\n{rows}\n</dl>"
    if isinstance(block, Picture):
        return _picture(block)
    if not block.folded:
        return _table(block) if block.rows else ""
    summary = f"<summary>{words(block.folded)}</summary>"
    return f"<details>\n{summary}\n{_table(block)}\n</details>"


def _picture(picture: Picture) -> str:
    """A figure with its picture in the page itself; it scrolls where it would get too small."""
    data = base64.b64encode(picture.png).decode("ascii")
    kind = ' class="half"' if picture.half else ""
    return (
        f"<figure{kind}>\n<h3>{words(picture.title)}</h3>\n"
        f'<div class="wide" tabindex="0"><img alt="{escape(picture.alt)}" '
        f'src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{words(picture.caption)}</figcaption>\n</figure>"
    )


def _table(table: Table) -> str:
    """A table that scrolls within itself; of a stacked one, each row is a block on a phone."""
    sides = ["right" if head.startswith(">") else "left" for head in table.heads]
    names = [words(head[1:]) for head in table.heads]
    heads = "".join(
        f'<th scope="col" class="{side}">{name}</th>'
        for side, name in zip(sides, names, strict=True)
    )
    rows = []
    for number, row in enumerate(table.rows):
        cells = zip(row, sides, names, strict=True)
        rows.append(
            ('<tr class="marked">' if number in table.loud else "<tr>")
            + "".join(
                f'<td class="{side}" data-head="{name}">{_cell(cell)}</td>'
                for cell, side, name in cells
            )
            + "</tr>"
        )
    body = "\n".join(rows)
    kind = ' class="stacked"' if len(names) > 3 else ""
    kind = ' class="dense"' if table.dense else kind
    return (
        f'<div class="wide" tabindex="0"><table{kind}>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(text: str) -> str:
    lines = [words(line) for line in str(text).split("\n")]
    if len(lines) == 1:
        return lines[0]
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
