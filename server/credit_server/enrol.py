"""Who is enrolled: holders.json in the coordinator's folder, one entry a name.

A running coordinator sees each change at the next look, so that a revocation needs no restart.
Entries are never taken out: a name or node id that was given once is never given to another.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from json import dumps
from pathlib import Path

from cryptography import x509

from credit_common.bundle import read_object
from credit_common.certificates import (
    SERVER_NODE,
    Subject,
    authority_name,
    certificate_sha256,
    expiry,
    load_certificate,
    load_request,
    subject_of,
)
from credit_common.checked import build
from credit_common.contract import Contract
from credit_common.errors import ContractError, TrustError
from credit_common.fetch import write_atomically
from credit_common.sections import NAME
from credit_server.authority import Authority, issue_holder, read_ca

if sys.platform != "win32":
    import fcntl

FILE, FORMAT = "holders.json", 1


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """A holder that the coordinator knows.

    Attributes:
        name: Its name in the federation.
        node_id: From 2, in order of enrolment, never given twice.
        size_class: Public size class, fixed at enrolment.
        certificate_sha256: The one certificate that it may present, in hex.
        not_after: End of that certificate's validity, UTC, ISO 8601.
        revoked: Whether it is turned away for good.

    Raises:
        TrustError: Naming the holder and the attribute.
    """

    name: str
    node_id: int
    size_class: str
    certificate_sha256: str
    not_after: str
    revoked: bool

    def __post_init__(self) -> None:
        checks = {
            "name": re.fullmatch(NAME, self.name) is not None,
            "node_id": SERVER_NODE < self.node_id < 2**63,
            "size_class": re.fullmatch(NAME, self.size_class) is not None,
            "certificate_sha256": bool(re.fullmatch("[0-9a-f]{64}", self.certificate_sha256)),
            "not_after": _is_utc(self.not_after),
        }
        for key, ok in checks.items():
            if not ok:
                raise TrustError(f"holder {self.name!r}: {key} {getattr(self, key)!r} is not valid")


class Registry:
    """The list of holders as a running coordinator asks it.

    Args:
        folder: The coordinator's folder.

    Raises:
        TrustError: If the folder has no authority.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._federation = authority_name(read_ca(folder), str(folder))
        self._read: tuple[tuple[int, ...] | None, dict[str, Enrolled]] = (None, {})

    def holders(self) -> dict[str, Enrolled]:
        """All entries by name, read again if the file has changed.

        Raises:
            TrustError: If the file cannot be read, or is damaged.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise TrustError(f"cannot read {self._path}: {error.strerror}") from None
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._read[0] != state:
            # If it changes between the look and the reading, the next look reads it once more.
            self._read = (state, _read(self._path))
        return dict(self._read[1])

    def admit(self, certificate_pem: bytes) -> Enrolled:
        """The holder that presents a certificate, which TLS has found to be the authority's.

        To be asked again in a long connection: a revocation or expiry does not end it by itself.

        Raises:
            TrustError: In one line that may be told to the other side.
        """
        certificate = load_certificate(certificate_pem, "the certificate presented")
        subject = subject_of(certificate, "the certificate presented")
        who = f"holder {subject.name!r}"
        try:
            enrolled = self.holders().get(subject.name)
        except TrustError as error:  # its text names the coordinator's files
            raise TrustError("the coordinator cannot read its list of holders") from error
        if enrolled is None or subject.federation != self._federation:
            raise TrustError(f"{who} is not enrolled in federation {self._federation!r}")
        if enrolled.revoked:
            raise TrustError(f"the certificate of {who} was revoked")
        if certificate_sha256(certificate) != enrolled.certificate_sha256:
            raise TrustError(f"the certificate of {who} was replaced by a newer one", outdated=True)
        if datetime.now(UTC) > expiry(certificate):
            raise TrustError(
                f"the certificate of {who} expired on {enrolled.not_after}", outdated=True
            )
        return enrolled


def read_request(pem: bytes, where: str) -> tuple[x509.CertificateSigningRequest, Subject]:
    """A holder's signing request, and whom it names.

    Args:
        pem: What the holder sent.
        where: Its file, for the error.

    Raises:
        TrustError: If it is not signed with its own key on P-256, names no holder, or claims a node
            id.
    """
    request = load_request(pem, where)
    subject = subject_of(request, where)
    if subject.node_id != 0:
        raise TrustError(f"{where} claims node id {subject.node_id}: the coordinator gives it")
    return request, subject


def enrol(
    folder: Path,
    authority: Authority,
    contract: Contract,
    request_pem: bytes,
    *,
    where: str,
    days: int = 365,
    renew: bool = False,
) -> tuple[Enrolled, bytes]:
    """Enter a holder, or give it a new certificate, and sign its key.

    A request proves that its sender has the key, not who the sender is: compare
    `request_fingerprint` with the holder over another way first, for a renewal too.

    Args:
        folder: The coordinator's folder.
        authority: Who signs.
        contract: The contract in force.
        request_pem: What the holder sent.
        where: Its file, for errors.
        days: Validity of the certificate.
        renew: Give a holder that is enrolled a new certificate, which replaces the old one at once.

    Returns:
        The entry, and the certificate in PEM.

    Raises:
        ContractError: If the size class is not the contract's.
        TrustError: If the request is not good, of another federation or size class, if the name is
            given (or, for a renewal, not given or revoked), or if the file cannot be written.
    """
    request, asked = read_request(request_pem, where)
    federation = contract.federation.name
    if asked.federation != federation:
        raise TrustError(f"{where} is for federation {asked.federation!r}, not {federation!r}")
    contract.privacy.class_users(asked.size_class)
    with _alone(folder):
        holders = _read(folder / FILE)
        known = holders.get(asked.name)
        _check_name(asked, known, renew=renew)
        last = max((h.node_id for h in holders.values()), default=SERVER_NODE)
        subject = replace(asked, node_id=known.node_id if known else last + 1)
        certificate_pem = issue_holder(authority, request, subject, days)
        certificate = load_certificate(certificate_pem, where)
        holders[asked.name] = enrolled = Enrolled(
            name=subject.name,
            node_id=subject.node_id,
            size_class=subject.size_class,
            certificate_sha256=certificate_sha256(certificate),
            not_after=expiry(certificate).isoformat(),
            revoked=False,
        )
        _write(folder / FILE, holders)
    return enrolled, certificate_pem


def revoke(folder: Path, name: str) -> Enrolled:
    """Turn a holder away for good; a second time changes nothing.

    Raises:
        TrustError: If nobody has that name, or the file cannot be written.
    """
    with _alone(folder):
        holders = _read(folder / FILE)
        if name not in holders:
            raise TrustError(f"holder {name!r} is not enrolled")
        holders[name] = replace(holders[name], revoked=True)
        _write(folder / FILE, holders)
        return holders[name]


def _check_name(asked: Subject, known: Enrolled | None, *, renew: bool) -> None:
    who = f"holder {asked.name!r}"
    if known is None:
        if renew:
            raise TrustError(f"{who} is not enrolled: there is nothing to renew")
        return
    if known.revoked:
        raise TrustError(f"{who} was revoked, and its name is not given again")
    if not renew:
        raise TrustError(f"{who} is enrolled already; --renew gives it a new certificate")
    if known.size_class != asked.size_class:
        raise TrustError(
            f"{who} has size class {known.size_class!r}, fixed at enrolment; the request says "
            f"{asked.size_class!r}"
        )


def _read(path: Path) -> dict[str, Enrolled]:
    if not path.exists():
        return {}
    table = read_object(path)
    if set(table) != {"format", "holders"} or table["format"] != FORMAT:
        raise TrustError(f"{path} is not a list of holders of format {FORMAT}")
    if not isinstance(table["holders"], dict):
        raise TrustError(f"{path}: holders must be an object")
    try:
        holders = {
            name: build(Enrolled, entry, f"holders.{name}")
            for name, entry in table["holders"].items()
        }
    except (ContractError, TrustError) as error:
        raise TrustError(f"{path}: {error}") from None
    ids = {holder.node_id for holder in holders.values()}
    if len(ids) != len(holders) or any(name != h.name for name, h in holders.items()):
        raise TrustError(f"{path}: a name or node id is not its holder's own")
    return holders


def _write(path: Path, holders: dict[str, Enrolled]) -> None:
    table = {"format": FORMAT, "holders": {name: asdict(h) for name, h in holders.items()}}
    try:
        write_atomically(path, (dumps(table, indent=2) + "\n").encode())
    except OSError as error:
        raise TrustError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time, where the system has such locks."""
    path = folder / f"{FILE}.lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise TrustError(f"cannot write {path}: {error.strerror}") from None
    with file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)  # let go of with the file, or with the process
        yield


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False
