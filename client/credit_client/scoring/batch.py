"""A file of records -> a file of scores, by a release, at the holder.

The scores are those of the model in its federation, but from full-precision hidden states: nothing
is kept from one batch to the next. A score depends on its own record alone, whoever else is in the
file: texts are padded by their own length, and batches always have the same number of rows.
"""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from credit_client.complete import check_place, complete
from credit_client.mapping import ShardMapping
from credit_client.scoring.points import (
    class_probabilities,
    default_probability,
    points,
    target_value,
)
from credit_client.shard import Example, read_shard, user_key, write_rejects
from credit_client.table import read_table
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.errors import ShardError, TrustError
from credit_common.model import CreditModel, bucket_length
from credit_common.record import Record, code_of
from credit_common.release import Release, open_release
from credit_common.text import record_text, wide_features

ROWS = 64
"""Rows of a batch."""
BLOCK = 4096
"""Records that are turned into tokens at a time."""

Progress = Callable[[int, int], None]
"""Called with the number of records scored so far, and of all."""


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What became of a file.

    Attributes:
        rows: Data rows of the file.
        scored: Records in the output, one a user.
        rejected: Rows that could not be used.
        duplicates: Rows that repeat another of the same user.
        seconds: Wall time, opening the model included.
        out: The file of scores.
    """

    rows: int
    scored: int
    rejected: int
    duplicates: int
    seconds: float
    out: Path


def score_file(
    release: Path,
    shard: Path,
    out: Path,
    *,
    mapping: ShardMapping | None = None,
    device: str = "auto",
    limit: int | None = None,
    overwrite: bool = False,
    on_progress: Progress = lambda done, all_: None,
) -> ScoreSummary:
    """Score a file as the release's contract reads it; no label is needed.

    The output is a CSV with a line for each user, in the file's order: the data row, the user id as
    it stands in the file, then pd, logit and points (binary), a probability of each class
    (p_CODE), or the value in the target's unit. Rows that cannot be used are listed beside it, in
    OUT.rejects.csv, where there are some. Both files are for their owner's eyes alone.

    Args:
        release: Folder of the release.
        shard: The merchant's file.
        out: CSV to write; it appears when it is complete.
        mapping: Translation from the merchant's columns, codes and units.
        device: As for `device_of`.
        limit: Score at most so many records, the first ones of the file.
        overwrite: Whether files that are there already are replaced.
        on_progress: Called after each batch.

    Raises:
        ShardError: If the file cannot be used, or an output cannot be written there.
        TrustError, WireError: If the release is not whole, see `open_release`.
        BackboneError, FetchError: If its BERT cannot be had.
    """
    start = time.perf_counter()
    if limit is not None and limit < 1:
        raise ShardError(f"limit = {limit}: must be at least 1")
    rejects = out.with_name(out.name.removesuffix(".csv") + ".rejects.csv")
    for path in (out, rejects):
        check_place(path, shard, release, overwrite)
    opened = open_release(release)
    contract, mapping = opened.contract, mapping or ShardMapping()
    read = read_shard(shard, contract, mapping=mapping, require_label=False)
    examples = sorted((*read.train, *read.holdout), key=lambda example: example.row)[:limit]
    ids = _user_ids(shard, contract, mapping, examples)
    model = open_model(opened, device)
    scores = score_records(model, [example.record for example in examples], on_progress)
    columns, told = _told(contract, scores)
    with complete(out, "the scores") as file:
        writer = csv.writer(file)
        writer.writerow(["row", contract.record.user, *columns])
        for example, user, cells in zip(examples, ids, told, strict=True):
            writer.writerow([example.row, user, *cells])
        rejects.unlink(missing_ok=True)  # those of an older run
    if read.rejects:
        write_rejects(rejects, read)
    return ScoreSummary(
        rows=read.rows,
        scored=len(examples),
        rejected=len(read.rejects),
        duplicates=read.duplicates,
        seconds=time.perf_counter() - start,
        out=out,
    )


def open_model(release: Release, device: str = "cpu") -> CreditModel:
    """The model of a release, ready to score.

    Raises:
        TrustError: If the backbone at hand is not the one of the release.
        WireError: If the release does not fit the backbone.
        BackboneError, FetchError: If the backbone cannot be had.
    """
    spec = release.contract.model
    backbone = resolve_backbone(spec) if spec.reads_text else None
    if backbone is not None and backbone.sha256 != release.backbone_sha256:
        raise TrustError(f"{release.folder}: was trained on a backbone of another SHA-256")
    # float32 everywhere: a score is the documented function, whatever the processor.
    model = CreditModel(release.resolved, backbone, device_of(device), "float32")
    model.load_fixed(release.fixed)
    model.load_adapter(release.adapter)
    return model


@torch.no_grad()
def score_records(
    model: CreditModel,
    records: Sequence[Record],
    on_progress: Progress = lambda done, all_: None,
) -> NDArray[np.float32]:
    """Raw scores (n, outputs) of records, by the model as it is."""
    scores = np.zeros((len(records), model.contract.task.outputs), np.float32)
    done = 0
    for first in range(0, len(records), BLOCK):
        block = records[first : first + BLOCK]
        for rows, batch in _batches(model, block):
            scores[first + rows] = batch
            done += len(rows)
            on_progress(done, len(records))
    return scores


def _batches(
    model: CreditModel, records: Sequence[Record]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Scores of a block, batch by batch: which records, and (rows, outputs)."""
    contract = model.contract
    tokens: list[NDArray[np.int64]] = []
    if model.reads_text:
        tokens = model.tokens([record_text(contract, record) for record in records])
    longest = contract.model.tokens
    lengths = np.array([bucket_length(len(own), longest) for own in tokens] or [0] * len(records))
    for length in sorted(set(lengths.tolist())):
        members = np.flatnonzero(lengths == length)
        for start in range(0, len(members), ROWS):
            rows = members[start : start + ROWS]
            filled = np.concatenate([rows, np.repeat(rows[:1], ROWS - len(rows))])
            hidden = mask = wide = None
            if model.reads_text:
                ids, mask = model.padded([tokens[row] for row in filled], length)
                hidden = model.frozen(ids, mask)
            if "wide" in contract.model.train:
                features = np.stack([wide_features(contract, records[row]) for row in filled])
                wide = torch.from_numpy(features).to(model.device)
            yield rows, model(hidden, mask, wide)[: len(rows)].cpu().numpy()


