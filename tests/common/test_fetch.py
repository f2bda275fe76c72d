import hashlib
import io
import os
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from credit_common import fetch
from credit_common.errors import FetchError
from credit_common.fetch import MINILM, Pinned, cache_folder, fetch_members, fetch_minilm

FIRST, SECOND = b"age,bad\n30,0\n", b"second member"
EVIL = "import pathlib; pathlib.Path({marker!r}).write_text('ran')\nraise SystemExit('ran')\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """An index of one local folder, empty at first, and a fresh cache: no network at all."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("CREDIT_CACHE", str(tmp_path / "cache"))
    return folder


def wheel(folder: Path) -> Path:
    path = folder / "toydata-1.0-py3-none-any.whl"
    info = "toydata-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toydata/first.csv", FIRST)
        archive.writestr("toydata/second.bin", SECOND)
        archive.writestr("../outside.txt", b"climbs")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def source_archive(folder: Path, marker: Path) -> Path:
    path = folder / "toydata-1.0.tar.gz"
    files = {
        "setup.py": EVIL.format(marker=str(marker)).encode(),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n",
        "toydata/first.csv": FIRST,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"toydata-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("toydata-1.0/toydata/link.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    return path


def pinned(archive: Path, **members: tuple[str, str]) -> Pinned:
    wanted = members or {"first": ("toydata/first.csv", sha256(FIRST))}
    return Pinned(
        requirement="toydata==1.0",
        archive_sha256=sha256(archive.read_bytes()),
        members={f"{name}.dat": member for name, member in wanted.items()},
    )


def test_a_wheel_member_arrives_byte_for_byte(index, tmp_path):
    fetch_members(pinned(wheel(index)), tmp_path / "to")
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["first.dat"]
    assert (tmp_path / "to/first.dat").read_bytes() == FIRST


def test_a_source_archive_is_fetched_without_running_any_of_it(index, tmp_path):
    marker = tmp_path / "setup-script-ran"
    source = pinned(
        source_archive(index, marker), first=("toydata-1.0/toydata/first.csv", sha256(FIRST))
    )
    fetch_members(source, tmp_path / "to")
    assert (tmp_path / "to/first.dat").read_bytes() == FIRST
    assert not marker.exists()


def test_what_is_cached_is_not_asked_for_again(index, tmp_path, monkeypatch):
    source = pinned(wheel(index))
    fetch_members(source, tmp_path / "to")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")  # pip can no longer be run
    fetch_members(source, tmp_path / "to")


def test_a_damaged_cached_file_is_fetched_anew(index, tmp_path):
    source = pinned(wheel(index))
    fetch_members(source, tmp_path / "to")
    (tmp_path / "to/first.dat").write_bytes(FIRST[:-1])
    fetch_members(source, tmp_path / "to")
    assert (tmp_path / "to/first.dat").read_bytes() == FIRST


def test_without_an_index_the_error_says_what_to_fetch_and_where_to_put_it(
    index, tmp_path, tmp_path_factory
):
    archive = wheel(tmp_path_factory.mktemp("elsewhere"))
    source = pinned(archive)
    with pytest.raises(FetchError) as caught:
        fetch_members(source, tmp_path / "to")
    said = str(caught.value)
    assert "toydata==1.0" in said
    assert "No matching distribution found" in said  # pip's own words
    assert source.archive_sha256 in said
    by_hand = cache_folder() / "packages"
    assert str(by_hand) in said
    assert "http" not in said
    assert not (tmp_path / "to").exists()

    by_hand.mkdir()  # following the error's advice works, under any file name
    (by_hand / "unrelated.whl").write_bytes(b"something else")
    (by_hand / "renamed").write_bytes(archive.read_bytes())
    fetch_members(source, tmp_path / "to")
    assert (tmp_path / "to/first.dat").read_bytes() == FIRST


def test_an_archive_of_another_digest_is_refused_with_both_digests(index, tmp_path):
    archive = wheel(index)
    real = sha256(archive.read_bytes())
    changed = Pinned(
        requirement="toydata==1.0", archive_sha256="0" * 64, members=pinned(archive).members
    )
    with pytest.raises(FetchError, match=f"archive .*expected {'0' * 64}, got {real}"):
        fetch_members(changed, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_an_archive_is_checked_here_too_and_not_only_by_pip(index, tmp_path, monkeypatch):
    source = pinned(wheel(index))

    def lying_pip(pinned, work, by_hand):
        (work / "got").mkdir()
        (work / "got/toydata-1.0-py3-none-any.whl").write_bytes(b"PK not what was pinned")

    monkeypatch.setattr(fetch, "_run_pip", lying_pip)
    with pytest.raises(FetchError, match=f"archive .*expected {source.archive_sha256}, got "):
        fetch_members(source, tmp_path / "to")


def test_one_wrong_member_leaves_no_file_of_the_others(index, tmp_path):
    source = pinned(
        wheel(index),
        first=("toydata/first.csv", sha256(FIRST)),
        second=("toydata/second.bin", sha256(b"another")),
    )
    with pytest.raises(FetchError, match=r"second\.bin .*expected .* got " + sha256(SECOND)):
        fetch_members(source, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_missing_member_is_named(index, tmp_path):
    source = pinned(wheel(index), third=("toydata/third.csv", "0" * 64))
    with pytest.raises(FetchError, match=r"no regular file toydata/third\.csv"):
        fetch_members(source, tmp_path / "to")


def test_a_link_in_a_source_archive_is_not_followed(index, tmp_path):
    source = pinned(
        source_archive(index, tmp_path / "marker"),
        link=("toydata-1.0/toydata/link.csv", "0" * 64),
    )
    with pytest.raises(FetchError, match="no regular file"):
        fetch_members(source, tmp_path / "to")


def test_a_climbing_path_inside_the_archive_writes_only_under_its_pinned_name(index, tmp_path):
    source = pinned(wheel(index), climber=("../outside.txt", sha256(b"climbs")))
    fetch_members(source, tmp_path / "a/to")
    written = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert written == {Path("to/climber.dat")}


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", ".hidden", "", "a\\b", "c:x"])
def test_a_member_name_that_is_not_a_plain_file_name_is_refused(name):
    with pytest.raises(FetchError, match="plain file name"):
        Pinned(requirement="toydata==1.0", archive_sha256="0" * 64, members={name: ("x", "0" * 64)})


@pytest.mark.parametrize(
    "requirement",
    ["toydata", "toydata>=1", "-r==1", "--index-url=x==1", "a==1\n-r b", "a @ file:///x==1"],
)
def test_a_requirement_that_is_not_one_exact_release_is_refused(requirement):
    with pytest.raises(FetchError, match="name==version"):
        Pinned(requirement=requirement, archive_sha256="0" * 64, members={})


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "kept.dat"
    path.write_bytes(b"old")

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"index", "kept.dat"}


@pytest.mark.skipif(os.name == "nt", reason="modes are of POSIX systems")
def test_a_new_cache_folder_is_the_owners_alone(tmp_path):
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


def test_the_cache_follows_the_users_cache_directory_unless_it_is_named(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CREDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "credit-federation"


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CREDIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match="CREDIT_CACHE"):
        cache_folder()


@pytest.mark.slow
def test_the_pinned_weights_can_be_had(monkeypatch):
    monkeypatch.undo()  # the user's own index and cache
    folder = fetch_minilm()
    assert set(MINILM.members) <= {p.name for p in folder.iterdir()}
    with (folder / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == fetch.MINILM_SHA256
