"""A file of records -> a file of scores, by a release, at the holder.

The scores are those of the model in its federation, but from full-precision hidden states. Of file
and scores a block at a time is in memory.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from credit_client.mapping import ShardMapping
from credit_client.scoring.calibration import Calibration
from credit_client.scoring.engine import Engine
from credit_client.scoring.points import class_probabilities, target_value
from credit_client.scoring.reasons import MOST, adverse, attributions, words
from credit_client.scoring.reference import open_reference
from credit_client.scoring.sink import Kinds, open_sink
from credit_client.scoring.stream import Scored, Stream
from credit_client.scoring.told import Told, tell
from credit_client.shard import write_rejects
from credit_common.contract import Contract
from credit_common.decision import Decision
from credit_common.errors import ContractError, ShardError
from credit_common.release import open_release

BLOCK = 8192
"""Records that are scored together."""

Progress = Callable[[int, int], None]
"""Called with the number of records scored so far, and the most that there can be."""

REASONED = ("adverse", "all", "none")
"""Who is given reasons: whoever is not approved, all, or nobody."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is told beside the score.

    Attributes:
        calibration: The holder's, for this release.
        decision: The holder's cut-offs and bands; None for the contract's.
        reasoned: Who is given reasons, one of `REASONED`; "adverse" is nobody without cut-offs.
        most: Reasons of each.
        language: Of their texts.
    """

    calibration: Calibration | None = None
    decision: Decision | None = None
    reasoned: str = "adverse"
    most: int = MOST
    language: str = "en"

    def __post_init__(self) -> None:
        if not 1 <= self.most <= 20:
            raise ShardError(f"reasons = {self.most}: must be between 1 and 20")


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What became of a file.

    Attributes:
        rows: Data rows of the file.
        scored: Records in the output, one a user.
        rejected: Rows that could not be used.
        duplicates: Rows that repeat another of the same user.
        decisions: Records by decision; empty where nothing decides.
        seconds: Wall time.
        out: The file of scores.
    """

    rows: int
    scored: int
    rejected: int
    duplicates: int
    seconds: float
    out: Path
    decisions: dict[str, int] = field(default_factory=dict)


def score_file(
    release: Path,
    shard: Path,
    out: Path,
    *,
    engine: Engine | None = None,
    device: str = "auto",
    mapping: ShardMapping | None = None,
    wanted: Wanted | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    on_progress: Progress = lambda done, all_: None,
) -> ScoreSummary:
    """Score a file as the release's contract reads it; no label is needed.

    The output is CSV, or Parquet where its name says so, with a line for each user, in the order of
    their last rows in the file: the data row, the user id as it stands in the file, then pd, logit
    and points (binary), a probability of each class (p_CODE), or the value in the target's unit;
    calibrated_pd, band and decision where there are such, and reason_1, reason_1_text, ... Rows
    that cannot be used are listed beside it, in OUT.rejects.csv, where there are some. Both files
    are for their owner's eyes alone.

    Args:
        release: Folder of the release.
        shard: The merchant's file.
        out: File to write; it appears when it is complete.
        engine: The release's, where it is open already; None for the reference.
        device: Of the reference, as for `device_of`.
        mapping: Translation from the merchant's columns, codes and units.
        wanted: What is told beside the score.
        limit: Score at most so many records, the first ones.
        overwrite: Whether files that are there already are replaced.
        on_progress: Called after each batch.

    Raises:
        ShardError: If the file cannot be used, or an output cannot be written there.
        ContractError: If what is wanted is not of the contract's task.
        TrustError, WireError: If the release is not whole, see `open_release`.
        BackboneError, FetchError: If its BERT cannot be had.
    """
    start = time.perf_counter()
    if limit is not None and limit < 1:
        raise ShardError(f"limit = {limit}: must be at least 1")
    rejects = rejects_of(out)
    for path in (out, rejects):
        check_place(path, shard, release, overwrite)
    engine = engine or open_reference(open_release(release), device)
    teller = _Teller(engine, wanted or Wanted())
    stream = Stream(shard, engine.contract, mapping or ShardMapping())
    counts, scored = stream.counts, 0
    decisions: dict[str, int] = {}
    with open_sink(out, teller.kinds) as sink:
        left = counts.all_rows if limit is None else limit
        for block in stream.blocks(min(BLOCK, left)):
            before, taken = scored, block[: left - scored]

            def tell_progress(done: int, before: int = before) -> None:
                on_progress(before + done, left)

            lines, verdicts = teller.lines(taken, tell_progress)
            sink.write(lines)
            scored += len(taken)
            for verdict in verdicts:
                decisions[verdict] = decisions.get(verdict, 0) + 1
            if scored == limit:
                break
        rejects.unlink(missing_ok=True)  # those of an older run
    if counts.rejects:
        write_rejects(rejects, sorted(counts.rejects, key=lambda reject: reject.row))
    return ScoreSummary(
        rows=counts.all_rows,
        scored=scored,
        rejected=len(counts.rejects),
        duplicates=counts.duplicates,
        decisions=decisions,
        seconds=time.perf_counter() - start,
        out=out,
    )


