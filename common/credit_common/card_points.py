"""The model card's part on points: the scale, bands, cut-offs, and what the wide part gives.

All of it is public: the contract and the release's own weights.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.points_table import FieldPoints, points_table

STRONGEST = 5
"""Fields whose points a card shows."""


def scorecard_part(contract: Contract, head: Mapping[str, NDArray[np.float32]]) -> str:
    """Markdown for a binary task.

    Args:
        contract: With all edges.
        head: Arrays of head.safetensors.
    """
    card = contract.scorecard
    blocks = [
        "## Scorecard",
        f"{card.base_score:g} points are odds of {card.base_odds:g} good to one bad, a probability "
        f"of default of {1 / (1 + card.base_odds):.4f}; {card.pdo:g} points more double the odds."
        + _ends(contract),
        *_decision(contract),
        *_strongest(contract, head),
    ]
    return "\n\n".join(blocks)


def _ends(contract: Contract) -> str:
    card = contract.scorecard
    ends = [f"from {card.lowest:g}"] if card.lowest is not None else []
    ends += [f"to {card.highest:g}"] if card.highest is not None else []
    return f" Points go {' '.join(ends)}, and what lies beyond is moved there." if ends else ""


def _decision(contract: Contract) -> list[str]:
    decision, blocks = contract.decision, []
    if decision.decides:
        blocks.append(
            f"The contract approves a probability of default below {decision.approve_below:g}, "
            f"declines one from {decision.decline_from:g} on, and has a person look at what lies "
            "between. A holder may decide by cut-offs of its own, on its own calibration."
        )
    else:
        blocks.append("The contract names no cut-offs.")
    if decision.bands:
        starts = [0.0, *(end for _, end in decision.bands)]
        rows = [
            f"| {table_cell(name)} | {start:g} to {end:g} |"
            for start, (name, end) in zip(starts, decision.bands, strict=False)
        ]
        head = "| band | probability of default |\n|---|---:|\n"
        blocks.append(head + "\n".join(rows))
    return blocks


def _strongest(contract: Contract, head: Mapping[str, NDArray[np.float32]]) -> list[str]:
    table = points_table(contract, head)
    if table is None:
        return ["All points come from what BERT reads: there is no part to be written as a table."]
    shown = table.strongest(STRONGEST)
    rows = [
        f"| {table_cell(name)} | {table_cell(cell)} | {signed(points)} |"
        for field in shown
        for name, cell, points in zip(_names(field), field.cells, field.points, strict=True)
    ]
    text = ", and what BERT reads is not in them" if contract.model.reads_text else ""
    return [
        f"The linear part alone, by its {len(shown)} strongest of {len(table.fields)} fields. The "
        f"contract's reference applicant has {table.base:.1f} points; each cell adds to them or "
        f"takes away. The points of all fields add up exactly{text}.",
        "| field | cell | points |\n|---|---|---:|\n" + "\n".join(rows),
    ]


def _names(field: FieldPoints) -> list[str]:
    """The field's name beside its first cell alone."""
    name = f"{field.name} ({field.unit})" if field.unit else field.name
    return [name] + [""] * (len(field.cells) - 1)


def signed(points: float) -> str:
    """Points with a sign; 0 has none.

    >>> signed(12.34), signed(-0.04)
    ('+12.3', '0.0')
    """
    rounded = round(points, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def table_cell(text: str) -> str:
    """A code as a cell of a Markdown table."""
    plain = " ".join(text.split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
