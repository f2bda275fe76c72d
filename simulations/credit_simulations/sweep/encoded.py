"""The frozen layers' output of a public data set, kept as files that all processes map.

A sweep trains on the same users many times, under other splits, partitions and ε, in several
processes. What BERT's frozen layers put out does not depend on these, so it is computed once on a
machine and kept in the cache folder: half precision, one file for each padded length. The files are
mapped, so that processes share the memory. Holders never do this (see `credit_client.cache`); the
data sets here are public.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from credit_client.training.examples import Examples
from credit_client.training.hidden import Frozen
from credit_common.contract import Contract
from credit_common.fetch import cache_folder, write_atomically
from credit_common.fields import Field
from credit_common.model import CreditModel
from credit_common.record import Record

LAYOUT = 1
"""Version of the files; one more whenever what they hold changes."""
_COUNTS, _INDEX = "counts.npy", "index.json"


def encoded(
    model: CreditModel,
    contract: Contract,
    records: Sequence[Record],
    rows: NDArray[np.intp],
    data_sha256: str,
) -> tuple[Examples, Examples]:
    """Examples of all records, and the same at [CLS] of the frozen BERT; from the files, or made.

    Another process that makes the same files is waited for.

    Args:
        model: Resident, of `contract`.
        contract: Reads text and trains LoRA.
        records: All users, in a fixed order.
        rows: Of the file, that they were read from.
        data_sha256: Of the file that they were read from.
    """
    folder = cache_folder() / "encoded" / _key(model, contract, rows, data_sha256)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        if not (folder / _INDEX).is_file():
            made = Examples(model, contract, records)
            _write(folder, made.frozen(), made.at_cls(model).frozen())
    whole, cls = _read(folder)
    examples = Examples(model, contract, records, frozen=whole)
    return examples, examples.with_cls(cls)


def _key(model: CreditModel, contract: Contract, rows: NDArray[np.intp], data_sha256: str) -> str:
    """What texts and their frozen output depend on, and nothing else of the contract."""
    assert model.backbone is not None
    told = {
        "layout": LAYOUT,
        "data": data_sha256,
        "rows": hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest(),
        "backbone": model.backbone.sha256,
        "fields": [
            _said(f) for f in contract.fields if f.kind == "time" or getattr(f, "text", "") != ""
        ],
        "tokens": contract.model.tokens,
        "layers": contract.model.layers,
        "bf16": model.bf16,
    }
    if contract.model.mean_weight:
        told["mean_weight"] = contract.model.mean_weight
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _said(field: Field) -> dict[str, object]:
    """A field without its bins and examples, which no text tells."""
    return {k: v for k, v in asdict(field).items() if k not in ("edges", "quantiles", "examples")}


def _write(folder: Path, whole: Frozen, cls: Frozen) -> None:
    np.save(folder / _COUNTS, whole.counts)
    shapes = {}
    for kind, frozen in (("whole", whole), ("cls", cls)):
        for length, rows in frozen.rows.items():
            name = f"{kind}-{length}"
            rows.numpy().tofile(folder / name)
            shapes[name] = list(rows.shape)
    # Last and whole: it says that all is there.
    write_atomically(folder / _INDEX, json.dumps(shapes).encode())


def _read(folder: Path) -> tuple[Frozen, Frozen]:
    counts = np.load(folder / _COUNTS)
    rows: dict[str, dict[int, torch.Tensor]] = {"whole": {}, "cls": {}}
    for name, shape in json.loads((folder / _INDEX).read_text()).items():
        kind, _, length = name.partition("-")
        size = int(np.prod(shape))
        mapped = torch.from_file(str(folder / name), shared=False, size=size, dtype=torch.half)
        rows[kind][int(length)] = mapped.reshape(shape)
    return Frozen(counts=counts, rows=rows["whole"]), Frozen(counts=counts, rows=rows["cls"])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
