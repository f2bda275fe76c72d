import errno
import hashlib
import json
import os
import shutil

import pytest

from credit_common import sealed
from credit_common.errors import TrustError, WireError
from credit_common.sealed import open_sealed, write_sealed

FILES = {"a.bin": bytes(range(256)), "b.txt": "größe 大小\r\n".encode(), "empty": b""}
NAME = "seal.json"


@pytest.fixture
def folder(tmp_path):
    """A sealed folder."""
    place = tmp_path / "homes" / "007"
    write_sealed(place, NAME, {"who": "me", "n": 1}, FILES)
    return place


def opened(folder):
    return open_sealed(folder, NAME, ("who", "n"))


def reseal(folder, **changes):
    plain = json.loads((folder / NAME).read_text("utf-8"))
    (folder / NAME).write_text(json.dumps({**plain, **changes}))


def test_what_is_written_is_read_back(folder):
    read = opened(folder)
    assert read.files == FILES
    assert read.manifest == {"who": "me", "n": 1}
    assert read.digest == hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, NAME])
    assert [p.name for p in folder.parent.iterdir()] == ["007"]


def test_the_same_content_has_the_same_digest_and_any_other_another(folder, tmp_path):
    def digest(number, manifest, files):
        write_sealed(tmp_path / str(number), NAME, {"n": 1, "who": "me"} | manifest, files)
        return opened(tmp_path / str(number)).digest

    turned = dict(reversed(FILES.items()))
    same = digest(1, {}, turned)
    assert same == digest(2, {}, FILES)
    assert digest(3, {"n": 2}, FILES) != same
    assert digest(4, {}, {**FILES, "empty": b"\0"}) != same
    assert digest(5, {}, {("full" if k == "empty" else k): v for k, v in FILES.items()}) != same


@pytest.mark.parametrize("name", ["a.bin", "b.txt", "empty"])
def test_a_changed_file_is_told_by_name(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b"!" if content else b"!")
    with pytest.raises(TrustError, match=rf"{name}: its SHA-256 is not the one in {NAME}"):
        opened(folder)


def test_a_missing_and_an_unknown_file_are_told_by_name(folder):
    (folder / "extra.pkl").write_bytes(b"")
    with pytest.raises(WireError, match=r"extra\.pkl: is missing, or is not in seal"):
        opened(folder)
    (folder / "extra.pkl").unlink()
    (folder / "sub").mkdir()
    with pytest.raises(WireError, match="sub: is missing, or is not in"):
        opened(folder)
    (folder / "sub").rmdir()
    (folder / "a.bin").unlink()
    with pytest.raises(WireError, match=r"a\.bin: is missing"):
        opened(folder)
    (folder / NAME).unlink()
    with pytest.raises(WireError, match=f"007: has no {NAME}"):
        opened(folder)


def test_a_folder_in_the_place_of_a_file_is_an_error_of_ours(folder):
    (folder / "a.bin").unlink()
    (folder / "a.bin").mkdir()
    with pytest.raises(WireError, match=r"a\.bin: cannot be read: Is a directory"):
        opened(folder)


def test_what_is_no_folder_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "nothing"):
        with pytest.raises(WireError, match=f"{name}: cannot be opened"):
            opened(tmp_path / name)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/../a.bin", "", ".", NAME])
def test_no_name_of_the_manifest_leads_out_of_the_folder(folder, name):
    (folder.parent / "secret").write_bytes(b"s")
    digests = json.loads((folder / NAME).read_text("utf-8"))["files"]
    reseal(folder, files={**digests, name: hashlib.sha256(b"s").hexdigest()})
    with pytest.raises((WireError, TrustError), match="seal"):
        opened(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"who": 1, "n": 2}',
        b'{"who": 1, "n": 2, "files": {}, "more": 3}',
        b'{"who": 1, "n": 2, "files": []}',
        b'{"who": 1, "n": 2, "files": 5}',
        b'{"who": 1, "n": ' + b"9" * 5000 + b', "files": {}}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_manifest_is_an_error_of_ours(folder, content):
    (folder / NAME).write_bytes(content)
    with pytest.raises(WireError, match="seal"):
        opened(folder)


@pytest.mark.parametrize("value", [None, 5, "", ["x"], {}])
def test_a_digest_that_is_none_matches_nothing(folder, value):
    digests = json.loads((folder / NAME).read_text("utf-8"))["files"]
    reseal(folder, files={**digests, "empty": value})
    with pytest.raises(TrustError, match="empty"):
        opened(folder)


def test_a_folder_that_exists_is_refused_and_left_alone(folder, tmp_path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    empty, file, link = tmp_path / "empty", tmp_path / "file", tmp_path / "link"
    empty.mkdir()
    file.write_text("mine")
    link.symlink_to(tmp_path / "nowhere")
    for place in (folder, empty, file, link):
        with pytest.raises(WireError, match=f"{place.name}: exists already"):
            write_sealed(place, NAME, {}, {"a.bin": b"other"})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(empty.iterdir()) == []
    assert file.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "homes", "link"]


@pytest.mark.parametrize("broken", range(1, 7))
def test_a_full_disk_at_any_moment_leaves_a_whole_folder_or_none(tmp_path, monkeypatch, broken):
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) == broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    place = tmp_path / "001"
    monkeypatch.setattr(sealed.os, "fsync", fsync)
    with pytest.raises(WireError, match="001: cannot be written: No space left"):
        write_sealed(place, NAME, {"who": "me", "n": 1}, FILES)
    left = [p.name for p in tmp_path.iterdir()]
    assert left == (["001"] if broken == 6 else [])  # the sixth comes after the renaming
    if broken == 6:
        assert opened(place).files == FILES


def test_two_drafts_of_one_folder_do_not_meet(tmp_path, monkeypatch):
    """Two writers at the same time: one wins, the other is refused, nothing is mixed."""
    place, real = tmp_path / "001", sealed.sync_folder

    def other_is_quicker(folder):
        monkeypatch.setattr(sealed, "sync_folder", real)
        write_sealed(place, NAME, {"who": "other", "n": 2}, {"x": b"other"})
        real(folder)

    monkeypatch.setattr(sealed, "sync_folder", other_is_quicker)
    with pytest.raises(WireError, match="001: cannot be written"):
        write_sealed(place, NAME, {"who": "me", "n": 1}, FILES)
    assert opened(place).manifest["who"] == "other"
    assert opened(place).files == {"x": b"other"}
    assert [p.name for p in tmp_path.iterdir()] == ["001"]


def test_a_copy_of_the_folder_is_as_good(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert opened(tmp_path / "copy") == opened(folder)
