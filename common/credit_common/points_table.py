"""The wide part of a model as a scorecard: a table of points by field and cell.

The wide part is linear in a record's cells, and points are linear in the logit, so that it can be
written out whole:

    points of the wide part's score = base + the sum over fields of the points of the record's cell

The base belongs to the contract's reference applicant (`text.reference_record`), whose cells all
have 0 points: every other cell says what it adds to that applicant or takes away. What BERT reads
of a text is not in the table, nor are the scorecard's ends, which cut the sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import ContractError
from credit_common.fields import NumberField
from credit_common.record import Record
from credit_common.text import cell_names, cell_of, position, reference_record, wide_scale


@dataclass(frozen=True, kw_only=True)
class FieldPoints:
    """Points of one field.

    Attributes:
        name: Of the field; an aggregation's name where it comes from an event list.
        unit: Of its numbers; empty for codes.
        cells: What each cell holds, as `text.cell_names` says it.
        points: Of each cell; 0 where the reference applicant is.
        reference: Place of that cell.
    """

    name: str
    unit: str
    cells: tuple[str, ...]
    points: tuple[float, ...]
    reference: int

    @property
    def spread(self) -> float:
        """Most points less least: how much the field can move a score."""
        return max(self.points) - min(self.points)


@dataclass(frozen=True, kw_only=True)
class PointsTable:
    """A scorecard.

    Attributes:
        base: Points of the reference applicant by the wide part.
        fields: In the contract's order.
    """

    base: float
    fields: tuple[FieldPoints, ...]

    def strongest(self, most: int) -> tuple[FieldPoints, ...]:
        """The fields that can move a score most, at most so many; of equal ones the first."""
        return tuple(sorted(self.fields, key=lambda field: -field.spread)[:most])

    def total(self, contract: Contract, record: Record) -> float:
        """Points of a record by the table, without the scorecard's ends."""
        return self.base + sum(
            own.points[cell_of(field, record.values.get(field.name))]
            for field, own in zip(contract.wide_fields, self.fields, strict=True)
        )


def points_table(contract: Contract, head: Mapping[str, NDArray[np.float32]]) -> PointsTable | None:
    """The wide part as points, exact but for the rounding of float32 products.

    Args:
        contract: Of a binary task, with all edges (`Release.resolved`).
        head: Arrays of head.safetensors; `wide.weight` (1, wide_width) and `offset` (1,) are read.

    Returns:
        None where the release has no wide part.

    Raises:
        ContractError: If the task is another.
    """
    if contract.task.kind != "binary":
        raise ContractError(f"task.kind = {contract.task.kind!r}: must be 'binary' for this")
    if "wide.weight" not in head:
        return None
    weights = head["wide.weight"][0].astype(np.float64) / wide_scale(contract)
    factor = contract.scorecard.pdo / np.log(2.0)
    logit = float(head["offset"][0]) + weights[0]  # of the reference applicant, in the end
    start, middle, fields = 1, reference_record(contract), []
    for field in contract.wide_fields:
        names = cell_names(field)
        parts = weights[start : start + len(names)].copy()
        start += len(names)
        if isinstance(field, NumberField):
            places = np.array([position(field, cell) for cell in range(len(names))])
            parts += weights[start] * places
            start += 1
        reference = cell_of(field, middle.values[field.name])
        logit += parts[reference]
        told = factor * (parts[reference] - parts) + 0.0  # no -0
        fields.append(
            FieldPoints(
                name=field.name,
                unit=field.unit if isinstance(field, NumberField) else "",
                cells=names,
                points=tuple(told.tolist()),
                reference=reference,
            )
        )
    card = contract.scorecard
    base = card.base_score + factor * (-logit - np.log(card.base_odds))
    return PointsTable(base=float(base), fields=tuple(fields))
