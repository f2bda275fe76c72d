import errno
import gc
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from credit_client import cache
from credit_client.cache import RESERVE, TAG, Cache, CacheFile, remove_left_over
from credit_common.errors import CacheError

SIZE = 96


@pytest.fixture
def rows():
    return [secrets.token_bytes(SIZE) for _ in range(6)]


@pytest.fixture
def written(tmp_path, rows):
    """A file with two sections, of four rows and of two."""
    file = CacheFile(tmp_path)
    sections = file.section(4, SIZE), file.section(2, SIZE)
    for number, row in enumerate(rows):
        file.write(sections[number // 4], number % 4, row)
    yield file, sections
    file.close()


def read(file, section, place):
    out = bytearray(section.size)
    file.read(section, place, memoryview(out))
    return bytes(out)


def overwrite(path, offset, content):
    with path.open("r+b") as other:
        other.seek(offset)
        other.write(content)


@pytest.mark.parametrize("into", [True, False])
def test_rows_come_back_as_they_were_written(written, rows, monkeypatch, into):
    if into and not hasattr(AESGCM, "decrypt_into"):
        pytest.skip("this version of cryptography cannot decrypt in place")
    monkeypatch.setattr(cache, "_INTO", into)
    file, (first, second) = written
    for place in (3, 0, 2, 1, 3):
        assert read(file, first, place) == rows[place]
    assert [read(file, second, place) for place in (1, 0)] == [rows[5], rows[4]]


def test_the_file_is_the_owners_alone_and_as_large_as_was_reckoned(written):
    file, _ = written
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert file.path.stat().st_size == 6 * (SIZE + TAG)
    assert Cache(kind="file", folder=file.path.parent).row_bytes(SIZE // 2) == SIZE + TAG
    assert Cache().row_bytes(SIZE // 2) == SIZE


def test_nothing_that_was_written_can_be_found_in_the_file(written, rows):
    content = written[0].path.read_bytes()
    for row in rows:
        assert not any(row[i : i + 8] in content for i in range(SIZE - 7))


def test_equal_rows_do_not_look_equal(tmp_path):
    file = CacheFile(tmp_path)
    section = file.section(2, SIZE)
    for place in range(2):
        file.write(section, place, bytes(SIZE))
    content = file.path.read_bytes()
    assert content[:SIZE] != content[SIZE + TAG : -TAG]
    file.close()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("byte", [0, SIZE // 2, SIZE, SIZE + TAG - 1])
def test_a_changed_byte_is_told_without_the_data(written, rows, place, byte):
    file, (first, _) = written
    offset = place * (SIZE + TAG) + byte
    old = file.path.read_bytes()[offset]
    overwrite(file.path, offset, bytes([old ^ 1]))
    with pytest.raises(CacheError) as raised:
        read(file, first, place)
    assert str(raised.value) == (
        f"the cache {file.path} was changed: row {place} is not what was written"
    )
    assert not file.path.exists()
    with pytest.raises(CacheError, match="closed"):
        read(file, first, 1 - place)


@pytest.mark.parametrize("other", [1, 4])
def test_rows_cannot_be_swapped_within_a_section_or_between_two(written, other):
    file, (first, _) = written
    whole, step = file.path.read_bytes(), SIZE + TAG
    overwrite(file.path, 0, whole[other * step : (other + 1) * step])
    with pytest.raises(CacheError, match="row 0 is not what was written"):
        read(file, first, 0)


def test_section_and_row_are_bound_to_a_row_beside_its_nonce(written, rows):
    file, (first, second) = written
    sealed = file.path.read_bytes()[: SIZE + TAG]
    nonce = cache._nonce(0)
    assert file._cipher.decrypt(nonce, sealed, cache._bound(first, 0)) == rows[0]
    for section, place in ((first, 1), (second, 0)):
        with pytest.raises(InvalidTag):
            file._cipher.decrypt(nonce, sealed, cache._bound(section, place))


def test_another_files_rows_are_not_taken(written, tmp_path, rows):
    file, (first, _) = written
    other = CacheFile(tmp_path)
    section = other.section(4, SIZE)
    other.write(section, 0, rows[0])
    overwrite(file.path, 0, other.path.read_bytes()[: SIZE + TAG])
    with pytest.raises(CacheError, match="row 0"):
        read(file, first, 0)
    assert read(other, section, 0) == rows[0]
    other.close()


@pytest.mark.parametrize("left", [0, 1, 5 * (SIZE + TAG), 6 * (SIZE + TAG) - 1])
def test_a_file_cut_short_is_told(written, left):
    file, (_, second) = written
    os.truncate(file.path, left)
    with pytest.raises(CacheError, match="is cut short: row 5 is not whole"):
        read(file, second, 1)
    assert not file.path.exists()


def test_a_nonce_is_never_used_twice(written, rows):
    file, (first, second) = written
    for section, place in ((first, 0), (first, 3), (second, 1), (second, 2)):
        with pytest.raises(ValueError, match="once, in order"):
            file.write(section, place, rows[0])
    third = file.section(3, SIZE)
    with pytest.raises(ValueError, match="once, in order"):
        file.write(third, 1, rows[0])
    with pytest.raises(ValueError, match="of their section's size"):
        file.write(third, 0, rows[0][:-1])
    file.write(third, 0, rows[0])
    assert read(file, third, 0) == rows[0]


def test_places_outside_a_section_are_not_read(written):
    file, (_, second) = written
    for place in (-1, 2):
        with pytest.raises(IndexError):
            read(file, second, place)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_neither_writes_reads_nor_deletes(written, rows):
    file, (first, _) = written
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: read(file, first, 0), lambda: file.section(1, SIZE)):
            try:
                use()
            except ValueError:
                refused += 1
        file.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert read(file, first, 0) == rows[0]


def test_the_file_goes_with_its_last_user(tmp_path):
    file = CacheFile(tmp_path)
    path = file.path
    assert path.exists()
    del file
    gc.collect()
    assert not path.exists()


CHILD = """
import sys, time
from pathlib import Path
from credit_client.cache import CacheFile
file = CacheFile(Path(sys.argv[1]))
section = file.section(3, 64)
for place in range(3):
    file.write(section, place, b"plain-text of a user " * 3 + b"!")
print(file.path, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
elif sys.argv[2] == "fail":
    raise SystemExit("an error")
"""


@pytest.mark.parametrize("how", ["end", "fail"])
def test_the_file_goes_with_a_process_that_ends(tmp_path, how):
    command = [sys.executable, "-c", CHILD, tmp_path, how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (how == "fail")
    assert done.stdout.startswith(str(tmp_path / "frozen-"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_says_nothing_and_is_removed(tmp_path):
    command = [sys.executable, "-c", CHILD, tmp_path, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        line = running.stdout.readline().strip()
        with pytest.raises(CacheError, match="in use by a running client"):
            remove_left_over(tmp_path, refuse_held=True)
        assert remove_left_over(tmp_path) == (0, 0)
        running.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert str(left) == line
    content = left.read_bytes()
    assert len(content) == 3 * (64 + TAG)
    assert b"plain" not in content
    assert b"user" not in content
    other = CacheFile(tmp_path)  # of a client that is running now
    assert remove_left_over(tmp_path) == (1, 3 * (64 + TAG))
    assert list(tmp_path.iterdir()) == [other.path]
    other.close()
    assert remove_left_over(tmp_path, refuse_held=True) == (0, 0)


def test_a_held_file_keeps_the_others_from_being_removed_where_it_is_refused(tmp_path):
    left = tmp_path / f"frozen-{'0' * 16}.cache"
    left.write_bytes(b"x")
    file = CacheFile(tmp_path)
    with pytest.raises(CacheError):
        remove_left_over(tmp_path, refuse_held=True)
    assert left.exists()
    file.close()


@pytest.fixture
def locks(monkeypatch):
    """Lets a test stand between the cache and the system's locks."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def put(before):
        def flock(file, how):
            before(file, how, real)
            real(file, how)

        monkeypatch.setattr(fcntl, "flock", flock)

    return put


def test_only_a_file_open_for_writing_is_locked_for_oneself_as_nfs_asks(tmp_path, locks):
    import fcntl

    def nfs(file, how, real):
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if how & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    locks(nfs)
    left = tmp_path / f"frozen-{'0' * 16}.cache"
    left.write_bytes(b"x")
    file = CacheFile(tmp_path)
    assert remove_left_over(tmp_path) == (1, 1)
    assert list(tmp_path.iterdir()) == [file.path]
    file.close()


@pytest.mark.parametrize("lets_go", [True, False])
def test_a_new_file_outlasts_the_look_of_another_client(tmp_path, locks, monkeypatch, lets_go):
    import fcntl

    looks = []

    def look(file, how, real):
        if not looks:
            (path,) = tmp_path.iterdir()
            looks.append(path.open("r+b"))
            real(looks[0], fcntl.LOCK_EX)

    locks(look)
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: lets_go and looks[0].close())
    if lets_go:
        file = CacheFile(tmp_path)
        with pytest.raises(CacheError, match="in use by a running client"):
            remove_left_over(tmp_path, refuse_held=True)
        file.close()
    else:
        with pytest.raises(CacheError, match="cannot lock the cache"):
            CacheFile(tmp_path)
        looks[0].close()
    assert list(tmp_path.iterdir()) == []


def test_no_other_file_of_the_folder_is_removed(tmp_path):
    names = ["shop.key", "frozen-12.cache", "frozen-00000000000000zz.cache", "a.cache"]
    names.append(f"frozen-{'1' * 16}.cache.bak")
    for name in names:
        (tmp_path / name).write_text("keep")
    target = tmp_path / "shop.ledger"
    target.write_text("keep")
    (tmp_path / f"frozen-{'2' * 16}.cache").symlink_to(target)
    assert remove_left_over(tmp_path)[0] == 1  # the link, not what it points to
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "shop.ledger"])


def test_a_folder_that_cannot_hold_a_file_is_told(tmp_path):
    with pytest.raises(CacheError, match=r"cannot make the cache .*--cache memory needs no file"):
        CacheFile(tmp_path / "absent")
    with pytest.raises(CacheError, match=r"cannot clear .*absent"):
        remove_left_over(tmp_path / "absent")


@pytest.fixture
def disk(monkeypatch):
    """Sets how many bytes of the disk are free."""

    def set_free(free):
        found = type(shutil.disk_usage("."))(total=free, used=0, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: found)

    return set_free


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved here")
def test_a_full_disk_is_told_before_a_row_is_written_and_leaves_nothing(tmp_path, disk):
    disk(1 << 80)  # as it seems
    file = CacheFile(tmp_path)
    with pytest.raises(CacheError, match="see --cache-limit"):
        file.section(1 << 22, 1 << 40)  # no disk has that
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CacheError, match="closed"):
        file.section(1, SIZE)


@pytest.mark.parametrize("allocates", [True, False])
def test_room_is_left_for_the_ledger_on_the_same_disk(tmp_path, disk, monkeypatch, allocates):
    if not allocates:  # rows take their room when they are written
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif not hasattr(os, "posix_fallocate"):
        pytest.skip("room cannot be reserved here")
    row = SIZE + TAG
    file = CacheFile(tmp_path)
    disk(RESERVE + 2 * row)
    file.section(2, SIZE)
    disk(RESERVE + (3 if allocates else 5) * row)
    file.section(3, SIZE)
    free = RESERVE + (4 if allocates else 9) * row - 1
    disk(free)
    with pytest.raises(CacheError) as raised:
        file.section(4, SIZE)
    needed = (4 if allocates else 9) * row
    for told in (f"needs {needed:,} bytes", f"{free:,} free", f"{RESERVE:,}", "--cache-limit"):
        assert told in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_section_without_rows_asks_for_no_room(tmp_path, disk):
    disk(0)
    file = CacheFile(tmp_path)
    file.section(0, SIZE)
    file.close()


def test_settings_are_checked_where_they_are_made(tmp_path):
    with pytest.raises(CacheError, match="needs a folder"):
        Cache(kind="file")
    with pytest.raises(CacheError, match="limit = -1"):
        Cache(limit=-1)
    assert Cache(kind="file", folder=tmp_path, limit=0).limit == 0
