"""The parts of a model report on fields and their points."""

from collections.abc import Sequence

from credit_client.page.blocks import Block, Table
from credit_client.validation.study import Study
from credit_client.validation.told import four, percent
from credit_common.card_points import signed as signed_points

_STRONGEST = 12
"""Fields of which the points are summed up."""


def field_blocks(study: Study) -> list[Block]:
    """IV of each field, the strongest first; cells folded away."""
    every = sorted(study.evidence, key=lambda each: -each.iv)
    rows = [(e.name, four(e.iv), e.band, four(e.by_chance)) for e in every]
    cells = [
        (
            e.name if number == 0 else "",
            cell.name,
            str(cell.users),
            str(cell.bads),
            percent(cell.bad_rate),
            ("" if cell.woe is None else f"{cell.woe:+.3f}") + ("*" if cell.corrected else ""),
            four(cell.iv),
        )
        for e in every
        for number, cell in enumerate(e.cells)
    ]
    heads = ("<field", "<cell", ">users", ">bads", ">bad rate", ">WOE", ">IV")
    return [
        "Information value of each field of the linear part by the contract's own bins and codes, "
        "beside what a field of as many cells has by chance on as many users: a field whose IV is "
        "not well above that may have nothing to say.",
        Table(
            heads=("<field", ">IV", "<band", ">IV by chance"),
            widths=(40, 7, 13, 12),
            rows=rows,
            dense=True,
        ),
        Table(
            heads=heads,
            widths=(30, 24, 7, 7, 8, 8, 7),
            rows=cells,
            dense=True,
            folded="Weight of evidence of every cell (* with half a user added)",
        ),
    ]


def points_blocks(study: Study, pictures: Sequence[Block]) -> list[Block]:
    """The scorecard: the strongest fields, and all of them folded away."""
    table = study.points
    if table is None:
        return ["All points come from what BERT reads: there is no part to be written as a table."]
    blocks: list[Block] = [
        f"The linear part as a scorecard: {table.base:.1f} points for the contract's reference "
        "applicant, and for each field what its cell adds to them or takes away. It adds up "
        "exactly."
    ]
    if study.text is not None:
        blocks.append(
            f"What BERT reads of a record is not in the table: it makes up "
            f"{percent(study.text.share)} of the scores' variance over these users. The table "
            f"alone orders them with an AUC of {four(study.text.auc_wide)}, the whole model with "
            f"{four(study.figures.auc)}."
        )
    if study.judged.calibration:
        blocks.append(
            "The table is of the release's own score. The holder's calibration, which users' "
            "points are told by, comes after it."
        )
    blocks += pictures
    strongest = [
        (
            field.name,
            signed_points(min(field.points)),
            signed_points(max(field.points)),
            f"{field.spread:.1f}",
        )
        for field in table.strongest(_STRONGEST)
    ]
    heads = ("<field", ">least", ">most", ">spread")
    blocks.append(Table(heads=heads, widths=(50, 8, 8, 8), rows=strongest, dense=True))
    cells = [
        (field.name if number == 0 else "", cell, signed_points(told))
        for field in table.fields
        for number, (cell, told) in enumerate(zip(field.cells, field.points, strict=True))
    ]
    blocks.append(
        Table(
            heads=("<field", "<cell", ">points"),
            widths=(34, 40, 8),
            rows=cells,
            dense=True,
            folded="The points of every cell",
        )
    )
    return blocks
