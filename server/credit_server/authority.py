"""The federation's own certificate authority, in the coordinator's folder: ca.key and ca.pem.

It signs for nobody but this federation's coordinator and holders, and both sides trust nothing
else. Whoever has ca.key can be any holder: it is readable by its owner alone and belongs into the
backup.
"""

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from credit_common.bundle import host_address
from credit_common.certificates import (
    SERVER_NODE,
    Subject,
    authority_name,
    common_name,
    expiry,
    key_pem,
    load_certificate,
    load_key,
    new_key,
    public_key_of,
    read_private,
    write_private,
)
from credit_common.errors import TrustError
from credit_common.fetch import write_atomically

KEY_FILE, CERTIFICATE_FILE = "ca.key", "ca.pem"
AUTHORITY_DAYS, SERVER_DAYS, MOST_DAYS = 3652, 397, 3652
_SKEW = timedelta(hours=1)  # a holder's clock may be behind


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certificate authority that can sign.

    Attributes:
        ca_pem: Its certificate, which every holder gets in the bundle.
        key: Its private key.
    """

    ca_pem: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """Its certificate, parsed."""
        return load_certificate(self.ca_pem, CERTIFICATE_FILE)

    @property
    def federation(self) -> str:
        """Name of the federation that it signs for."""
        return authority_name(self.certificate, CERTIFICATE_FILE)


def create_authority(folder: Path, federation: str) -> Authority:
    """Make key and certificate, and the folder if it is not there.

    Args:
        folder: The coordinator's own folder.
        federation: Name of the federation, as in the contract.

    Raises:
        TrustError: If there is an authority already (it is never replaced: all its holders would be
            cut off), if the name is not one, or if the files cannot be written.
    """
    Subject(federation=federation, name="any", node_id=0, size_class="any")  # checks the name
    for name in (KEY_FILE, CERTIFICATE_FILE):
        if (folder / name).exists():
            raise TrustError(f"{folder / name} exists already: an authority is never replaced")
    key = new_key()
    now = _now()
    certificate = (
        x509.CertificateBuilder(
            issuer_name=common_name(federation),
            subject_name=common_name(federation),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - _SKEW,
            not_valid_after=now + timedelta(days=AUTHORITY_DAYS),
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = Authority(ca_pem=certificate.public_bytes(serialization.Encoding.PEM), key=key)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / KEY_FILE, key_pem(key))
        try:
            write_atomically(folder / CERTIFICATE_FILE, made.ca_pem)
        except BaseException:  # an interrupt too: half an authority could not be made again
            with contextlib.suppress(OSError):
                (folder / KEY_FILE).unlink()
            raise
    except OSError as error:
        raise TrustError(f"cannot write the authority to {folder}: {error.strerror}") from None
    return made


def open_authority(folder: Path) -> Authority:
    """Read the authority of a folder.

    Raises:
        TrustError: If a file is missing, damaged or readable by others, or if they do not match.
    """
    key = load_key(read_private(folder / KEY_FILE), str(folder / KEY_FILE))
    certificate = read_ca(folder)
    if public_key_of(certificate, str(folder / CERTIFICATE_FILE)) != key.public_key():
        raise TrustError(f"{folder / CERTIFICATE_FILE} is not for the key in {folder / KEY_FILE}")
    return Authority(ca_pem=certificate.public_bytes(serialization.Encoding.PEM), key=key)


def read_ca(folder: Path) -> x509.Certificate:
    """The authority's certificate alone, for who only has to know it.

    Raises:
        TrustError: If it is missing or not an authority's.
    """
    path = folder / CERTIFICATE_FILE
    try:
        certificate = load_certificate(path.read_bytes(), str(path))
    except OSError as error:
        raise TrustError(f"cannot read {path}: {error.strerror}") from None
    authority_name(certificate, str(path))
    return certificate


def issue_server(authority: Authority, server_name: str) -> tuple[bytes, bytes]:
    """A fresh key and certificate for the coordinator, kept in memory for one run.

    Args:
        authority: Who signs.
        server_name: Host of the bundle's address, a DNS name or an IP address.

    Returns:
        Private key and certificate, both in PEM.

    Raises:
        LinkError: If the name is no host.
        TrustError: If the authority has expired.
    """
    address = host_address(server_name)
    name = x509.DNSName(server_name) if address is None else x509.IPAddress(address)
    key = new_key()
    certificate = _issue(
        authority,
        key.public_key(),
        "flower-server",
        x509.SubjectAlternativeName([name]),
        ExtendedKeyUsageOID.SERVER_AUTH,
        SERVER_DAYS,
    )
    return key_pem(key), certificate


def issue_holder(
    authority: Authority, request: x509.CertificateSigningRequest, subject: Subject, days: int
) -> bytes:
    """A holder's certificate: the request's key, and nothing else from the request.

    Args:
        authority: Who signs.
        request: Made by the holder.
        subject: Who the holder is, as the coordinator says.
        days: Validity, at most 3652 and never longer than the authority's; the certificate has
            expired already where it is negative.

    Returns:
        The certificate in PEM.

    Raises:
        TrustError: If the subject is of another federation or has no holder's node id, if the key
            is not on P-256, or if the authority has expired.
    """
    if subject.federation != authority.federation:
        raise TrustError(
            f"the authority is of federation {authority.federation!r}, not {subject.federation!r}"
        )
    if subject.node_id <= SERVER_NODE:
        raise TrustError(f"node id {subject.node_id}: a holder's must be above {SERVER_NODE}")
    if abs(days) > MOST_DAYS:
        raise TrustError(f"{days} days: a certificate is valid for at most {MOST_DAYS}")
    return _issue(
        authority,
        public_key_of(request, "the signing request"),
        subject.name,
        subject.alternative_names,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        days,
    )


def _issue(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    name: str,
    alternative_names: x509.SubjectAlternativeName,
    purpose: x509.ObjectIdentifier,
    days: int,
) -> bytes:
    ca = authority.certificate
    now = _now()
    if now >= expiry(ca):
        raise TrustError(f"the authority has expired on {expiry(ca).isoformat()}")
    end = min(now + timedelta(days=days), expiry(ca))
    ca_key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder(
            issuer_name=ca.subject,
            subject_name=common_name(name),
            public_key=key,
            serial_number=x509.random_serial_number(),
            not_valid_before=min(now, end) - _SKEW,
            not_valid_after=end,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(alternative_names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
