import contextlib
import dataclasses
import os
import socket
import ssl
import sys
import threading
import time

import grpc
import pytest

from credit_client import identity as own
from credit_client import reach
from credit_client.reach import PROXY_VARIABLES, is_loopback, proxy_of, why_unreachable
from credit_common.bundle import Bundle
from credit_common.certificates import load_request
from credit_common.contract import parse_contract
from credit_server.authority import create_authority, issue_holder, issue_server
from credit_server.enrol import Registry, enrol
from credit_server.grid import GrpcGrid
from credit_server.heads import Heads
from credit_server.service import Service

HOST = "127.0.0.1"
QUICK = 0.3


class Federation:
    """An authority, its bundle and one enrolled holder."""

    def __init__(self, folder, contract_text):
        self.contract = parse_contract(contract_text)
        self.home = folder / "coordinator"
        self.authority = create_authority(self.home, self.contract.federation.name)
        self.bundle = Bundle(
            federation=self.contract.federation.name,
            address="coordinator.example:9440",
            ca_pem=self.authority.ca_pem.decode(),
            contract_text=contract_text,
        )
        csr = own.request(folder / "books", self.bundle, "books", "small")
        self.request = load_request(csr.read_bytes(), "it")
        _, pem = enrol(self.home, self.authority, self.contract, csr.read_bytes(), where="it")
        csr.with_suffix(".pem").write_bytes(pem)
        self.identity = own.open_identity(folder / "books")

    @contextlib.contextmanager
    def service(self):
        """The coordinator's own service; gives its address."""
        registry = Registry(self.home)
        with Service(
            self.contract,
            registry,
            GrpcGrid(self.contract, {}, dict),
            Heads(self.home),
            authority=self.authority,
            server_name=self.bundle.server_name,
            listen=f"{HOST}:0",
            array_bytes=1000,
        ) as running:
            yield f"{HOST}:{running.port}"


@pytest.fixture(scope="module")
def federation(tmp_path_factory, contract_text):
    return Federation(tmp_path_factory.mktemp("federation"), contract_text)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, contract_text):
    """Another federation of the same name."""
    return Federation(tmp_path_factory.mktemp("stranger"), contract_text)


@pytest.fixture
def identity(federation):
    return federation.identity


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in (*PROXY_VARIABLES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(reach, "PROBE_SECONDS", QUICK)


def with_certificate(identity, folder, pem):
    """The same holder and key with another certificate."""
    for path in (identity.key_path, identity.certificate_path):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / identity.certificate_path.name).write_bytes(pem)
    return dataclasses.replace(identity, home=folder, certificate_pem=pem)


