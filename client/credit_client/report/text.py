"""The privacy report for a terminal, at most 100 columns wide."""

from collections.abc import Iterator

from credit_client.report.blocks import Block, Facts, Loud, Points, Report, minute
from credit_client.report.parts import parts
from credit_client.terminal import heading, paragraph, table, wrapped

_NAME = 20


def as_text(report: Report) -> str:
    """The report as text. Long tables, such as that of all entries, are left out."""
    lines = wrapped(
        f"PRIVACY REPORT OF {report['holder']} IN THE FEDERATION {report['federation']}, "
        f"{minute(report['created'])} UTC"
    )
    for part in parts(report):
        lines += heading(part.title.upper())
        for block in part.blocks:
            lines += _block(block)
    # Reasons and descriptions are people's words: nothing in them may steer a terminal.
    return "".join(
        "".join(c if c.isprintable() else "?" for c in line).rstrip() + "\n" for line in lines
    )


def _block(block: Block) -> Iterator[str]:
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
    elif block.folded:
        yield from paragraph(f"{block.folded}: `credit-client ledger` shows them.")
    elif block.rows:
        yield from table(block.heads, block.widths, block.rows)
