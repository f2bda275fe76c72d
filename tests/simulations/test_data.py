import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from credit_common.errors import FetchError
from credit_simulations import data
from credit_simulations.data import SOURCES, describe, prepare, slug, write_parquet

KNOWN = {  # rows, defaults, holders
    "pakdd2009": (39_988, 7_917, 31),
    "taiwan": (30_000, 6_636, 13),
    "german": (1_000, 300, 10),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_rows_defaults_and_holders_are_the_published_ones(name):
    found = describe(name)
    rows, defaults, holders = KNOWN[name]
    assert (found.rows, round(found.default_rate * rows)) == (rows, defaults)
    assert len(found.holders) == holders
    assert sum(found.holders.values()) == rows
    assert list(found.holders.values()) == sorted(found.holders.values(), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_raw_file_gives_the_same_bytes(name, tmp_path):
    first = prepare(name)
    (member,) = SOURCES[name].pinned.members
    raw = (data.cache_folder() / "raw" / member).read_bytes()
    write_parquet(SOURCES[name].read(raw), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == first.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_client_ids_are_unique_and_holders_have_file_names(name):
    frame = pd.read_parquet(prepare(name))
    assert frame["client_id"].is_unique
    assert all(slug(holder) == holder for holder in frame["holder"].unique())
    assert not [c for c in frame.columns if c.startswith(("Unnamed", "index"))]


@pytest.mark.slow
def test_pakdd_ids_number_the_raw_rows_and_misaligned_rows_are_gone():
    frame = pd.read_parquet(prepare("pakdd2009"))
    numbers = set(frame["client_id"].str.removeprefix("pakdd-").astype(int))
    gone = set(range(1, 40_001)) - numbers
    assert len(gone) == 12
    assert {895, 2725, 37349} <= gone  # rows of the raw file labelled N, counted from 1
    assert set(frame["FLAG_MOBILE_PHONE"]) == {"N"}  # names stood here
    assert frame["TARGET_LABEL_BAD=1"].dtype == "int64"


@pytest.mark.slow
def test_taiwan_codes_come_back_from_their_indicator_columns():
    frame = pd.read_parquet(prepare("taiwan"))
    education = frame["EDUCATION"].value_counts().to_dict()
    assert education == {2: 14_030, 1: 10_585, 3: 4_917, 5: 280, 4: 123, 6: 51, 0: 14}
    marriage = frame["MARRIAGE"].value_counts().to_dict()
    assert marriage == {2: 15_964, 1: 13_659, 3: 323, 0: 54}
    first = frame.iloc[0]
    assert (first["EDUCATION"], first["MARRIAGE"], first["LIMIT_BAL"]) == (2, 1, 20_000)
    assert first["holder"] == "university-under-100k"


@pytest.mark.parametrize(
    ("education", "limit", "holder"),
    [
        (1, 99_999, "graduate-school-under-100k"),
        (1, 100_000, "graduate-school-100k-200k"),
        (2, 299_999, "university-200k-300k"),
        (3, 300_000, "high-school-300k-and-more"),
        (0, 10_000, "other-education"),
        (5, 900_000, "other-education"),
    ],
)
def test_taiwan_holders_are_half_open_limit_bands(education, limit, holder):
    assert data._taiwan_holder(education, limit) == holder


@pytest.mark.slow
def test_german_keeps_phrases_and_no_phrase_reads_as_missing():
    frame = pd.read_parquet(prepare("german"))
    assert "... < 0 DM" in set(frame["status_of_existing_checking_account"])
    texts = frame.select_dtypes(exclude="number")
    assert not texts.isin(["", "none", "NA", "nan"]).any(axis=None)
    assert not texts.isna().any(axis=None)


def test_unknown_names_are_refused_before_anything_is_fetched(cache):
    for call in (prepare, describe):
        with pytest.raises(FetchError, match="unknown data set 'pakdd2010'; known: pakdd2009"):
            call("pakdd2010")
    with pytest.raises(FetchError, match="unknown data set 'minilm-l6'"):
        describe("minilm-l6")
    assert not (cache / "raw").exists()


def test_a_file_is_only_taken_for_lendingclub(cache, tmp_path):
    with pytest.raises(FetchError, match="only lendingclub is read from a file"):
        prepare("german", tmp_path / "german.csv")
    with pytest.raises(FetchError, match="public loan CSV"):
        prepare("lendingclub")


def test_a_prepared_file_is_not_prepared_again(cache):
    path = cache / "data" / f"german-v{data.LAYOUT}.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"already here")
    assert prepare("german") == path  # no raw file, no network
    assert path.read_bytes() == b"already here"


def test_written_bytes_do_not_depend_on_the_index_or_the_frame_library(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "s": ["x", None]})
    write_parquet(frame, tmp_path / "one.parquet")
    moved = frame.set_index(pd.Index([7, 3]))
    moved["s"] = moved["s"].astype("object")
    write_parquet(moved, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    schema = pq.read_schema(tmp_path / "one.parquet")
    assert schema.metadata is None
    assert schema.field("s").type == pa.string()
