"""The holder's own folder, its home: key, signing request, certificate, bundle and ledger.

    NAME.key      made here, readable by its owner alone, never leaves
    NAME.csr      goes to the coordinator
    NAME.pem      comes back from the coordinator
    bundle.json   the federation that the holder has agreed to
    NAME.ledger   what its users have spent
    NAME.manifest.jsonl   what left this machine
    frozen-*.cache        of a running client, encrypted (see `credit_client.cache`)

The ledger's witness lies elsewhere (see `credit_client.witness`).

A home holds one identity. The ledger is made before the key and the key is never made anew, so a
key without a ledger shows that the ledger was lost.
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from credit_client.ledger import Ledger
from credit_client.manifest import Manifest
from credit_client.witness import EXHAUSTED, Witness, state_folder
from credit_common.bundle import Bundle, read_bundle, write_bundle
from credit_common.certificates import (
    SERVER_NODE,
    Subject,
    certificate_sha256,
    expiry,
    is_issued_by,
    key_pem,
    load_certificate,
    load_key,
    make_request,
    new_key,
    public_key_of,
    read_private,
    subject_of,
    write_private,
)
from credit_common.errors import PrivacyError, TrustError
from credit_common.fetch import write_atomically
from credit_common.sections import NAME

BUNDLE_FILE = "bundle.json"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A holder that can take part.

    Attributes:
        home: Its folder.
        subject: Name, node id and size class, as the coordinator signed them.
        key_pem, certificate_pem: For TLS.
        bundle: The federation that it has agreed to.
        ledger_path: Its ledger, which is there.
        not_after: End of the certificate's validity, UTC.
    """

    home: Path
    subject: Subject
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    bundle: Bundle
    ledger_path: Path
    not_after: datetime

    @property
    def key_path(self) -> Path:
        """File of the private key, for libraries that read it themselves."""
        return self.home / f"{self.subject.name}.key"

    @property
    def witness(self) -> Witness:
        """What remembers the ledger's newest head outside the home."""
        return _witness(self.bundle, self.subject.name)

    @property
    def manifest(self) -> Manifest:
        """The list of all that left."""
        return Manifest(self.home / f"{self.subject.name}.manifest.jsonl")

    @property
    def certificate_path(self) -> Path:
        """File of the certificate."""
        return self.home / f"{self.subject.name}.pem"


def request(home: Path, bundle: Bundle, name: str, size_class: str) -> Path:
    """Make an identity, or ask for a new certificate for the one that is there.

    The bundle is what the holder agrees to: compare its fingerprint first.

    Args:
        home: The holder's folder, made if it is not there.
        bundle: From the coordinator.
        name: The holder's name in the federation.
        size_class: One of the contract's.

    Returns:
        The file that goes to the coordinator, home/NAME.csr.

    Raises:
        ContractError: If the size class is not the contract's.
        PrivacyError: If there is a key or certificate but no ledger.
        TrustError: If the name is not one, if the home is another holder's or another federation's,
            or if a file cannot be read or written.
    """
    subject = Subject(federation=bundle.federation, name=name, node_id=0, size_class=size_class)
    bundle.contract.privacy.class_users(size_class)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TrustError(f"cannot use {home}: {error.strerror}") from None
    for file in sorted([*home.glob("*.key"), *home.glob("*.ledger")]):
        if file.stem != name:
            raise TrustError(
                f"{home} holds {file.name}, of another identity than {name!r}: one identity per "
                f"folder"
            )
    key_path, ledger_path = home / f"{name}.key", home / f"{name}.ledger"
    if key_path.exists():
        key = load_key(read_private(key_path), str(key_path))
        _check_same_federation(home, bundle)
        _check_ledger(ledger_path)
    else:
        key = new_key()
        if (home / f"{name}.pem").exists():  # the key alone was lost; what was spent is spent
            _check_ledger(ledger_path)
        elif not ledger_path.exists():
            _check_never_sent(home, bundle, name)
            Ledger.create(ledger_path).close()
    write_bundle(home / BUNDLE_FILE, bundle)
    if not key_path.exists():
        write_private(key_path, key_pem(key))
    csr_path = home / f"{name}.csr"
    try:
        write_atomically(csr_path, make_request(key, subject))
    except OSError as error:
        raise TrustError(f"cannot write {csr_path}: {error.strerror}") from None
    return csr_path


def accept(home: Path, bundle: Bundle) -> None:
    """Agree to an amended contract (or another address) of the same federation.

    Raises:
        TrustError: If federation or authority are not the same as before, or there is none before.
    """
    _check_same_federation(home, bundle)
    write_bundle(home / BUNDLE_FILE, bundle)


