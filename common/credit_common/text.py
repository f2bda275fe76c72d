"""A record -> text for BERT and numbers for the wide part; the same for training and scoring.

The wide part of a number is its bin, one-hot, with a cell for missing, and the bin's position in
[-1, 1]; of a category, its code one-hot, with cells for other and missing. The whole row is scaled
by a public constant so that its L2 norm is at most 1: one user's gradient of the wide weights is
then at most the size of the prediction's error.
"""

import math
from bisect import bisect_right
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


def reference_text(contract: Contract) -> str:
    """What BERT reads of the reference record."""
    return record_text(contract, reference_record(contract))


def wide_width(contract: Contract) -> int:
    """Number of wide features, the constant included."""
    return 1 + sum(_cells(field) for field in contract.wide_fields)


def wide_names(contract: Contract) -> tuple[str, ...]:
    """A readable name for each wide feature, in order."""
    names = ["constant"]
    for field in contract.wide_fields:
        if isinstance(field, NumberField):
            bounds = ["", *(f"{edge:g}" for edge in _edges(field)), ""]
            names += [f"{field.name} [{a}, {b})" for a, b in pairwise(bounds)]
            names += [f"{field.name} missing", f"{field.name} position"]
        else:
            names += [f"{field.name} = {code}" for code in field.values]
            names += [f"{field.name} other", f"{field.name} missing"]
    return tuple(names)


def wide_features(contract: Contract, record: Record) -> NDArray[np.float32]:
    """The wide part's row for a record.

    Returns:
        Shape (wide_width(contract),), float32, L2 norm at most 1.

    Raises:
        ContractError: If edges of the contract are federated and not filled in.
    """
    row = np.zeros(wide_width(contract), np.float32)
    row[0] = 1.0
    start, largest = 1, 1.0
    for field in contract.wide_fields:
        value = record.values.get(field.name)
        if isinstance(field, NumberField):
            bins, edges = field.bins, _edges(field)
            if value is None:
                row[start + bins] = 1.0
            else:
                index = bisect_right(edges, float(value))
                row[start + index] = 1.0
                row[start + bins + 1] = 2.0 * index / (bins - 1) - 1.0
            largest += 2.0
        else:
            codes = len(field.values)
            index = codes + 1 if value is None else codes
            if value is not None and value != OTHER:
                index = field.values.index(str(value))
            row[start + index] = 1.0
            largest += 1.0
        start += _cells(field)
    return row / np.float32(math.sqrt(largest) * (1 + 1e-6))  # below 1 in spite of rounding


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