@contextlib.contextmanager
def listening(handle):
    """A server that calls `handle` with each connection; gives its address."""
    server = socket.create_server((HOST, 0))

    def serve():
        with contextlib.suppress(OSError):  # the end of the test closes it
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(10)
                    handle(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{HOST}:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def tls_context(authority, folder, name="coordinator.example", *, trusts=None):
    """A server's side of TLS with a certificate that `authority` signed."""
    key, certificate = issue_server(authority, name)
    (folder / "server.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.set_alpn_protocols(["h2"])
    if trusts:
        context.load_verify_locations(cadata=trusts.ca_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def speaking(context, say=b""):
    """What to do with a connection: TLS, then a few bytes, then wait for its end."""

    def handle(connection):
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(say)
            tls.recv(1)

    return handle


def one_line(found):
    assert found.line.isprintable()
    assert len(found.line) < 300
    return found.line


# -- the way to the port -----------------------------------------------------------------------


def test_a_closed_port_is_told_and_worth_another_attempt(identity):
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    found = why_unreachable(identity, f"{HOST}:{port}")
    assert one_line(found).startswith(f"nothing listens at {HOST}:{port}: ")
    assert not found.final


def test_a_name_that_is_not_known_is_told_and_worth_another_attempt(identity):
    found = why_unreachable(identity, "nobody.invalid:9440")
    assert one_line(found) == ("the name 'nobody.invalid' is not known: no address is found for it")
    assert not found.final  # the network may be down


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels answer beyond a full queue")
def test_a_port_that_drops_all_packets_is_a_firewall(identity, quick):
    # A full queue of connections that nobody accepts: the kernel answers no further one.
    with contextlib.ExitStack() as open_sockets:
        server = open_sockets.enter_context(socket.socket())
        server.bind((HOST, 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(8):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        found = why_unreachable(identity, f"{HOST}:{address[1]}")
    assert one_line(found).startswith(f"no answer from {HOST}:{address[1]} within 0.3 s: a fire")
    assert not found.final


def test_a_port_without_a_route_is_told_in_the_systems_words(identity):
    found = why_unreachable(identity, "255.255.255.255:9440")  # TCP has no broadcast
    assert one_line(found).startswith("255.255.255.255:9440 cannot be reached: ")
    assert not found.final


# -- TLS ---------------------------------------------------------------------------------------


def test_a_plain_text_server_is_told_and_final(identity):
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")) as address:
        found = why_unreachable(identity, address)
    assert one_line(found) == f"the server at {address} does not speak TLS 1.3"
    assert found.final


def test_a_server_of_older_tls_is_told_and_final(identity, federation, tmp_path):
    context = tls_context(federation.authority, tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with listening(speaking(context)) as address:
        found = why_unreachable(identity, address)
    assert one_line(found) == f"the server at {address} does not speak TLS 1.3"
    assert found.final


def test_an_open_port_that_never_answers_is_told_within_the_probes_time(identity, quick):
    with socket.create_server((HOST, 0)) as server:  # the kernel accepts, nobody reads
        start = time.monotonic()
        address = f"{HOST}:{server.getsockname()[1]}"
        found = why_unreachable(identity, address)
        seconds = time.monotonic() - start
    assert one_line(found) == (
        f"the port of {address} is open, but nothing answers within {QUICK} s"
    )
    assert not found.final
    assert QUICK * 0.9 <= seconds < 5


def test_a_server_that_falls_silent_after_tls_is_told(identity, federation, tmp_path, quick):
    context = tls_context(federation.authority, tmp_path)
    with listening(speaking(context)) as address:
        found = why_unreachable(identity, address)
    assert "nothing answers within" in one_line(found)
    assert not found.final


def read_and_close(connection):
    connection.recv(10_000)  # all of it, so that closing sends an end and no reset


def reset(connection):
    connection.recv(1)
    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@pytest.mark.parametrize("closing", [read_and_close, reset, lambda connection: None])
def test_a_server_that_closes_before_tls_may_come_back(identity, closing):
    # So does one on its way down, and a forwarder whose own server is down.
    with listening(closing) as address:
        found = why_unreachable(identity, address)
    assert one_line(found) == f"{address} closed the connection before TLS was agreed"
    assert not found.final


def test_a_server_that_closes_after_tls_may_come_back(identity, federation, tmp_path):
    context = tls_context(federation.authority, tmp_path, trusts=federation.authority)

    def handle(connection):
        context.wrap_socket(connection, server_side=True).close()

    with listening(handle) as address:
        found = why_unreachable(identity, address)
    assert one_line(found) == f"{address} closed the connection after TLS was agreed"
    assert not found.final


def test_a_foreign_certificate_is_told_and_final(identity, stranger, tmp_path):
    with listening(speaking(tls_context(stranger.authority, tmp_path))) as address:
        found = why_unreachable(identity, address)
    start = f"the server at {address} is not this federation's coordinator: "
    assert one_line(found).startswith(start)
    assert len(found.line) > len(start) + 5
    assert found.final


def test_a_certificate_for_another_host_is_told_and_final(identity, federation, tmp_path):
    context = tls_context(federation.authority, tmp_path, "other.example")
    with listening(speaking(context)) as address:
        found = why_unreachable(identity, address)
    assert "is not this federation's coordinator: Hostname mismatch" in one_line(found)
    assert found.final


def test_another_holders_certificate_is_no_coordinators(identity, federation, tmp_path):
    # Signed by the right authority, but for a client.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    with listening(speaking(context)) as address:
        found = why_unreachable(identity, address)
    assert "is not this federation's coordinator: " in one_line(found)
    assert found.final


def test_the_coordinator_itself_answers(identity, federation):
    with federation.service() as address:
        found = why_unreachable(identity, address)
    assert one_line(found) == f"the coordinator at {address} answers TLS, but not yet the call"
    assert not found.final


def test_the_coordinator_that_takes_no_certificate_of_another_authority(
    identity, federation, stranger, tmp_path
):
    pem = issue_holder(stranger.authority, federation.request, identity.subject, 30)
    with federation.service() as address:
        found = why_unreachable(with_certificate(identity, tmp_path, pem), address)
    assert one_line(found).startswith(
        "the coordinator does not take this holder's certificate: another authority signed it; "
    )
    assert found.final


def test_the_coordinator_that_takes_no_expired_certificate(identity, federation, tmp_path):
    pem = issue_holder(federation.authority, federation.request, identity.subject, -1)
    with federation.service() as address:
        found = why_unreachable(with_certificate(identity, tmp_path, pem), address)
    assert one_line(found).startswith(
        "the coordinator does not take this holder's certificate: it expired on 20"
    )
    assert found.final


def test_an_alert_about_the_holders_certificate_is_told_in_its_own_words(
    identity, federation, stranger, tmp_path
):
    context = tls_context(federation.authority, tmp_path, trusts=stranger.authority)
    with listening(speaking(context)) as address:
        found = why_unreachable(identity, address)
    assert one_line(found).startswith(
        "the coordinator does not take this holder's certificate: unknown ca; renew it with "
    )
    assert found.final


def test_files_that_were_lost_since_the_start_are_told(identity, tmp_path, quick):
    with socket.create_server((HOST, 0)) as server:
        address = f"{HOST}:{server.getsockname()[1]}"
        found = why_unreachable(dataclasses.replace(identity, home=tmp_path), address)
    assert one_line(found).endswith("books.pem and its key cannot be read")
    assert not found.final


# -- proxies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "127.8.9.10", "::1"])
def test_this_machine_is_reached_without_a_proxy(host, monkeypatch):
    monkeypatch.setenv("grpc_proxy", "http://proxy.example:3128")
    assert is_loopback(host)
    assert proxy_of(host) is None


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "0.0.0.0", "128.0.0.1", "::2", "localhost.example", "my-localhost", ""]
)
def test_other_hosts_are_not_this_machine(host):
    assert not is_loopback(host)


def test_a_proxy_is_named_by_its_variable_and_never_quoted(identity, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy.example:3128")
    found = why_unreachable(identity, "coordinator.example:9440")
    assert "the proxy that https_proxy names" in one_line(found)
    assert "secret" not in found.line
    assert "proxy.example" not in found.line
    assert not found.final


def test_a_proxy_that_answers_byte_by_byte_has_no_more_time(identity, quick, monkeypatch):
    def drip(connection):
        for _ in range(50):
            connection.sendall(b"x")
            time.sleep(QUICK / 3)

    with listening(drip) as address:
        monkeypatch.setenv("https_proxy", f"http://{address}")
        start = time.monotonic()
        found = why_unreachable(identity, "coordinator.example:9440")
        seconds = time.monotonic() - start
    assert "through the proxy" in one_line(found)
    assert seconds < 10 * QUICK


def test_a_host_that_no_proxy_names_is_tried_directly(identity, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "localhost,nobody.invalid")
    found = why_unreachable(identity, "nobody.invalid:9440")
    assert "'nobody.invalid' is not known" in one_line(found)


PROXY = "http://{}"
PROXIED = [
    # host, variables ({} is the proxy's address), the variable that gRPC goes by
    ("a.invalid", {}, None),
    ("a.invalid", {"grpc_proxy": PROXY}, "grpc_proxy"),
    ("a.invalid", {"https_proxy": PROXY}, "https_proxy"),
    ("a.invalid", {"http_proxy": PROXY}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "https_proxy": PROXY}, "https_proxy"),
    ("a.invalid", {"HTTPS_PROXY": PROXY, "all_proxy": PROXY}, None),
    ("a.invalid", {"grpc_proxy": "", "https_proxy": PROXY}, None),
    ("a.invalid", {"grpc_proxy": "https://{}", "https_proxy": PROXY}, None),
    ("a.invalid", {"https_proxy": "{}"}, None),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "a.invalid"}, None),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": ".invalid"}, None),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "A.INVALID"}, None),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "b.example, a.invalid ,c"}, None),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "b.invalid"}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": ""}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": " , ,"}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "*"}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "*.invalid"}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "no_proxy": "a.invalid:9440"}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "NO_PROXY": "a.invalid"}, "http_proxy"),
    ("a.invalid", {"http_proxy": PROXY, "no_grpc_proxy": "a.invalid"}, None),
    (
        "a.invalid",
        {"http_proxy": PROXY, "no_grpc_proxy": "b", "no_proxy": "a.invalid"},
        "http_proxy",
    ),
    (
        "a.invalid",
        {"http_proxy": PROXY, "no_grpc_proxy": "", "no_proxy": "a.invalid"},
        "http_proxy",
    ),
    ("192.0.2.7", {"http_proxy": PROXY}, "http_proxy"),
    ("192.0.2.7", {"http_proxy": PROXY, "no_proxy": "192.0.2.7"}, None),
    ("192.0.2.7", {"http_proxy": PROXY, "no_proxy": "192.0.2.0/24"}, None),
    ("192.0.2.7", {"http_proxy": PROXY, "no_proxy": "10.0.0.0/8,192.0.2.8/31"}, "http_proxy"),
]


@pytest.mark.parametrize(("host", "variables", "name"), PROXIED)
def test_a_proxy_is_found_where_grpc_itself_takes_one(host, variables, name, monkeypatch):
    asked = []

    def refuse(connection):
        asked.append(connection.recv(1000).split(b"\r\n")[0])
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with listening(refuse) as address:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value.format(address))
        found = proxy_of(host)
        options = [("grpc.primary_user_agent", os.urandom(8).hex())]  # a channel of its own
        channel = grpc.insecure_channel(f"{host}:9440", options=options)
        with channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/a/b")(b"", timeout=10 if found else 0.3)
    assert found == name
    assert [line.split()[:2] for line in asked[:1]] == (
        [[b"CONNECT", f"{host}:9440".encode()]] if name else []
    )
