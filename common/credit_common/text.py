"""A record -> text for BERT and numbers for the wide part; the same for training and scoring.

The wide part of a number is its bin, one-hot, with a cell for missing, and the bin's position in
[-1, 1]; of a category, its code one-hot, with cells for other and missing. The whole row is scaled
by a public constant so that its L2 norm is at most 1: one user's gradient of the wide weights is
then at most the size of the prediction's error.
"""

import math
from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import ContractError
from credit_common.fields import CategoryField, EventsField, NumberField, TextField
from credit_common.record import OTHER, Record


def record_text(contract: Contract, record: Record) -> str:
    """What BERT reads of a record: each field's own phrase, in the contract's order.

    Missing values, and codes with an empty label, say nothing.
    """
    parts = []
    for field in contract.fields:
        spelt = field.numbers() if isinstance(field, EventsField) else (field,)
        for item in spelt:
            if isinstance(item, NumberField | CategoryField | TextField) and item.text:
                said = _said(item, record.values.get(item.name))
                parts.append(item.text.replace("{}", said) if said else "")
    return " ".join(filter(None, parts))


def reference_record(contract: Contract) -> Record:
    """A public record to measure others against, made from the contract alone.

    Numbers take their middle edge, or the middle boundary of the grid where edges are federated;
    categories take their first value, texts are missing.
    """
    values: dict[str, float | str | None] = {}
    for field in contract.wide_fields:
        if isinstance(field, NumberField):
            edges = field.grid.inner if field.quantiles else field.edges
            values[field.name] = edges[len(edges) // 2]
        else:
            values[field.name] = field.values[0]
    return Record(values=values, protected={}, label=None)


def reference_texts(contract: Contract) -> tuple[str, ...]:
    """What BERT reads of the reference record: once, or with each example of its texts in turn.

    The record has the i-th example of every text field; a field with fewer begins again.
    """
    base = reference_record(contract)
    told = {f.name: f.examples for f in contract.fields if isinstance(f, TextField) and f.examples}
    texts = []
    for i in range(max(map(len, told.values()), default=1)):
        said = {name: examples[i % len(examples)] or None for name, examples in told.items()}
        texts.append(record_text(contract, replace(base, values={**base.values, **said})))
    return tuple(texts)


def wide_width(contract: Contract) -> int:
    """Number of wide features, the constant included."""
    return 1 + sum(_cells(field) for field in contract.wide_fields)


def wide_names(contract: Contract) -> tuple[str, ...]:
    """A readable name for each wide feature, in order."""
    names = ["constant"]
    for field in contract.wide_fields:
        cells = cell_names(field)
        if isinstance(field, NumberField):
            names += [f"{field.name} {cell}" for cell in (*cells, "position")]
        else:
            names += [f"{field.name} = {code}" for code in field.values]
            names += [f"{field.name} {cell}" for cell in cells[len(field.values) :]]
    return tuple(names)


def cell_names(field: NumberField | CategoryField) -> tuple[str, ...]:
    """What each cell of a field holds: a number's bins and missing; codes, other and missing.

    Raises:
        ContractError: If edges of the contract are federated and not filled in.
    """
    if isinstance(field, NumberField):
        bounds = ["", *(f"{edge:g}" for edge in _edges(field)), ""]
        return (*(f"[{a}, {b})" for a, b in pairwise(bounds)), "missing")
    return (*field.values, "other", "missing")


def cell_of(field: NumberField | CategoryField, value: float | str | None) -> int:
    """Which of a field's cells a value is in, by its place among `cell_names`.

    Raises:
        ContractError: If edges of the contract are federated and not filled in.
    """
    if isinstance(field, NumberField):
        return field.bins if value is None else bisect_right(_edges(field), float(value))
    if value is None:
        return len(field.values) + 1
    return len(field.values) if value == OTHER else field.values.index(str(value))


def position(field: NumberField, cell: int) -> float:
    """A number's bin from -1 to 1; 0 where it is missing."""
    return 0.0 if cell == field.bins else 2.0 * cell / (field.bins - 1) - 1.0


def wide_scale(contract: Contract) -> float:
    """What a row of ones and positions is divided by, so that its L2 norm is below 1."""
    largest = 1.0 + sum(2.0 if isinstance(f, NumberField) else 1.0 for f in contract.wide_fields)
    return math.sqrt(largest) * (1 + 1e-6)  # below 1 in spite of rounding


def wide_features(contract: Contract, record: Record) -> NDArray[np.float32]:
    """The wide part's row for a record.

    Returns:
        Shape (wide_width(contract),), float32, L2 norm at most 1.

    Raises:
        ContractError: If edges of the contract are federated and not filled in.
    """
    row = np.zeros(wide_width(contract), np.float32)
    row[0] = 1.0
    start = 1
    for field in contract.wide_fields:
        cell = cell_of(field, record.values.get(field.name))
        row[start + cell] = 1.0
        if isinstance(field, NumberField):
            row[start + field.bins + 1] = position(field, cell)
        start += _cells(field)
    return row / np.float32(wide_scale(contract))


def _cells(field: NumberField | CategoryField) -> int:
    if isinstance(field, NumberField):
        return field.bins + 2  # and missing, position
    return len(field.values) + 2  # codes, other, missing


def _edges(field: NumberField) -> tuple[float, ...]:
    if not field.edges:
        raise ContractError(f"fields.{field.name}.edges: are federated, and not known yet")
    return field.edges


def _said(field: NumberField | CategoryField | TextField, value: float | str | None) -> str:
    if value is None or value == OTHER:
        return ""
    if isinstance(field, NumberField):
        return f"{float(value):.6g}"
    if isinstance(field, CategoryField) and field.labels:
        return field.labels[field.values.index(str(value))]
    return str(value)
