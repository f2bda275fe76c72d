"""Spoilt records: what typing errors, missing fields and missing text do to a score."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from credit_common.contract import Contract
from credit_common.fields import TextField
from credit_common.metrics import auc_exact
from credit_common.record import Record
from credit_simulations.sweep.alone import Predict

TYPOS = 0.05
"""Share of the letters of free text that are struck wrongly."""
MISSING = 0.2
"""Share of the numbers and categories that are missing."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Spoil = Callable[[Contract, Record, np.random.Generator], Record]


def perturbed_aucs(
    contract: Contract, records: Sequence[Record], predict: Predict
) -> dict[str, float]:
    """AUC of the same users as they are ("clean") and spoilt in each way that they can be.

    Args:
        contract: Says which fields are text.
        records: Of hold-out users, with labels.
        predict: The model.
    """
    labels = np.asarray([record.label for record in records], np.float32)
    ways: dict[str, Spoil] = {"clean": lambda contract, record, random: record}
    if any(isinstance(f, TextField) for f in contract.fields):
        ways |= {"typos": with_typos, "no_text": without_text}
    ways["missing_fields"] = with_missing
    found = {}
    for name, spoil in ways.items():
        random = np.random.default_rng(0)  # the same errors for every model
        found[name] = auc_exact(predict([spoil(contract, r, random) for r in records]), labels)
    return found


def with_typos(contract: Contract, record: Record, random: np.random.Generator) -> Record:
    """Letters of free text struck twice, left out, exchanged with the next, or replaced."""
    spoilt = {
        name: _struck(value, random)
        for name in _texts(contract)
        if isinstance(value := record.values.get(name), str)
    }
    return replace(record, values={**record.values, **spoilt})


def without_text(contract: Contract, record: Record, random: np.random.Generator) -> Record:
    """No free text at all."""
    return replace(record, values={**record.values, **dict.fromkeys(_texts(contract))})


def with_missing(contract: Contract, record: Record, random: np.random.Generator) -> Record:
    """Numbers and categories missing at random."""
    names = [field.name for field in contract.wide_fields]
    gone = [
        name for name, lost in zip(names, random.random(len(names)) < MISSING, strict=True) if lost
    ]
    return replace(record, values={**record.values, **dict.fromkeys(gone)})


def _texts(contract: Contract) -> list[str]:
    return [field.name for field in contract.fields if isinstance(field, TextField)]


def _struck(text: str, random: np.random.Generator) -> str:
    letters = list(text)
    for i in np.flatnonzero(random.random(len(text)) < TYPOS):
        if not letters[i].isalpha():
            continue
        kind = random.integers(4)
        if kind == 0:
            letters[i] *= 2
        elif kind == 1:
            letters[i] = ""
        elif kind == 2 and i + 1 < len(letters):
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
        else:
            letters[i] = _LETTERS[random.integers(len(_LETTERS))]
    return "".join(letters)