def _told(contract: Contract, scores: NDArray[np.float32]) -> tuple[list[str], list[list[str]]]:
    """Column names, and the cells of each record."""
    if contract.task.kind == "binary":
        logits = scores[:, 0].astype(np.float64)
        columns = (default_probability(contract, logits), logits)
        card = points(contract.scorecard, logits)
        cells = [
            [f"{pd:.6f}", f"{logit:.6f}", f"{point:.1f}"]
            for pd, logit, point in zip(*columns, card, strict=True)
        ]
        return ["pd", "logit", "points"], cells
    if contract.task.kind == "multiclass":
        shares = class_probabilities(contract, scores)
        names = [f"p_{code}" for code in contract.task.classes]
        return names, [[f"{share:.6f}" for share in row] for row in shares]
    values = target_value(contract, scores[:, 0])
    return ["value"], [[f"{value:.6f}"] for value in values]


def _user_ids(
    path: Path, contract: Contract, mapping: ShardMapping, examples: Sequence[Example]
) -> list[str]:
    """Each example's user id as it stands in the file."""
    table = read_table(path)
    place = table.columns.index(mapping.column(contract.record.user))
    cells = dict(table.rows)
    ids = []
    for example in examples:
        raw = cells[example.row][place] if example.row in cells else None
        if user_key(contract.split.salt, code_of(raw)) != example.key:
            raise ShardError(f"{path}: has changed while it was read")
        ids.append(raw if isinstance(raw, str) else code_of(raw))
    return ids
