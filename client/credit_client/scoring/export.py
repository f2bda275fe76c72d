"""A release as an ONNX model: adapters merged into the backbone, in float32 or dynamic int8.

What is exported is the reference's own forward pass, with [CLS] alone computed in the last layer,
for any number of rows and tokens. An export is a sealed folder of its own beside the release, made
once, checked against the reference when it is made:

    model.onnx     (ids, mask, wide) -> score; what the contract's model does not read is left out
    export.json    of which release, in which precision, and how far its scores are from the
                   reference's
"""

import logging
import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from credit_client.scoring.calibration import FEWEST_OF_EACH
from credit_client.scoring.engine import Engine
from credit_client.scoring.points import class_probabilities, default_probability
from credit_client.scoring.reference import engine_of, open_model
from credit_client.scoring.runtime import MANIFEST, MODEL, forward_of, rows_of
from credit_common import metrics
from credit_common.backbone import write_out_attention
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.fields import NumberField
from credit_common.model import CreditModel
from credit_common.record import Record
from credit_common.release import Release
from credit_common.sealed import write_sealed
from credit_common.text import reference_record

Precision = Literal["float32", "int8"]

OPSET = 18
FORMAT = 1
CLOSE = 1e-5
"""Largest difference of a probability (or of a regression's scaled value) in float32."""
AUC_CLOSE = 1e-3
"""Largest difference in AUC in int8, on users whose outcomes are known."""
FEWEST = 200
"""Users that int8 is checked on."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """An export beside the reference.

    Attributes:
        users: Records of the holder's file that both scored; 0 where made-up records alone were.
        pd_difference: Largest difference of a probability.
        auc, auc_reference: Of those users; nan where outcomes are not known.
    """

    users: int
    pd_difference: float
    auc: float
    auc_reference: float

    @property
    def auc_difference(self) -> float:
        """How far the AUCs are from each other."""
        return abs(self.auc - self.auc_reference)


def export(
    release: Release, folder: Path, precision: Precision, records: Sequence[Record] = ()
) -> Parity:
    """Export a release, check it against the reference, and seal it; whole or not at all.

    Args:
        release: What is exported.
        folder: Its place, which must not exist.
        precision: "float32", or "int8": weights in 8 bits, activations quantised row by row.
        records: Users whose outcomes are known, for the check; needed for int8.

    Raises:
        ShardError: If the export's scores are too far from the reference's, or int8 has too few
            users to be checked on.
        TrustError, WireError, BackboneError, FetchError: As `open_reference`; WireError also where
            the folder exists or cannot be written.
    """
    known = [record for record in records if record.label is not None]
    if precision == "int8":
        _check_checkable(release.resolved, known)
    model = open_model(release)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        _export(model, path)
        if precision == "int8":
            path = _quantised(path)
        content = path.read_bytes()
    reference = engine_of(model)
    rows = rows_of(precision)
    engine = replace(reference, forward=forward_of(content), name=precision, rows=rows)
    parity = compare(engine, reference, known or made_up(release.resolved), bool(known))
    if precision == "float32" and not parity.pd_difference <= CLOSE:
        raise ShardError(
            f"the export's probabilities are up to {parity.pd_difference:.2g} from the "
            f"reference's, must be at most {CLOSE:g}: not written"
        )
    if precision == "int8" and not parity.auc_difference <= AUC_CLOSE:
        raise ShardError(
            f"in int8 the AUC of {parity.users} users is {parity.auc:.4f}, of the reference "
            f"{parity.auc_reference:.4f}: must be within {AUC_CLOSE:g}; not written"
        )
    manifest = {
        "format": FORMAT,
        "release": release.digest,
        "precision": precision,
        "parity": {n: _plain(value) for n, value in vars(parity).items()},
    }
    write_sealed(folder, MANIFEST, manifest, {MODEL: content})
    return parity


def compare(engine: Engine, reference: Engine, records: Sequence[Record], labelled: bool) -> Parity:
    """An engine's scores beside the reference's, of the same records."""
    ours, theirs = engine.score(records), reference.score(records)
    contract = reference.contract
    auc = [math.nan, math.nan]
    if labelled and contract.task.kind == "binary":
        labels = np.array([record.label for record in records])
        auc = [metrics.auc_exact(each[:, 0], labels) for each in (ours, theirs)]
    told = [_probabilities(contract, each) for each in (ours, theirs)]
    return Parity(
        users=len(records) if labelled else 0,
        pd_difference=float(np.abs(told[0] - told[1]).max()),
        auc=auc[0],
        auc_reference=auc[1],
    )


def made_up(contract: Contract, count: int = 96) -> list[Record]:
    """Records made of the contract alone, always the same: values about its edges, its codes.

    Of each record some fields are missing; steps that share no factor with a field's number of
    values walk through their combinations.
    """
    names = list(reference_record(contract).values)
    texts = [f.name for f in contract.fields if f.kind == "text"]
    phrases = [f.name.replace("_", " ") for f in contract.fields]
    records = []
    for number in range(count):
        values: dict[str, float | str | None] = dict.fromkeys(names)
        for place, field in enumerate(contract.wide_fields):
            step = number * (2 * place + 1) + place
            if step % 11 == 10:
                continue
            if isinstance(field, NumberField):
                edges = field.edges or field.grid.inner
                about = edges[step % len(edges)] + (step % 5 - 2) / 2
                values[field.name] = min(max(about, field.range[0]), field.range[1])
            else:
                values[field.name] = field.values[step % len(field.values)]
        for place, name in enumerate(texts):
            said = [phrases[(number * k + place) % len(phrases)] for k in range(number % 30)]
            values[name] = " ".join(said)
        records.append(Record(values=values, protected={}, label=None))
    return records


class _Scorer(nn.Module):
    """The model as one function of arrays."""

    def __init__(self, model: CreditModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor | None, mask: Tensor | None, wide: Tensor | None) -> Tensor:
        hidden = None
        if ids is not None and mask is not None:
            hidden = self.model.frozen(ids, mask)
        score: Tensor = self.model(hidden, mask, wide)
        return score


def _export(model: CreditModel, path: Path) -> None:
    merged = model.merged()
    rows = torch.export.Dim("rows", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=model.contract.model.tokens)
    ids = mask = wide = None
    shapes: dict[str, Any] = {"ids": None, "mask": None, "wide": None}
    if model.reads_text:
        write_out_attention(merged.bert)
        ids = torch.zeros(4, 8, dtype=torch.int64)
        mask = torch.ones(4, 8, dtype=torch.bool)
        shapes["ids"] = shapes["mask"] = {0: rows, 1: length}
    if "wide" in model.contract.model.train:
        wide = torch.zeros(4, merged.wide.weight.shape[1])
        shapes["wide"] = {0: rows}
    names = [n for n, array in (("ids", ids), ("mask", mask), ("wide", wide)) if array is not None]
    with _quiet():
        program = torch.onnx.export(
            _Scorer(merged).eval(),
            (ids, mask, wide),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=["score"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(path)


def _quantised(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = path.with_name("int8.onnx")
    with _quiet():
        # A scale for each column of weights: one for a whole matrix doubles the error. All eight
        # bits: that sums may saturate on processors without VNNI shows less than a bit less would.
        quantize_dynamic(
            path,
            out,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=False,
            extra_options={"MatMulConstBOnly": True},
        )
    return out


class _quiet:  # noqa: N801  # reads as a function
    """Hold back what the exporters say to nobody in particular."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(self._before)
        self._warnings.__exit__(None, None, None)


def _check_checkable(contract: Contract, known: Sequence[Record]) -> None:
    if contract.task.kind != "binary":
        raise ShardError(f"task.kind = {contract.task.kind!r}: int8 is checked by AUC, of binary")
    bad = sum(record.label == 1 for record in known)
    good = len(known) - bad
    if len(known) < FEWEST or min(bad, good) < FEWEST_OF_EACH:
        raise ShardError(
            f"int8 is checked on users whose outcomes are known: {len(known)} of them, {bad} "
            f"defaulted; must be at least {FEWEST}, {FEWEST_OF_EACH} with and without"
        )


def _probabilities(contract: Contract, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    if contract.task.kind == "binary":
        return default_probability(contract, scores[:, 0])
    if contract.task.kind == "multiclass":
        return class_probabilities(contract, scores)
    return scores.astype(np.float64)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
