"""Names, keys and certificates of a federation: what both ends of mutual TLS agree on.

A holder's certificate, and its signing request, name the holder in one URI among the subject's
alternative names, urn:credit-federation:FEDERATION:NAME:NODE:CLASS. Keys are ECDSA P-256, which
every TLS library takes. Fingerprints are short enough to be read over the phone.
"""

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from credit_common.errors import TrustError
from credit_common.fetch import write_atomically
from credit_common.sections import NAME, NAME_BOUND

SERVER_NODE = 1
"""Node id of the coordinator; holders have 2, 3, 4 and so on."""

_URI = re.compile(
    rf"urn:credit-federation:(?P<federation>{NAME}):(?P<name>{NAME})"
    rf":(?P<node_id>0|[1-9][0-9]{{0,18}}):(?P<size_class>{NAME})"
)
_MALFORMED = (  # what `cryptography` raises on bytes that are PEM but not quite X.509
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

Signed = x509.Certificate | x509.CertificateSigningRequest


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who a certificate is for.

    Attributes:
        federation, name: Names of the federation and of the holder in it.
        node_id: 0 in a signing request, where none is given yet; below 2^63.
        size_class: Public size class of the contract.

    Raises:
        TrustError: Naming the attribute, its value and the bound.
    """

    federation: str
    name: str
    node_id: int
    size_class: str

    def __post_init__(self) -> None:
        for key in ("federation", "name", "size_class"):
            text = getattr(self, key)
            if not re.fullmatch(NAME, text):
                raise TrustError(f"{key.replace('_', ' ')} {text!r}: must be {NAME_BOUND}")
        if self.name == "ca":  # its files would take the place of the authority's
            raise TrustError("name 'ca': must be another one, this is the authority's own")
        if not 0 <= self.node_id < 2**63:
            raise TrustError(f"node id {self.node_id}: must be at least 0 and below 2^63")

    @property
    def uri(self) -> str:
        """How it stands among the alternative names."""
        parts = (self.federation, self.name, str(self.node_id), self.size_class)
        return ":".join(("urn:credit-federation", *parts))

    @property
    def alternative_names(self) -> x509.SubjectAlternativeName:
        """The extension that carries the URI."""
        return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(self.uri)])


def common_name(text: str) -> x509.Name:
    """An X.509 name of a CN alone, of at most 64 characters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def load_certificate(pem: bytes, where: str) -> x509.Certificate:
    """The one certificate of a PEM file.

    Args:
        pem: The file's content.
        where: What it is, for the error.

    Raises:
        TrustError: If it is not PEM, or holds none or several.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
    except _MALFORMED:
        raise TrustError(f"{where} is not a certificate in PEM") from None
    if len(found) != 1:
        raise TrustError(f"{where} holds {len(found)} certificates instead of one")
    return found[0]


def subject_of(signed: Signed, where: str = "the certificate") -> Subject:
    """The holder that a certificate or signing request names.

    Raises:
        TrustError: If it names none, several, or one in a malformed way, or if its CN, which is
            what people see first, is not the holder's name.
    """
    try:
        names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        common = [a.value for a in signed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except x509.ExtensionNotFound:
        uris, common = [], []
    except _MALFORMED:
        raise TrustError(f"{where} has malformed names or extensions") from None
    if len(uris) != 1:
        raise TrustError(f"{where} names {len(uris)} holders instead of one")
    found = _URI.fullmatch(uris[0])
    if found is None:
        raise TrustError(f"{where} does not name a holder of a credit federation")
    if common != [found["name"]]:
        raise TrustError(f"{where} has another CN than the name of its holder")
    return Subject(
        federation=found["federation"],
        name=found["name"],
        node_id=int(found["node_id"]),
        size_class=found["size_class"],
    )


def authority_name(certificate: x509.Certificate, where: str) -> str:
    """Name of the federation whose authority a self-signed certificate is.

    Raises:
        TrustError: If it is not an authority's certificate.
    """
    try:
        limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        names = [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (*_MALFORMED, x509.ExtensionNotFound):
        raise TrustError(f"{where} is not an authority's certificate") from None
    if not (limits.ca and usage.key_cert_sign and len(names) == 1):
        raise TrustError(f"{where} is not an authority's certificate")
    if not is_issued_by(certificate, certificate):
        raise TrustError(f"{where} is not signed by its own key")
    public_key_of(certificate, where)
    return str(names[0])


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key signed the certificate. Dates and constraints are not checked."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (*_MALFORMED, InvalidSignature):
        return False
    return True


def certificate_sha256(certificate: x509.Certificate | bytes) -> str:
    """SHA-256 of a certificate (its DER form), in hex."""
    if isinstance(certificate, bytes):
        certificate = load_certificate(certificate, "the certificate")
    return certificate.fingerprint(hashes.SHA256()).hex()


def expiry(certificate: x509.Certificate) -> datetime:
    """The last moment of a certificate's validity, UTC."""
    return certificate.not_valid_after_utc


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PKCS #8 in PEM, not encrypted: it is for `write_private` or memory alone."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_key(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """The private key of a PEM file.

    Raises:
        TrustError: If it is not an unencrypted P-256 key in PEM.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except _MALFORMED:
        raise TrustError(f"{where} is not an unencrypted private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError(f"{where} is not an ECDSA key on P-256")
    return key


def public_key_of(signed: Signed, where: str) -> ec.EllipticCurvePublicKey:
    """The key that a certificate or signing request is for.

    Raises:
        TrustError: If it is not on P-256.
    """
    try:
        key = signed.public_key()
    except _MALFORMED:
        raise TrustError(f"{where} has a malformed public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError(f"{where} is not for an ECDSA key on P-256")
    return key


def public_hex(key: ec.EllipticCurvePublicKey) -> str:
    """The key as SubjectPublicKeyInfo in DER, in hex (182 characters)."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form).hex()


def sign(key: ec.EllipticCurvePrivateKey, statement: bytes) -> str:
    """ECDSA with SHA-256 over a statement, in hex."""
    return key.sign(statement, ec.ECDSA(hashes.SHA256())).hex()


def is_signed(statement: bytes, signature: str, public_key: str) -> bool:
    """Whether `sign` made the signature with the key of `public_hex`."""
    try:
        key = serialization.load_der_public_key(bytes.fromhex(public_key))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(bytes.fromhex(signature), statement, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, *_MALFORMED):
        return False
    return True


def make_request(key: ec.EllipticCurvePrivateKey, subject: Subject) -> bytes:
    """A signing request in PEM: the subject's names and the public key, signed with the key."""
    builder = x509.CertificateSigningRequestBuilder(common_name(subject.name))
    builder = builder.add_extension(subject.alternative_names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load_request(pem: bytes, where: str) -> x509.CertificateSigningRequest:
    """A signing request that was signed with the key it is for, on P-256.

    Raises:
        TrustError: If it is anything else.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        signed = request.is_signature_valid
    except _MALFORMED:
        raise TrustError(f"{where} is not a signing request in PEM") from None
    if not signed:
        raise TrustError(f"{where} is not signed with the key that it is for")
    public_key_of(request, where)
    return request


def request_fingerprint(csr_pem: bytes) -> str:
    """Fingerprint of the public key of a signing request, compared between holder and coordinator.

    It stands for the name and size class too: they are signed with that key.

    Raises:
        TrustError: If it is not a signing request, or not signed with its own key.
    """
    key = public_key_of(load_request(csr_pem, "the signing request"), "the signing request")
    return fingerprint(bytes.fromhex(public_hex(key)))


def fingerprint(data: bytes) -> str:
    """The first 128 bits of SHA-256, to be read over the phone.

    >>> fingerprint(b"abc")
    'ba78 16bf 8f01 cfea 4141 40de 5dae 2223'
    """
    digits = hashlib.sha256(data).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


def same_fingerprint(typed: str, expected: str) -> bool:
    """Whether two whole fingerprints are equal but for case, spaces, colons and dashes."""
    ours, theirs = (re.sub("[\\s:\u2010-\u2015-]", "", t).lower() for t in (typed, expected))
    return re.fullmatch("[0-9a-f]{32}", ours) is not None and ours == theirs


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, from its first moment.

    Raises:
        TrustError: If there is a file (or link) already, or it cannot be written.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # takes the name
        try:
            write_atomically(path, content)
        except BaseException:  # an interrupt too must leave no empty key behind
            with contextlib.suppress(OSError):
                path.unlink()
            raise
    except FileExistsError:
        raise TrustError(f"{path} exists already and is not overwritten") from None
    except OSError as error:
        raise TrustError(f"cannot write {path}: {error.strerror}") from None


def read_private(path: Path) -> bytes:
    """Read a file that only its owner may read.

    Raises:
        TrustError: If it cannot be read, or if others can.
    """
    try:
        with path.open("rb") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                raise TrustError(f"{path} can be read by others: run chmod 600 {path}")
            return file.read()
    except OSError as error:
        raise TrustError(f"cannot read {path}: {error.strerror}") from None
