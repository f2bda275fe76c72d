"""Where each field of the contract stands in a holder's file, and how its cells are read."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from credit_client.mapping import Constant, ShardMapping
from credit_client.table import Row
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.fields import (
    DroppedField,
    EventsField,
    Field,
    IdentifierField,
    ProtectedField,
)
from credit_common.masking import mask_identifiers
from credit_common.record import RejectedValueError, Value, parse_label, parse_value


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How each row of one file is read.

    Attributes:
        user: Place of the user id's column.
        label: Reads a row's label; raises RejectedValueError where one is required.
        readers: (contract's name, how to read it) of each field that is read; each may raise
            RejectedValueError.
        ignored: Columns that the contract does not declare.
    """

    user: int
    label: Callable[[Row], float | None]
    readers: tuple[tuple[str, Callable[[Row], Value]], ...]
    ignored: tuple[str, ...]


def find_layout(
    path: Path,
    columns: tuple[str, ...],
    contract: Contract,
    mapping: ShardMapping,
    *,
    require_label: bool,
) -> Layout:
    """Find the contract's fields among a file's columns.

    Missing columns are named before any other complaint about the header: a file without a header
    has data in its place, which no message may quote. A file to be scored has no labels, and may
    leave out protected fields, which no score reads.

    Raises:
        ShardError: If a column that is read is missing, or a name stands twice.
    """
    places = {name: index for index, name in enumerate(columns)}
    read = _fields_read(contract)
    if not require_label:
        read = [f for f in read if not isinstance(f, ProtectedField) or _there(f, mapping, places)]
    label, user = contract.task.label, contract.record.user
    needed = [user, *([label] if require_label else []), *(f.name for f in read)]
    for name in needed:
        column = mapping.column(name)
        if name not in mapping.constants and column not in places:
            renamed = f" (the mapping's column for {name!r})" if column != name else ""
            raise ShardError(f"{path}: column {column!r}{renamed} is missing")
    twice = [name for name, n in Counter(columns).items() if n > 1 and name]
    if twice:
        raise ShardError(f"{path}: column {twice[0]!r} stands twice in the header")
    used = {mapping.column(name) for name in (*needed, label)}
    declared = used | {f.name for f in contract.fields if f not in read}
    return Layout(
        user=places[mapping.column(user)],
        label=_label_reader(contract, mapping, places, require_label),
        readers=tuple((f.name, _reader(f, mapping, places)) for f in read),
        ignored=tuple(name for name in columns if name not in declared),
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the values of one field come from and what for.

    Attributes:
        column: The merchant's column; None where the mapping gives a `constant` for all rows.
        translated: Whether the mapping changes codes or units, or says which codes mean missing.
        uses: "text" (said to BERT), "numbers" (wide part), "time" (orders rows, ends windows).
    """

    name: str
    kind: str
    column: str | None
    constant: Constant | None
    translated: bool
    uses: tuple[str, ...]


def sources(contract: Contract, mapping: ShardMapping) -> tuple[Source, ...]:
    """The contract's fields that are read, in its order."""
    times = {f.until for f in contract.fields if isinstance(f, EventsField)}
    times.add(contract.record.time)
    wide = "wide" in contract.model.train
    made = []
    for field in _fields_read(contract):
        uses = {
            "text": contract.model.reads_text and bool(getattr(field, "text", "")),
            "numbers": wide and field.kind in ("number", "category", "events"),
            "time": field.name in times,
        }
        constant = mapping.constants.get(field.name)
        made.append(
            Source(
                name=field.name,
                kind=field.kind,
                column=mapping.column(field.name) if constant is None else None,
                constant=constant,
                translated=mapping.touches(field.name),
                uses=tuple(name for name, used in uses.items() if used),
            )
        )
    return tuple(made)


def names_to_show(columns: Iterable[str]) -> tuple[str, ...]:
    """The columns whose names read as names; the others could be data in a header's place."""
    return tuple(column for column in columns if _reads_as_name(column))


def _reads_as_name(column: str) -> bool:
    plain = unicodedata.normalize("NFKC", column)  # as the masks see it
    starts = plain[:1].isalpha() or plain[:1] == "_"
    return starts and plain.isprintable() and len(plain) <= 64 and mask_identifiers(plain) == plain


def _fields_read(contract: Contract) -> list[Field]:
    return [f for f in contract.fields if not isinstance(f, IdentifierField | DroppedField)]


def _there(field: Field, mapping: ShardMapping, places: dict[str, int]) -> bool:
    return field.name in mapping.constants or mapping.column(field.name) in places


def _reader(field: Field, mapping: ShardMapping, places: dict[str, int]) -> Callable[[Row], Value]:
    name = field.name
    if name in mapping.constants:
        constant = mapping.constants[name]
        return lambda cells: parse_value(field, constant)
    place = places[mapping.column(name)]
    if mapping.touches(name):
        return lambda cells: parse_value(field, mapping.translate(name, cells[place]))
    return lambda cells: parse_value(field, cells[place])


def _label_reader(
    contract: Contract, mapping: ShardMapping, places: dict[str, int], required: bool
) -> Callable[[Row], float | None]:
    name = contract.task.label
    place = places.get(mapping.column(name))

    def read(cells: Row) -> float | None:
        if place is None:
            return None
        try:
            return parse_label(contract, mapping.translate(name, cells[place]))
        except RejectedValueError:
            if required:
                raise
            return None

    return read
