"""Blocks for a terminal, at most `terminal.WIDTH` columns wide, and as Markdown."""

from collections.abc import Iterable, Iterator

from credit_client.page.blocks import Block, Facts, Loud, Part, Picture, Points
from credit_client.terminal import heading, paragraph, table, wrapped

_NAME = 20


def as_text(title: str, parts: Iterable[Part], elsewhere: str) -> str:
    """Parts as text. Long tables and pictures are left out.

    Args:
        title: In words.
        elsewhere: Where what is left out is shown.
    """
    lines = wrapped(title)
    for part in parts:
        lines += heading(part.title.upper())
        for block in part.blocks:
            lines += _block(block, elsewhere)
    # Reasons and descriptions are people's words: nothing in them may steer a terminal.
    return "".join(_plain(line).rstrip() + "\n" for line in lines)


def as_markdown(title: str, parts: Iterable[Part]) -> str:
    """Parts as Markdown, long tables too; pictures are left out."""
    blocks = [f"# {_escaped(title)}"]
    for part in parts:
        blocks.append(f"## {_escaped(part.title)}")
        blocks += filter(None, (_markdown(block) for block in part.blocks))
    return "\n\n".join(blocks) + "\n"


def _block(block: Block, elsewhere: str) -> Iterator[str]:
    if isinstance(block, str):
        yield from paragraph(block)
    elif isinstance(block, Loud):
        yield from paragraph(block.words, mark="!!! ")
    elif isinstance(block, Points):
        for item in block.items:
            yield from paragraph(item, mark="- ")
    elif isinstance(block, Facts):
        for name, value in block.rows:
            yield from wrapped(value, f"  {name:<{_NAME}}", " " * (_NAME + 2))
    elif isinstance(block, Picture):
        return
    elif block.folded:
        yield from paragraph(f"{block.folded}: {elsewhere}.")
    elif block.rows:
        yield from table(block.heads, block.widths, block.rows)


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return _escaped(block)
    if isinstance(block, Loud):
        return f"**{_escaped(block.words)}**"
    if isinstance(block, Points):
        return "\n".join(f"- {_escaped(item)}" for item in block.items)
    if isinstance(block, Facts):
        return "\n".join(f"- {_escaped(name)}: {_escaped(value)}" for name, value in block.rows)
    if isinstance(block, Picture) or not block.rows:
        return ""
    sides = ["---:" if head.startswith(">") else "---" for head in block.heads]
    rows = [[head[1:] for head in block.heads], sides, *block.rows]
    lines = [" | ".join(_escaped(cell) for cell in row) for row in rows]
    table_lines = "\n".join(f"| {line} |" for line in lines)
    return f"{block.folded}:\n\n{table_lines}" if block.folded else table_lines


def _escaped(text: str) -> str:
    """On one line, and no markup: neither a cell's end nor the beginning of a tag."""
    plain = " ".join(_plain(text.replace("\n", ", ")).split())
    return plain.replace("|", "\\|").replace("<", "&lt;")


def _plain(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in line)
