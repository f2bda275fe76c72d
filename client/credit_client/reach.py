"""Why a coordinator cannot be reached, in one line: looked up only after gRPC has failed.

gRPC reports every failure of name, port, route or TLS as "unavailable". This module tries the same
steps one by one with the standard library.
"""

import base64
import ipaddress
import os
import re
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from credit_client.identity import Identity
from credit_client.waits import PROBE_SECONDS
from credit_common.bundle import parse_address
from credit_common.certificates import expiry, is_issued_by, load_certificate

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""What gRPC takes a proxy from, in its order: the first that is set counts, even where it is empty.
"""
LONGEST_ANSWER = 1 << 14
"""Bytes of a proxy's answer to CONNECT that are read."""
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What was found.

    Attributes:
        line: One line for the holder's person.
        final: Whether trying again cannot mend it.
    """

    line: str
    final: bool = False


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, where a proxy has no business."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_of(host: str) -> str | None:
    """Name of the environment variable whose proxy gRPC would use, if any.

    gRPC passes over a proxy whose scheme is not http, and goes to the host directly.
    """
    name = next((name for name in PROXY_VARIABLES if name in os.environ), None)
    if name is None or is_loopback(host) or not os.environ[name].startswith("http://"):
        return None
    spared = next((os.environ[other] for other in _EXCEPTIONS if other in os.environ), "")
    parts = (part.strip() for part in spared.split(","))
    return None if any(part and _is_spared(host, part) for part in parts) else name


def why_unreachable(identity: Identity, address: str) -> Reach:
    """Try name, port, TLS and certificates one after the other.

    Args:
        identity: The holder's certificate, and the bundle with the authority to trust.
        address: HOST:PORT of the coordinator.
    """
    host, port = parse_address(address)
    if proxy := proxy_of(host):
        tunnel = _tunnel(os.environ[proxy], address)
        if tunnel is None:
            return Reach(
                line=f"{address} cannot be reached through the proxy that {proxy} names: it must "
                "allow CONNECT to this port (no_proxy names hosts to reach directly)"
            )
        with tunnel:
            return _tls(identity, address, tunnel)
    try:
        connection = socket.create_connection((host, port), PROBE_SECONDS)
    except socket.gaierror:
        return Reach(line=f"the name {host!r} is not known: no address is found for it")
    except ConnectionRefusedError:
        return Reach(
            line=f"nothing listens at {address}: the coordinator is not up, or the port is another"
        )
    except TimeoutError:
        return Reach(
            line=f"no answer from {address} within {PROBE_SECONDS:g} s: a firewall between, or a "
            "wrong address"
        )
    except OSError as error:
        return Reach(line=f"{address} cannot be reached: {error.strerror or 'no route'}")
    with connection:
        return _tls(identity, address, connection)


def _is_spared(host: str, part: str) -> bool:
    """Whether a part of no_proxy names a host: the end of its name, or a network it is in."""
    if host.lower().endswith(part.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(part, strict=False)
    except ValueError:
        return False


def _tunnel(proxy: str, address: str) -> socket.socket | None:
    """A connection through a proxy, by CONNECT as gRPC asks for it; None where it is refused.

    All of it within `PROBE_SECONDS`, however slowly the proxy answers.
    """
    until = time.monotonic() + PROBE_SECONDS
    try:
        url = urlsplit(proxy)
        connection = socket.create_connection((url.hostname or "", url.port or 80), PROBE_SECONDS)
    except (OSError, ValueError):
        return None
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if url.username:
        user = base64.b64encode(f"{unquote(url.username)}:{unquote(url.password or '')}".encode())
        lines.append(f"Proxy-Authorization: Basic {user.decode()}")
    try:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < LONGEST_ANSWER:
            connection.settimeout(max(until - time.monotonic(), 0.001))
            part = connection.recv(1)  # not a byte of what comes after the answer
            if not part:
                break
            answer += part
    except OSError:
        answer = b""
    if re.match(rb"HTTP/1\.[01] 2\d\d", answer):
        connection.settimeout(PROBE_SECONDS)
        return connection
    connection.close()
    return None


def _tls(identity: Identity, address: str, connection: socket.socket) -> Reach:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=identity.bundle.ca_pem)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    except OSError:
        return Reach(line=f"{identity.certificate_path} and its key cannot be read")
    silent = f"the port of {address} is open, but nothing answers within {PROBE_SECONDS:g} s"
    try:
        tls = context.wrap_socket(connection, server_hostname=identity.bundle.server_name)
    except ssl.SSLCertVerificationError as error:
        return Reach(
            line=f"the server at {address} is not this federation's coordinator: "
            f"{error.verify_message}",
            final=True,
        )
    except TimeoutError:
        return Reach(line=silent)
    except ssl.SSLEOFError:  # a server on its way down, or a forwarder whose own server is
        return Reach(line=f"{address} closed the connection before TLS was agreed")
    except ssl.SSLError:
        return Reach(line=f"the server at {address} does not speak TLS 1.3", final=True)
    except OSError:
        return Reach(line=f"{address} closed the connection before TLS was agreed")
    with tls:
        # In TLS 1.3 the server looks at the client's certificate after the client is done, so its
        # verdict comes after the handshake: an alert, or just the end.
        try:
            told = tls.recv(1)
        except ssl.SSLError as error:
            return _not_taken(_words(error))
        except TimeoutError:
            return Reach(line=silent)
        except OSError:
            told = b""
    if told:
        return Reach(line=f"the coordinator at {address} answers TLS, but not yet the call")
    if fault := _own_fault(identity):
        return _not_taken(fault)
    return Reach(line=f"{address} closed the connection after TLS was agreed")


def _not_taken(why: str) -> Reach:
    return Reach(
        line=f"the coordinator does not take this holder's certificate: {why}; renew it with "
        "credit-client request, and flower-server enrol --renew",
        final=True,
    )


def _own_fault(identity: Identity) -> str | None:
    certificate = load_certificate(identity.certificate_pem, "the certificate")
    if expiry(certificate) <= datetime.now(UTC):
        return f"it expired on {expiry(certificate):%Y-%m-%d}"
    authority = load_certificate(identity.bundle.ca_pem.encode(), "the bundle's authority")
    return None if is_issued_by(certificate, authority) else "another authority signed it"


def _words(error: ssl.SSLError) -> str:
    alert = (error.reason or "unknown reason").lower()
    return alert.split("alert_")[-1].replace("_", " ")
