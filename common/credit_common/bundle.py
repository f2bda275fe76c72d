"""The enrolment bundle: all that a future holder needs to know of a federation, in one JSON file.

The coordinator gives the same file to everybody: where it answers, the certificate of the
federation's own authority, and the contract. It is not secret, but it decides whom a holder trusts,
so its fingerprint is compared over another way (phone, paper) before it is accepted.
"""

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from credit_common.certificates import authority_name, fingerprint, load_certificate
from credit_common.contract import Contract, parse_contract
from credit_common.errors import ContractError, LinkError, TrustError
from credit_common.fetch import write_atomically

FORMAT = 1
_KEYS = ("federation", "address", "ca_pem", "contract", "contract_digest")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A federation as its holders see it.

    Attributes:
        federation: Its name, the same as the contract's and the authority's.
        address: "HOST:PORT" or "[IPv6]:PORT" where the coordinator answers.
        ca_pem: The authority's certificate in PEM, without anything around it.
        contract_text: The federation file, verbatim.

    Raises:
        TrustError: Naming what is wrong; what is wrong in the contract too.
    """

    federation: str
    address: str
    ca_pem: str
    contract_text: str

    def __post_init__(self) -> None:
        try:
            parse_address(self.address)
            named = self.contract.federation.name
        except LinkError as error:
            raise TrustError(str(error)) from None
        except ContractError as error:
            raise TrustError(f"its contract: {error}") from None
        except RecursionError:
            raise TrustError("its contract: nested too deeply") from None
        if named != self.federation:
            raise TrustError(
                f"it is of federation {self.federation!r}, its contract of federation {named!r}"
            )
        if not self.ca_pem.isascii():
            raise TrustError("its CA certificate is not PEM")
        certificate = load_certificate(self.ca_pem.encode(), "its CA certificate")
        if self.ca_pem != certificate.public_bytes(Encoding.PEM).decode():
            # A TLS library may read more kinds of PEM than the one that was checked here.
            raise TrustError("its CA certificate has something else around it")
        authority = authority_name(certificate, "its CA certificate")
        if authority != self.federation:
            raise TrustError(
                f"it is of federation {self.federation!r}, its CA of federation {authority!r}"
            )

    @property
    def server_name(self) -> str:
        """The host of the address: the name that the coordinator's certificate must have."""
        return parse_address(self.address)[0]

    @cached_property
    def contract(self) -> Contract:
        """The contract, parsed."""
        return parse_contract(self.contract_text)

    @property
    def contract_digest(self) -> str:
        """SHA-256 of the contract's meaning, in hex."""
        return self.contract.digest

    @property
    def fingerprint(self) -> str:
        """128 bits over everything in the bundle, to be compared by phone or on paper."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return fingerprint(text.encode())

    def to_json(self) -> dict[str, str | int]:
        """What the file says."""
        return {
            "format": FORMAT,
            "federation": self.federation,
            "address": self.address,
            "ca_pem": self.ca_pem,
            "contract": self.contract_text,
            "contract_digest": self.contract_digest,
        }


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write the file, or replace it as a whole.

    Raises:
        TrustError: If it cannot be written.
    """
    text = json.dumps(bundle.to_json(), indent=2, ensure_ascii=False) + "\n"
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise TrustError(f"cannot write {path}: {error.strerror}") from None


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        TrustError: Naming the file and what is wrong: it cannot be read, is not JSON, of an unknown
            format, has missing or unknown keys, or its parts do not belong together.
    """
    table = read_object(path)
    version = table.pop("format", None)
    if type(version) is not int or version != FORMAT:
        raise TrustError(f"{path}: format {version!r} is unknown; {FORMAT} is the only one known")
    missing = [key for key in _KEYS if key not in table]
    unknown = sorted(set(table) - set(_KEYS))
    if missing or unknown:
        what = f"key {missing[0]!r} is missing" if missing else f"unknown key {unknown[0]!r}"
        raise TrustError(f"{path}: {what}")
    for key in _KEYS:
        if not isinstance(table[key], str):
            raise TrustError(f"{path}: {key} must be a text")
    stated = table.pop("contract_digest")
    try:
        bundle = Bundle(contract_text=table.pop("contract"), **table)
    except TrustError as error:
        raise TrustError(f"{path}: {error}") from None
    if stated != bundle.contract_digest:
        raise TrustError(
            f"{path}: contract digest {stated!r} is stated, its contract's is "
            f"{bundle.contract_digest}"
        )
    return bundle


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, in which no key may come twice.

    Raises:
        TrustError: Naming the file.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        found = json.loads(text, object_pairs_hook=_each_key_once)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except OSError as error:
        raise TrustError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeError:
        raise TrustError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise TrustError(f"{path} is not valid JSON, or a key comes twice") from None
    if not isinstance(found, dict):
        raise TrustError(f"{path} is not a JSON object")
    return found


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[IPv6]:PORT".

    >>> parse_address("[::1]:8443")
    ('::1', 8443)

    Raises:
        LinkError: Naming the value and the bound.
    """
    found = re.fullmatch(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]+)", text)
    if found is None:
        raise LinkError(f"address {text!r}: must be HOST:PORT, or [IPv6]:PORT")
    host = found["host"] if found["six"] is None else found["six"]
    address = host_address(host)
    if (address is not None and address.version == 6) != (found["six"] is not None):
        raise LinkError(f"address {text!r}: must be HOST:PORT, or [IPv6]:PORT")
    if len(found["port"]) > 5 or not 1 <= int(found["port"]) <= 65535:
        raise LinkError(f"address {text!r}: the port must be between 1 and 65535")
    return host, int(found["port"])


def host_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is, or None if it is a DNS name.

    Raises:
        LinkError: If it is neither, naming it.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        ok = len(host) <= 253 and all(re.fullmatch(_LABEL, label) for label in labels)
        if ok and not labels[-1].isdigit():  # 10.0.0.256 is no name either
            return None
    else:
        if "%" not in host:  # a zone means something on one machine only
            return address
    raise LinkError(f"host {host!r}: must be a DNS name or an IP address")


def _each_key_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(key)
        table[key] = value
    return table
