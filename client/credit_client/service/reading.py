"""One record's JSON -> the record that the batch command would read from a shard.

Types are looked at by the pydantic model, values by `credit_common.record`, as those of a shard's
cells. What is refused is told by field and reason; no value is ever part of it.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from credit_client.service.refusals import Problem, problems_of
from credit_client.service.schema import read_fields, record_model
from credit_common.contract import Contract
from credit_common.fields import EventsField
from credit_common.record import Record, RejectedValueError, Value, make_record, parse_value


class Reader:
    """Reads records under one contract."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.model: type[BaseModel] = record_model(contract)
        self._fields = [(f"f{i}", field) for i, field in enumerate(read_fields(contract))]

    def row(self, row: object) -> Record | list[Problem]:
        """A row of a batch, from plain JSON."""
        try:
            typed = self.model.model_validate(row)
        except ValidationError as error:
            return problems_of(error.errors(include_url=False, include_input=False))
        return self.record(typed)

    def record(self, typed: BaseModel) -> Record | list[Problem]:
        """The record of a model's instance, or why there is none: each field that is refused."""
        values: dict[str, Value] = {}
        problems = []
        for name, field in self._fields:
            raw: Any = getattr(typed, name)
            if isinstance(field, EventsField) and raw is not None:
                raw = [vars(event) for event in raw]
            try:
                values[field.name] = parse_value(field, raw)
            except RejectedValueError as bad:
                problems.append(Problem(field=bad.field, reason=bad.reason, loc=[bad.field]))
        return problems or make_record(self.contract, values, None)


def split(
    rows: Iterable[Record | list[Problem]],
) -> tuple[list[tuple[int, Record]], list[tuple[int, Problem]]]:
    """Records and problems of a batch, each with the index of its row."""
    records: list[tuple[int, Record]] = []
    refused: list[tuple[int, Problem]] = []
    for index, row in enumerate(rows):
        if isinstance(row, Record):
            records.append((index, row))
        else:
            refused += [(index, problem) for problem in row]
    return records, refused
