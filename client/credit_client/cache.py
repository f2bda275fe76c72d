"""Where the frozen layers' output of a holder's texts is kept: settings, and the encrypted file.

The output is raw personal data in another form. A file of it lies in the holder's own folder and is
encrypted row by row with a key that is never written down, so that it says nothing to anybody once
the process is gone, however that ended. It is deleted with the store; what a killed client leaves
is deleted by the next one of the same folder, or by `credit-client forget`.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import struct
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from credit_common.errors import CacheError

if sys.platform != "win32":  # where an open file cannot be deleted anyway
    import fcntl

TAG = 16
"""Bytes by which a row grows when it is encrypted."""
RESERVE = 64 << 20
"""Bytes of the disk that are left free: the ledger, which must take charges, is on it too."""
_INTO = hasattr(AESGCM, "decrypt_into")  # newer versions of cryptography; saves a copy
_NAME = re.compile(r"frozen-[0-9a-f]{16}\.cache")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a holder's person decides about the cache.

    Attributes:
        kind: "memory", or "file" for an encrypted file in `folder`.
        folder: The holder's own folder; memory needs none.
        limit: Bytes that are kept at most, of training and hold-out users together. The frozen
            layers run anew, at each use, for the rows past it. None keeps everything.
    """

    kind: Literal["memory", "file"] = "memory"
    folder: Path | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "file" and self.folder is None:
            raise CacheError("a cache in a file needs a folder")
        if self.limit is not None and self.limit < 0:
            raise CacheError(f"cache limit = {self.limit}: must not be negative")

    def row_bytes(self, values: int) -> int:
        """Bytes that a row of so many half-precision values takes."""
        return 2 * values + (TAG if self.kind == "file" else 0)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows of one size in a CacheFile, one after the other.

    Attributes:
        first: Number of its first row among all rows of the file.
        offset: Where it begins, in bytes.
        rows, size: How many rows, and the bytes of one before it is encrypted.
    """

    first: int
    offset: int
    rows: int
    size: int


class CacheFile:
    """An encrypted file of rows, held by the process that made it and deleted with it.

    Each row is AES-256-GCM under the file's own random key; the nonce is the row's number in the
    file, which is written once, and section and row are bound to it.

    Args:
        folder: The holder's own.

    Raises:
        CacheError: If the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"frozen-{secrets.token_hex(8)}.cache"
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._process = os.getpid()
        self._rows = self._bytes = self._written = 0
        self._sealed = bytearray()  # the row that is being read
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            self._file = io.FileIO(os.open(self.path, flags, 0o600), "r+")
        except OSError as error:
            raise CacheError(
                f"cannot make the cache {self.path}: {error.strerror}; --cache memory needs no file"
            ) from None
        self.close = weakref.finalize(self, _remove, self._file, self.path, self._process)
        """Deletes the file. Called at the end of the process too, where nobody else did."""
        try:
            if (
                sys.platform != "win32"
            ):  # how others see that it is in use; a killed process lets go
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # another client of the folder looks whether it is held
                    time.sleep(0.2)
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise CacheError(f"cannot lock the cache {self.path}: {error.strerror}") from None

    def section(self, rows: int, size: int) -> Section:
        """Take room for `rows` rows of `size` bytes each, to be filled in order.

        Raises:
            CacheError: If the disk has no such room beside RESERVE; the file is deleted.
        """
        made = Section(first=self._rows, offset=self._bytes, rows=rows, size=size)
        room = rows * (size + TAG)
        self._rows += rows
        self._bytes += room
        with self._used():
            if room:
                self._check_room()
            if room and hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(self._file.fileno(), made.offset, room)
                except OSError as error:  # some file systems cannot; writing tells then
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                        raise
        return made

    def _check_room(self) -> None:
        needed = self._bytes - os.fstat(self._file.fileno()).st_size  # what is not yet on the disk
        free = shutil.disk_usage(self.path.parent).free
        if needed + RESERVE > free:
            self.close()
            raise CacheError(
                f"the cache {self.path} needs {needed:,} bytes more; its disk has {free:,} free, "
                f"of which {RESERVE:,} are left to the ledger; see --cache-limit, or use --cache "
                "memory"
            )

    def write(self, section: Section, place: int, row: bytes) -> None:
        """Write the next row of the file.

        Raises:
            CacheError: If it cannot be written; the file is deleted.
        """
        number = section.first + place
        inside = 0 <= place < section.rows and len(row) == section.size
        if number != self._written or not inside:
            raise ValueError("rows are written once, in order, and are of their section's size")
        with self._used():
            self._written += 1  # before encrypting: a nonce is never used again, whatever happens
            sealed = self._cipher.encrypt(_nonce(number), row, _bound(section, place))
            self._file.seek(section.offset + place * len(sealed))
            while sealed:
                sealed = sealed[self._file.write(sealed) :]

    def read(self, section: Section, place: int, out: memoryview) -> None:
        """Read a row, as it was written, into `out`, which has the section's size in bytes.

        Raises:
            CacheError: If the file was cut short or changed; it is deleted.
        """
        if not 0 <= place < section.rows:
            raise IndexError(f"place {place}: the section has {section.rows} rows")
        number, size = section.first + place, section.size + TAG
        if len(self._sealed) != size:
            self._sealed = bytearray(size)
        with self._used():
            self._file.seek(section.offset + place * size)
            found = self._file.readinto(self._sealed)
        if found < size:
            self.close()
            raise CacheError(f"the cache {self.path} is cut short: row {number} is not whole")
        opened = (_nonce(number), self._sealed, _bound(section, place))
        try:
            if _INTO:
                self._cipher.decrypt_into(*opened, out)
            else:
                out[:] = self._cipher.decrypt(*opened)
        except InvalidTag:
            self.close()
            raise CacheError(
                f"the cache {self.path} was changed: row {number} is not what was written"
            ) from None

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        if os.getpid() != self._process:  # a copy of the counter would use a nonce twice
            raise ValueError(f"{self.path} belongs to the process that made it")
        if self._file.closed:
            raise CacheError(f"the cache {self.path} is closed")
        try:
            yield
        except OSError as error:
            self.close()
            raise CacheError(
                f"the cache {self.path}, of {self._bytes:,} bytes, failed: {error.strerror}; see "
                "--cache-limit, or use --cache memory"
            ) from None


def remove_left_over(folder: Path, *, refuse_held: bool = False) -> tuple[int, int]:
    """Delete the cache files that killed clients left in a folder.

    Args:
        folder: The holder's own.
        refuse_held: Whether a file that a running client holds is an error; it is spared otherwise.

    Returns:
        How many files were deleted, and their bytes.

    Raises:
        CacheError: If a file is held, and nothing is deleted then, or cannot be deleted.
    """
    try:
        found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
        held = [path for path in found if _is_held(path)]
        if held and refuse_held:
            raise CacheError(f"{held[0]} is in use by a running client: end that first")
        size = 0
        gone = [path for path in found if path not in held]
        for path in gone:
            size += path.lstat().st_size
            path.unlink()
    except OSError as error:
        raise CacheError(f"cannot clear {folder} of caches: {error.strerror}") from None
    return len(gone), size


def _is_held(path: Path) -> bool:
    if sys.platform != "win32" and path.is_file() and not path.is_symlink():
        with path.open("r+b") as file:  # NFS locks for itself alone what is open for writing
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _remove(file: io.FileIO, path: Path, process: int) -> None:
    file.close()
    if os.getpid() == process:  # a forked process goes without taking its parent's file along
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _bound(section: Section, place: int) -> bytes:
    return struct.pack(">4Q", section.first, section.rows, section.size, place)
