"""Scoring a file: our engines beside a plain loop of transformers and peft, on one thread.

Each arm reads the same file, parses its records by the same code and scores them; ours write their
output too. Models are open before the clock starts.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from credit_client.scoring.batch import Wanted, score_file
from credit_client.scoring.engine import Engine
from credit_client.scoring.export import export
from credit_client.scoring.reference import open_reference, use_threads
from credit_client.scoring.runtime import open_export
from credit_client.shard import read_shard
from credit_common.backbone import resolve_backbone
from credit_common.errors import ShardError
from credit_common.record import Record
from credit_common.release import Release, open_release
from credit_simulations.bench.measured import Measured, Value
from credit_simulations.bench.plain import PlainLoop
from credit_simulations.bench.released import train_release

HOLDERS = 5
TRAINING_USERS = 1500
"""Of each holder: enough that the adapter is one of a real training."""

PLAIN, TORCH, ONNX, INT8 = "plain loop", "torch", "onnx", "onnx int8"


def measure_scoring(
    names: list[str], rows: int, repeats: int, stage: Callable[[str], None]
) -> Measured:
    """Rows a second and distance from the plain loop, by data set.

    Args:
        names: Packaged data sets.
        rows: Of the biggest holder's file, that are scored.
        repeats: The arms take turns in each.
        stage: Told what begins.
    """
    use_threads(1)
    told: list[dict[str, Value]] = []
    refused: list[str] = []
    for name in names:
        with TemporaryDirectory(prefix="credit-sim-") as folder:
            told += _measure(name, Path(folder), rows, repeats, stage, refused)
    fastest = {arm: [row for row in told if row["arm"] == arm] for arm in (ONNX, INT8)}
    return Measured(
        title="scoring a file, one thread",
        command=f"credit-sim bench scoring --data {','.join(names)} --rows {rows} "
        f"--repeats {repeats}",
        figures={
            "batch_over_plain": _least(fastest[INT8], "over_plain"),
            "batch_over_plain_float32": _least(fastest[ONNX], "over_plain"),
            "pd_difference_max": _most(fastest[ONNX], "pd_difference_max"),
            "auc_difference_int8": _most(fastest[INT8], "auc_difference"),
        },
        rows=told,
        notes=(
            "The file is read and parsed by the same code in every arm; the plain loop pads to "
            "its longest text and writes nothing. Medians of paired repetitions, wall time.",
            *refused,
        ),
    )


def _measure(
    name: str,
    folder: Path,
    rows: int,
    repeats: int,
    stage: Callable[[str], None],
    refused: list[str],
) -> list[dict[str, Value]]:
    """Rows of one data set; an export that is refused is told in `refused`."""
    stage(f"{name}: training a release")
    whole, _ = train_release(name, folder / "release", HOLDERS, TRAINING_USERS)
    release = open_release(folder / "release")
    shard = folder / "shard.parquet"
    pd.read_parquet(whole).head(rows).to_parquet(shard)
    records = _records(release, whole)
    stage(f"{name}: exporting it, checked on {len(records)} users")
    export(release, folder / "onnx", "float32", records)
    engines = {TORCH: open_reference(release), ONNX: open_export(release, folder / "onnx", 1)}
    difference = math.nan
    try:
        difference = export(release, folder / "int8", "int8", records).auc_difference
        engines[INT8] = open_export(release, folder / "int8", 1)
    except ShardError as error:
        refused.append(f"{name}: {error}.")
    backbone = resolve_backbone(release.contract.model).folder
    plain = PlainLoop(release.folder, backbone, release.resolved)
    runs: dict[str, Callable[[], NDArray[np.float32]]] = {
        PLAIN: lambda: plain.scores(_records(release, shard))[:, 0]
    }
    for arm, engine in engines.items():
        runs[arm] = _ours(engine, release, shard, folder / f"{arm.replace(' ', '-')}.parquet")
    seconds: dict[str, list[float]] = {arm: [] for arm in runs}
    logits: dict[str, NDArray[np.float32]] = {}
    for number in range(repeats):
        stage(f"{name}: scoring {rows} rows, repetition {number + 1} of {repeats}")
        for arm, run in runs.items():
            start = time.perf_counter()
            logits[arm] = run()
            seconds[arm].append(time.perf_counter() - start)
    return [
        {
            "data": name,
            "arm": arm,
            "rows": len(logits[arm]),
            "rows_per_s": round(len(logits[arm]) / statistics.median(seconds[arm]), 1),
            "over_plain": round(_ratio(seconds[PLAIN], seconds[arm]), 2),
            "pd_difference_max": _distance(logits[arm], logits[PLAIN]),
            "auc_difference": round(difference, 5) if arm == INT8 else None,
        }
        for arm in runs
    ]


def _ours(
    engine: Engine, release: Release, shard: Path, out: Path
) -> Callable[[], NDArray[np.float32]]:
    def run() -> NDArray[np.float32]:
        wanted = Wanted(reasoned="none")
        score_file(release.folder, shard, out, engine=engine, wanted=wanted, overwrite=True)
        logits: NDArray[np.float32] = pd.read_parquet(out)["logit"].to_numpy(np.float32)
        return logits

    return run


def _records(release: Release, shard: Path) -> list[Record]:
    """Users of a file, in its order."""
    read = read_shard(shard, release.resolved)
    every = sorted((*read.train, *read.holdout), key=lambda example: example.row)
    return [example.record for example in every]


def _ratio(base: list[float], own: list[float]) -> float:
    return statistics.median(b / o for b, o in zip(base, own, strict=True))


def _distance(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Largest difference of a PD."""
    pds = [1 / (1 + np.exp(-each.astype(np.float64))) for each in (ours, theirs)]
    return float(f"{np.abs(pds[0] - pds[1]).max():.3g}")


def _least(rows: list[dict[str, Value]], name: str) -> float | None:
    return min(_numbers(rows, name), default=None)


def _most(rows: list[dict[str, Value]], name: str) -> float | None:
    return max(_numbers(rows, name), default=None)


def _numbers(rows: list[dict[str, Value]], name: str) -> list[float]:
    return [value for row in rows if isinstance(value := row[name], float)]