def open_identity(home: Path, *, ledger_lost: bool = False) -> Identity:
    """Read and check the identity of a home.

    Args:
        home: The holder's folder.
        ledger_lost: Whether the ledger may be missing, to be restored or signed for.

    Raises:
        ContractError: If the size class is not in the contract any more.
        PrivacyError: If the ledger is lost.
        TrustError: If there is no identity or more than one, if a file is missing, damaged or
            readable by others, if the certificate is not for the key, not of the bundle's authority
            or of another name, or if it is not valid now.
    """
    key_path = _only_key(home)
    name = key_path.stem
    private = read_private(key_path)
    key = load_key(private, str(key_path))
    bundle = read_bundle(home / BUNDLE_FILE)
    path = home / f"{name}.pem"
    enrol = (
        f"{home / name}.csr has to be enrolled by the coordinator, and the {name}.pem that comes "
        f"back is to be put there"
    )
    try:
        certificate_pem = path.read_bytes()
    except FileNotFoundError:
        raise TrustError(f"{path} is missing: {enrol}") from None
    except OSError as error:
        raise TrustError(f"cannot read {path}: {error.strerror}") from None
    certificate = load_certificate(certificate_pem, str(path))
    if public_key_of(certificate, str(path)) != key.public_key():
        raise TrustError(f"{path} is not for the key in {key_path}: {enrol}")
    if not is_issued_by(certificate, load_certificate(bundle.ca_pem.encode(), "the CA")):
        raise TrustError(f"{path} is not signed by the authority in {home / BUNDLE_FILE}")
    subject = subject_of(certificate, str(path))
    if (subject.federation, subject.name) != (bundle.federation, name):
        raise TrustError(
            f"{path} is for holder {subject.name!r} of federation {subject.federation!r}, not for "
            f"{name!r} of {bundle.federation!r}"
        )
    if subject.node_id <= SERVER_NODE:
        raise TrustError(f"{path} has node id {subject.node_id}, which is no holder's")
    _check_dates(certificate, path)
    bundle.contract.privacy.class_users(subject.size_class)
    if not ledger_lost:
        _check_ledger(home / f"{name}.ledger")
    return Identity(
        home=home,
        subject=subject,
        key_pem=private,
        certificate_pem=certificate_pem,
        bundle=bundle,
        ledger_path=home / f"{name}.ledger",
        not_after=expiry(certificate),
    )


def _only_key(home: Path) -> Path:
    keys = sorted(home.glob("*.key"))
    if not keys:
        raise TrustError(f"{home} holds no identity: make one with `credit-client request`")
    if len(keys) > 1:
        names = ", ".join(key.name for key in keys)
        raise TrustError(f"{home} holds {names}: one identity per folder")
    if not re.fullmatch(NAME, keys[0].stem):
        raise TrustError(f"{keys[0]} is not named after a holder")
    return keys[0]


def _check_same_federation(home: Path, bundle: Bundle) -> None:
    path = home / BUNDLE_FILE
    if not path.exists():
        raise TrustError(f"{path} is missing: put the coordinator's bundle there")
    before = read_bundle(path)
    if bundle.federation != before.federation:
        raise TrustError(
            f"{home} belongs to federation {before.federation!r}, the bundle is of "
            f"{bundle.federation!r}"
        )
    if bundle.ca_pem != before.ca_pem:
        old, new = (certificate_sha256(b.ca_pem.encode()) for b in (before, bundle))
        raise TrustError(
            f"the bundle has another authority than {path}: SHA-256 {new}, before {old}"
        )


def _check_dates(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.now(UTC)
    start, end = certificate.not_valid_before_utc, expiry(certificate)
    if now < start:
        raise TrustError(
            f"{path} is not valid before {start.isoformat()}, and it is "
            f"{now.isoformat(timespec='seconds')} here: check this machine's clock"
        )
    if now > end:
        raise TrustError(
            f"{path} expired on {end.isoformat()}: run `credit-client request` again, and ask the "
            f"coordinator for `flower-server enrol --renew`"
        )


def _witness(bundle: Bundle, name: str) -> Witness:
    """Of a holder of a federation, whatever its key: a key may be lost together with the ledger."""
    authority = certificate_sha256(bundle.ca_pem.encode()).replace(":", "")[:16].lower()
    return Witness(state_folder() / f"{bundle.federation}-{authority}-{name}.json")


def _check_never_sent(home: Path, bundle: Bundle, name: str) -> None:
    """A holder that has sent something before had a ledger, which a new one does not replace."""
    seen = _witness(bundle, name).mark()
    traces = [home / f"{name}.manifest.jsonl", *sorted(home.glob("releases/*"))]
    left = [path for path in traces if path.exists()]
    if left or (seen is not None and seen.counter > 0):
        what = left[0] if left else _witness(bundle, name).path
        raise PrivacyError(
            f"{what} shows that {name!r} took part before, and its ledger is missing. {EXHAUSTED}"
        )


def _check_ledger(path: Path) -> None:
    if not path.exists():
        raise PrivacyError(f"the ledger {path} is missing. {EXHAUSTED}")