def rejects_of(out: Path) -> Path:
    """Where the rows that cannot be used are listed."""
    name = out.name
    for ending in (".csv", ".parquet", ".pq"):
        name = name.removesuffix(ending)
    return out.with_name(name + ".rejects.csv")


class _Teller:
    """Records -> lines of the output."""

    def __init__(self, engine: Engine, wanted: Wanted) -> None:
        self._engine, self._wanted = engine, wanted
        contract = engine.contract
        rules = contract.decision if wanted.decision is None else wanted.decision
        self._binary = contract.task.kind == "binary"
        asked = wanted.calibration or wanted.decision or wanted.reasoned == "all"
        if asked and not self._binary:
            raise ContractError(
                f"task.kind = {contract.task.kind!r}: calibration, decisions and reasons are of a "
                "binary task"
            )
        self._reasons = 0
        if self._binary and wanted.reasoned != "none":
            self._reasons = wanted.most if rules.decides or wanted.reasoned == "all" else 0
        if self._reasons:
            import captum.attr  # noqa: F401  # where it is missing, said before the work is done
        kinds: dict[str, type] = {"row": int, contract.record.user: str}
        kinds |= dict.fromkeys(_columns(contract), float)
        if wanted.calibration is not None:
            kinds["calibrated_pd"] = float
        if self._binary and rules.bands:
            kinds["band"] = str
        if self._binary and rules.decides:
            kinds["decision"] = str
        for number in range(1, self._reasons + 1):
            kinds |= {f"reason_{number}": str, f"reason_{number}_text": str}
        self.kinds: Kinds = kinds

    def lines(
        self, block: Sequence[Scored], on_progress: Callable[[int], None]
    ) -> tuple[list[list[object]], list[str]]:
        """A line for each record, and the decisions."""
        records = [one.example.record for one in block]
        scores = self._engine.score(records, on_progress)
        heads: list[list[object]] = [[one.example.row, one.user] for one in block]
        if not self._binary:
            told = _others(self._engine.contract, scores)
            return [[*head, *cells] for head, cells in zip(heads, told, strict=True)], []
        wanted = self._wanted
        every = tell(self._engine.contract, scores[:, 0], wanted.calibration, wanted.decision)
        reasons = self._explain(block, every)
        lines = [
            [*head, *self._cells(one), *why]
            for head, one, why in zip(heads, every, reasons, strict=True)
        ]
        return lines, [one.decision for one in every if one.decision]

    def _cells(self, told: Told) -> list[object]:
        every: dict[str, object] = {
            "pd": told.pd,
            "logit": told.logit,
            "points": told.points,
            "calibrated_pd": told.calibrated_pd,
            "band": told.band,
            "decision": told.decision,
        }
        return [cell for name, cell in every.items() if name in self.kinds]

    def _explain(self, block: Sequence[Scored], every: Sequence[Told]) -> list[list[object]]:
        """Cells of reasons, as many for every record."""
        cells: list[list[object]] = [[None] * (2 * self._reasons) for _ in block]
        if not self._reasons:
            return cells
        all_ = self._wanted.reasoned == "all"
        places = [i for i, told in enumerate(every) if all_ or told.decision != "approve"]
        found = attributions(self._engine, [block[i].example.record for i in places])
        for place, shares in zip(places, found, strict=True):
            for number, one in enumerate(adverse(shares, self._reasons)):
                text = words(self._engine.contract, one.field, self._wanted.language)
                cells[place][2 * number : 2 * number + 2] = [one.field, text]
        return cells


def _columns(contract: Contract) -> list[str]:
    if contract.task.kind == "binary":
        return ["pd", "logit", "points"]
    if contract.task.kind == "multiclass":
        return [f"p_{code}" for code in contract.task.classes]
    return ["value"]


def _others(contract: Contract, scores: NDArray[np.float32]) -> list[list[float]]:
    if contract.task.kind == "multiclass":
        return [list(map(float, row)) for row in class_probabilities(contract, scores)]
    return [[value] for value in target_value(contract, scores[:, 0]).tolist()]


def check_place(path: Path, shard: Path, release: Path, overwrite: bool) -> None:
    """Refuse a place that would lose something, or cannot be written to, before the work is done.

    Raises:
        ShardError: Naming it and why.
    """
    if path.exists():
        if shard.exists() and path.samefile(shard):
            raise ShardError(f"{path}: is the shard itself, and would be lost")
        if not overwrite:
            raise ShardError(f"{path}: exists already; --overwrite replaces it")
        if not path.is_file():
            raise ShardError(f"{path}: is not a file, and is not replaced")
    if path.resolve().is_relative_to(release.resolve()):
        raise ShardError(f"{path}: is inside the release, which would no longer be one")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ShardError(f"{path}: its folder does not exist or cannot be written to")
