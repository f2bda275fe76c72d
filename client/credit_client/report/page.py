"""The privacy report as one page of HTML: no script, and nothing from outside."""

from html import escape
from importlib.resources import files

from credit_client.report.blocks import Block, Facts, Loud, Points, Report, Table, bound, exact
from credit_client.report.blocks import minute as minute_of
from credit_client.report.parts import parts


def as_html(report: Report) -> str:
    """The report as a page that a browser shows from a file, and prints on A4."""
    holder, federation = escape(report["holder"]), escape(report["federation"])
    style = files("credit_client.report").joinpath("page.css").read_text(encoding="utf-8")
    body = []
    for number, part in enumerate(parts(report), start=1):
        blocks = "\n".join(_block(block) for block in part.blocks)
        body.append(
            f'<section aria-labelledby="part{number}">\n'
            f'<h2 id="part{number}">{escape(part.title)}</h2>\n{blocks}\n</section>'
        )
    sections = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="robots" content="noindex">
<title>Privacy report of {holder}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Privacy report of {holder}</h1>
<p>federation {federation}, {escape(minute_of(report["created"]))} UTC</p>
{_headline(report)}
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def _headline(report: Report) -> str:
    delta = f"&delta; = {escape(exact(report['delta']))}"
    if report["overrides"]:
        return f'<p class="epsilon unknown"><b>&epsilon; is unknown</b> <span>{delta}</span></p>'
    epsilon = f"&epsilon; &le; {escape(bound(report['epsilon']))}"
    return f'<p class="epsilon"><b>{epsilon}</b> <span>{delta}</span></p>'


def _block(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_words(block)}</p>"
    if isinstance(block, Loud):
        return f'<p class="loud" role="alert">{_words(block.words)}</p>'
    if isinstance(block, Points):
        items = "\n".join(f"<li>{_words(item)}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Facts):
        rows = "\n".join(f"<dt>{_words(n)}</dt><dd>{_words(v)}</dd>" for n, v in block.rows)
        return f"<dl>\n{rows}\n</dl>"
    if not block.folded:
        return _table(block) if block.rows else ""
    summary = f"<summary>{_words(block.folded)}</summary>"
    return f"<details>\n{summary}\n{_table(block)}\n</details>"


def _table(table: Table) -> str:
    """A table that scrolls within itself; of a stacked one, each row is a block on a phone."""
    sides = ["right" if head.startswith(">") else "left" for head in table.heads]
    names = [_words(head[1:]) for head in table.heads]
    heads = "".join(
        f'<th scope="col" class="{side}">{name}</th>'
        for side, name in zip(sides, names, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = zip(row, sides, names, strict=True)
        rows.append(
            "<tr>"
            + "".join(
                f'<td class="{side}" data-head="{name}">{_cell(cell)}</td>'
                for cell, side, name in cells
            )
            + "</tr>"
        )
    body = "\n".join(rows)
    kind = ' class="stacked"' if len(names) > 3 else ""
    return (
        f'<div class="wide" tabindex="0"><table{kind}>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(text: str) -> str:
    lines = [_words(line) for line in str(text).split("\n")]
    if len(lines) == 1:
        return lines[0]
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def _words(text: str) -> str:
    """Escaped; what stands between backquotes is a command."""
    pieces = escape(str(text)).split("`")
    if len(pieces) % 2 == 0:  # a lone backquote is just one
        return "`".join(pieces)
    told = [f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces)]
    return "".join(told)
