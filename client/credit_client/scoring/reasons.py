"""Why a score is what it is: fields by what they add to the logit, and words for the adverse ones.

A field's share is the logit of the record less that of the same record with the field as the
contract's reference applicant has it (feature ablation; captum.ai). Text and wide part are asked
together, so that a field that both read counts once, with all that it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from credit_client.scoring.engine import Engine
from credit_common.contract import Contract
from credit_common.errors import ContractError
from credit_common.fields import CategoryField, EventsField, NumberField, TextField
from credit_common.record import Record
from credit_common.text import reference_record

if TYPE_CHECKING:
    import torch

MOST = 4
"""Reasons that are given unless more are asked for: more than four are not likely to help an
applicant (official comment 9(b)(2)-1 to Regulation B, Equal Credit Opportunity Act)."""

NOISE = 1e-5
"""Logit up to which a share may be rounding, in batches of other sizes than the score's."""

AT_ONCE = 16
"""Records that are explained together."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What one field does to a score.

    Attributes:
        field: Of the contract; a list of events is one field.
        share: Logit that it adds, against the reference applicant: positive raises the PD.
    """

    field: str
    share: float


def attributions(
    engine: Engine,
    records: Sequence[Record],
    scores: NDArray[np.float32] | None = None,
    *,
    filled: bool = True,
) -> list[list[Attribution]]:
    """What every scored field does to each record's score, in the contract's order.

    A field that is as the reference has it takes no forward pass: its share is 0.

    Args:
        engine: Of a binary task.
        records: As they are scored.
        scores: Raw scores (n, 1) of the records, where they are known already.
        filled: As for `Engine.score`.

    Raises:
        ContractError: If the task has no logit of default.
    """
    import torch
    from captum.attr import FeatureAblation

    contract = engine.contract
    if contract.task.kind != "binary":
        raise ContractError(f"task.kind = {contract.task.kind!r}: reasons are of a binary task")
    names = scored_fields(contract)
    reference = reference_record(contract)
    own = {name: _keys(contract, name) for name in names}
    if scores is None:
        scores = engine.score(records, filled=filled)
    whole = scores[:, 0].astype(np.float64)

    def logits(kept: "torch.Tensor", place: "torch.Tensor") -> "torch.Tensor":
        """Of records with the fields whose mark is 0 as the reference has them."""
        found, rows, mixed = whole[place.numpy()], [], []
        for at, (marks, row) in enumerate(zip(kept.tolist(), place.tolist(), strict=True)):
            record = records[row]
            gone = [name for name, mark in zip(names, marks, strict=True) if not mark]
            turned = {key: reference.values.get(key) for name in gone for key in own[name]}
            if any(record.values.get(key) != value for key, value in turned.items()):
                rows.append(at)
                mixed.append(replace(record, values={**record.values, **turned}))
        if mixed:
            found[rows] = engine.score(mixed, filled=filled)[:, 0]
        return torch.from_numpy(found)

    ablation = FeatureAblation(logits)
    told: list[list[Attribution]] = []
    for start in range(0, len(records), AT_ONCE):
        place = torch.arange(start, min(start + AT_ONCE, len(records)))
        shares = ablation.attribute(
            torch.ones(len(place), len(names), dtype=torch.float64),
            baselines=0.0,
            additional_forward_args=(place,),
            perturbations_per_eval=len(names),
        )
        told += [
            [Attribution(field=n, share=float(s)) for n, s in zip(names, row, strict=True)]
            for row in shares.tolist()
        ]
    return told


def adverse(every: Sequence[Attribution], most: int = MOST) -> list[Attribution]:
    """The fields that raise the PD most, beyond `NOISE`; of equal ones the contract's order."""
    raising = [one for one in every if one.share > NOISE]
    return sorted(raising, key=lambda one: -one.share)[:most]


def words(contract: Contract, field: str, language: str) -> str:
    """What an applicant is told where this field is a main reason.

    Args:
        contract: Has a text for it under [reasons]; else the field's name says it.
        field: Its name.
        language: One of `credit_common.decision.LANGUAGES`.
    """
    for name, reason in contract.reasons:
        if name == field:
            return str(getattr(reason, language))
    plain = field.replace("_", " ").strip()
    return f"与“{plain}”有关" if language == "zh" else f"Information on: {plain}"


def scored_fields(contract: Contract) -> tuple[str, ...]:
    """Names of the fields that can move a score, in the contract's order."""
    said, counted = contract.model.reads_text, "wide" in contract.model.train
    names = []
    for f in contract.fields:
        told = said and bool(getattr(f, "text", ""))
        wide = counted and isinstance(f, NumberField | CategoryField | EventsField)
        if isinstance(f, NumberField | CategoryField | EventsField | TextField) and (told or wide):
            names.append(f.name)
    return tuple(names)


def _keys(contract: Contract, name: str) -> tuple[str, ...]:
    """Names that a record has for a field: an event list is several numbers."""
    (field,) = [f for f in contract.fields if f.name == name]
    if isinstance(field, EventsField):
        return tuple(number.name for number in field.numbers())
    return (name,)
