"""A sealed folder: files, and one manifest that holds the SHA-256 of every one of them.

The digest of the manifest stands for the whole folder. It is made beside its place and renamed, so
that it is whole or absent, and read once, so that what is checked is what is used.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from credit_common.errors import TrustError, WireError
from credit_common.fetch import sync_folder

FILES = "files"
"""Key of the manifest: file name -> SHA-256 in hex."""


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """An opened folder whose files are those of its manifest.

    Attributes:
        manifest: Its other keys.
        files: Name -> content.
        digest: SHA-256 of the manifest's file, in hex.
    """

    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]
    digest: str


def write_sealed(
    folder: Path, name: str, manifest: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    """Write files and their manifest, whole or not at all.

    Args:
        folder: Its place, which must not exist.
        name: File name of the manifest.
        manifest: What it says besides the digests.

    Raises:
        WireError: If the folder exists, or cannot be written.
    """
    digests = {file: sha256(files[file]) for file in sorted(files)}
    contents = {**files, name: json_bytes({**manifest, FILES: digests})}
    if folder.exists() or folder.is_symlink():
        raise WireError(f"{folder}: exists already, and nothing is written over")
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        try:
            draft.mkdir(parents=True)
            for file, content in contents.items():
                _write(draft / file, content)
            sync_folder(draft)
            draft.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise WireError(f"{folder}: cannot be written: {error.strerror}") from None


def open_sealed(folder: Path, name: str, keys: Collection[str]) -> Sealed:
    """Read a folder and check every file against the manifest.

    Args:
        folder: Where `write_sealed` wrote.
        name: File name of the manifest.
        keys: Keys that the manifest must have besides the digests.

    Raises:
        TrustError: If a file's digest is another than the manifest says.
        WireError: If a file is missing or unknown, or the manifest is malformed.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise WireError(f"{folder}: cannot be opened: {error.strerror}") from None
    if name not in names:
        raise WireError(f"{folder}: has no {name}")
    raw = _read(folder / name)
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError):
        raise WireError(f"{folder / name}: is not JSON") from None
    if not isinstance(manifest, dict) or set(manifest) != {*keys, FILES}:
        raise WireError(f"{folder / name}: must have the keys {', '.join(sorted({*keys, FILES}))}")
    digests = manifest.pop(FILES)
    if not isinstance(digests, dict):
        raise WireError(f"{folder / name}: {FILES} must be a table of digests")
    odd = sorted(names ^ {*digests, name})  # so that no name leads out of the folder
    if odd:
        raise WireError(f"{folder / odd[0]}: is missing, or is not in {name}")
    files = {file: _read(folder / file) for file in digests}
    for file, content in files.items():
        if sha256(content) != digests[file]:
            raise TrustError(f"{folder / file}: its SHA-256 is not the one in {name}")
    return Sealed(manifest=manifest, files=files, digest=sha256(raw))


def json_bytes(plain: object) -> bytes:
    """Indented JSON, the same bytes for the same content; NaN is refused."""
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def sha256(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WireError(f"{path}: cannot be read: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
