"""An export in ONNX Runtime: one engine more for a release."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_client.scoring.engine import ROWS, Engine, Forward, Tokens
from credit_common.backbone import load_tokenizer, resolve_backbone, token_ids
from credit_common.errors import TrustError
from credit_common.release import Release
from credit_common.sealed import open_sealed

MANIFEST, MODEL = "export.json", "model.onnx"
_KEYS = ("format", "release", "precision", "parity")


def open_export(release: Release, folder: Path, threads: int | None = None) -> Engine:
    """The engine of an export.

    Args:
        release: That it is of.
        folder: The export's.
        threads: Of one forward pass; None for as many as there are cores.

    Raises:
        TrustError: If it is of another release, or a file is not the one that was sealed.
        WireError: If a file is missing or malformed.
        BackboneError, FetchError: If the backbone's tokenizer cannot be had.
    """
    sealed = open_sealed(folder, MANIFEST, _KEYS)
    made_of, precision = sealed.manifest["release"], sealed.manifest["precision"]
    if made_of != release.digest:
        raise TrustError(f"{folder}: is an export of another release, {str(made_of)[:16]}")
    if precision not in ("float32", "int8") or MODEL not in sealed.files:
        raise TrustError(f"{folder}: is not an export that this version makes")
    tokens, padding = _tokens(release) if release.contract.model.reads_text else (None, 0)
    return Engine(
        contract=release.resolved,
        forward=forward_of(sealed.files[MODEL], threads),
        tokens=tokens,
        padding=padding,
        name="onnx" if precision == "float32" else "int8",
        rows=rows_of(precision),
    )


def rows_of(precision: str) -> int:
    """Rows of a batch: in int8 each has one, since a batch's activations have one scale."""
    return 1 if precision == "int8" else ROWS


def forward_of(content: bytes, threads: int | None = None) -> Forward:
    """The function that an ONNX model's bytes are."""
    session = _session(content, threads)
    names = [given.name for given in session.get_inputs()]

    def forward(
        ids: NDArray[np.int64] | None,
        mask: NDArray[np.bool_] | None,
        wide: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        given = {"ids": ids, "mask": mask, "wide": wide}
        (scores,) = session.run(None, {name: given[name] for name in names})
        return np.asarray(scores, np.float32)

    return forward


def _session(content: bytes, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _tokens(release: Release) -> tuple[Tokens, int]:
    spec = release.contract.model
    backbone = resolve_backbone(spec)
    if backbone.sha256 != release.backbone_sha256:
        raise TrustError(f"{release.folder}: was trained on a backbone of another SHA-256")
    tokenizer = load_tokenizer(backbone)
    return lambda texts: token_ids(tokenizer, texts, spec.tokens), tokenizer.pad_token_id
