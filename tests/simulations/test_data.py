import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from credit_common.errors import FetchError
from credit_simulations import data
from credit_simulations.cli import main
from credit_simulations.data import DATA_SETS, SOURCES, describe, prepare, slug, write_parquet

KNOWN = {  # rows, events, holders
    "pakdd2009": (39_988, 7_917, 31),
    "taiwan": (30_000, 6_636, 13),
    "german": (1_000, 300, 10),
    "gmsc": (150_000, 10_026, 10),
    "completejourney": (2_463, 406, 10),
    "reviews": (17_361, 8_330, 4),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_rows_events_and_holders_are_the_published_ones(name):
    found = describe(name)
    rows, events, holders = KNOWN[name]
    assert (found.rows, round(found.event_rate * rows)) == (rows, events)
    assert len(found.holders) == holders
    assert sum(found.holders.values()) == rows
    assert list(found.holders.values()) == sorted(found.holders.values(), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_same_raw_file_gives_the_same_bytes(name, tmp_path):
    first = prepare(name)
    frame = SOURCES[name].frame(data.cache_folder() / "raw")
    write_parquet(frame, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == first.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_client_ids_are_unique_and_holders_have_file_names(name):
    frame = pd.read_parquet(prepare(name))
    assert frame["client_id"].is_unique
    assert all(slug(holder) == holder for holder in frame["holder"].unique())
    assert not [c for c in frame.columns if c.startswith(("Unnamed", "index"))]


def test_unknown_names_are_refused_before_anything_is_fetched(cache):
    for call in (prepare, describe):
        with pytest.raises(FetchError, match="unknown data set 'pakdd2010'; known: pakdd2009"):
            call("pakdd2010")
    with pytest.raises(FetchError, match="unknown data set 'minilm-l6'"):
        describe("minilm-l6")
    assert not (cache / "raw").exists()


def test_the_help_names_every_data_set(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    said = capsys.readouterr().out
    assert [name for name in (*DATA_SETS, "minilm-l6") if name not in said] == []


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
