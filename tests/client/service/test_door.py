import asyncio
import contextlib
import datetime
import hashlib
import logging
import socket
import ssl
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from credit_client.service import connection
from credit_client.service.access import Token
from credit_client.service.settings import Settings, Tls
from credit_common.errors import CreditError

TOKEN, OTHER = "0123456789abcdef-till", "0123456789abcdef-site"


@pytest.fixture
def tokens(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# who may ask\ntill-3 {TOKEN}\n\nwebsite {OTHER}\n")
    file.chmod(0o600)
    return file


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_a_token_is_needed_but_for_health(serve_here, wide_release, applicants, tokens, caplog):
    caplog.set_level(logging.DEBUG)
    here = serve_here(wide_release, token_file=tokens, access_log=True)
    record = applicants(1)[0]
    for headers in ({}, bearer("wrong" * 5), {"authorization": "Bearer"}, {"authorization": TOKEN}):
        for method, path in (("POST", "/v1/score"), ("GET", "/metrics"), ("GET", "/openapi.json")):
            answer = here.client.request(method, path, json=record, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz"):
        assert here.client.get(path).status_code == 200
    for token in (TOKEN, OTHER):
        answer = here.client.post("/v1/score", json=record, headers=bearer(token))
        assert answer.status_code == 200
    text = here.client.get("/metrics", headers=bearer(TOKEN)).text
    assert 'credit_requests_total{client="till-3",route="/v1/score",status="200"} 1.0' in text
    assert 'credit_requests_total{client="website",route="/v1/score",status="200"} 1.0' in text
    said = [r.getMessage() for r in caplog.records if r.name == "credit_client.service.door"]
    assert any("POST /v1/score 200" in line and line.endswith("till-3") for line in said)
    assert TOKEN not in text + "".join(said)
    told = here.client.get("/openapi.json", headers=bearer(TOKEN)).json()
    assert told["paths"]["/v1/score"]["post"]["security"] == [{"token": []}]
    assert "security" not in told["paths"]["/healthz"]["get"]


def test_a_client_has_a_rate_of_its_own(serve_here, wide_release, tokens):
    here = serve_here(wide_release, token_file=tokens, rate=0.5, burst=3)
    get = lambda token: here.client.get("/v1/model", headers=bearer(token))  # noqa: E731
    answers = [get(TOKEN) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
    assert get(OTHER).status_code == 200
    assert here.client.get("/readyz").status_code == 200
    guesses = [here.client.get("/v1/model").status_code for _ in range(5)]
    assert guesses == [401, 401, 401, 429, 429]  # guessing tokens is limited as well


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit_before_anything_is_parsed(serve_here, wide_release, chunked):
    here = serve_here(wide_release, max_body=2000)
    for size, status in ((1999, 422), (2001, 413), (15_000, 413)):
        body = b"{" + b" " * (size - 1)
        content = iter([body[:1000], body[1000:]]) if chunked else body
        headers = {"content-type": "application/json"}
        answer = here.client.post("/v1/score", content=content, headers=headers)
        assert answer.status_code == status
    assert answer.headers["connection"] == "close"


def raw(port, data, seconds):
    """Sends bytes on a connection of its own; what comes back until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as own:
        own.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := own.recv(65536):
                got += part
        return got


def test_a_body_that_does_not_end_is_given_up(serve_here, wide_release):
    here = serve_here(wide_release, body_seconds=0.3)
    head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    assert raw(here.port, head, 5).startswith(b"HTTP/1.1 408 ")
    endless = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{"
    assert raw(here.port, endless, 5).startswith(b"HTTP/1.1 413 ")


@pytest.fixture
def kept(monkeypatch):
    """How many connections a service still has after a while."""
    monkeypatch.setattr(connection, "LONGER_SECONDS", 0.2)

    def count(here, seconds=3.0):
        end = time.monotonic() + seconds
        while (left := len(here.parts.server.server_state.connections)) and time.monotonic() < end:
            time.sleep(0.02)
        return left

    return count


def test_a_body_that_nobody_reads_does_not_hold_its_connection(
    serve_here, wide_release, tokens, kept
):
    here = serve_here(wide_release, token_file=tokens, body_seconds=0.3)
    head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", here.port), timeout=5) as own:
        own.sendall(head)
        assert own.recv(65536).startswith(b"HTTP/1.1 401 ")
        own.sendall(b"{")
        assert kept(here) == 0
        with contextlib.suppress(ConnectionResetError):
            assert own.recv(1) == b""


def test_a_client_that_never_reads_does_not_hold_its_connection(serve_here, wide_release, kept):
    here = serve_here(wide_release, body_seconds=0.3)
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.connect(("127.0.0.1", here.port))
        for _ in range(2000):  # until the first answer that is too much, and far below 64 KiB
            with contextlib.suppress(ConnectionError):  # it may be closed by now
                own.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
            time.sleep(0.01)
            found = list(here.parts.server.server_state.connections)
            if any(each.transport.get_write_buffer_size() for each in found):
                break
        assert kept(here) == 0


def test_a_client_that_reads_in_time_keeps_its_connection(serve_here, wide_release, kept):
    here = serve_here(wide_release, body_seconds=1.0)
    with socket.create_connection(("127.0.0.1", here.port), timeout=5) as own:
        for _ in range(3):
            own.sendall(b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{")
            time.sleep(0.1)
            own.sendall(b"}")
            assert own.recv(65536).startswith(b"HTTP/1.1 415 ")
            time.sleep(1.4)


def test_a_head_that_does_not_end_is_given_up(serve_here, wide_release):
    here = serve_here(wide_release, header_seconds=0.3)
    start = time.monotonic()
    assert raw(here.port, b"POST /v1/score HTTP/1.1\r\nhost:", 5) == b""
    assert raw(here.port, b"", 5) == b""
    assert time.monotonic() - start < 4
    with pytest.raises((ConnectionResetError, BrokenPipeError, AssertionError)):
        assert raw(here.port, b"GET / HTTP/1.1\r\nx: " + b"y" * 300_000, 5) != b""
    again = here.client.get("/healthz")
    time.sleep(0.5)  # a connection that is kept has no head to send yet
    assert here.client.get("/healthz").status_code == again.status_code == 200


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A CA, a certificate of the service and one of a client, and a stranger's."""
    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def write(name, issuer=None, alt=None):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer, signs = issuer or (subject, key)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        )
        usage = {"digital_signature": True, "key_cert_sign": issuer is None, "crl_sign": True}
        rest = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        made = made.add_extension(x509.KeyUsage(**usage, **rest), True)
        made = made.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
        ).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signs.public_key()), False
        )
        if alt:
            names = x509.SubjectAlternativeName([x509.DNSName(alt)])
            made = made.add_extension(names, False)
        pem = serialization.Encoding.PEM
        own = made.sign(signs, hashes.SHA256()).public_bytes(pem)
        (folder / f"{name}.pem").write_bytes(own)
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, plain))
        return subject, key

    ca = write("ca")
    write("service", ca, "localhost")
    write("till-7", ca)
    write("stranger", write("other-ca"))
    return folder


def context_of(folder, name=None):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_mutual_tls_names_its_clients_and_lets_in_no_other(
    serve_here, wide_release, applicants, certificates
):
    tls = Tls(
        certificate=certificates / "service.pem",
        key=certificates / "service.key",
        client_ca=certificates / "ca.pem",
    )
    here = serve_here(wide_release, tls=tls)
    url = f"https://localhost:{here.port}"
    known = context_of(certificates, "till-7")
    with httpx.Client(base_url=url, verify=known, trust_env=False) as client:
        assert client.post("/v1/score", json=applicants(1)[0]).status_code == 200
        assert 'client="till-7"' in client.get("/metrics").text
    for name in (None, "stranger"):
        own = context_of(certificates, name)
        with (
            httpx.Client(base_url=url, verify=own, trust_env=False) as client,
            pytest.raises(httpx.TransportError),
        ):
            client.get("/healthz")
    old = context_of(certificates, "till-7")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        httpx.Client(base_url=url, verify=old, trust_env=False) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.get("/healthz")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.example"])
def test_an_address_that_others_reach_needs_access_control(tmp_path, host, certificates):
    one_way = Tls(certificate=certificates / "service.pem", key=certificates / "service.key")
    for given in ({}, {"tls": one_way}):
        with pytest.raises(CreditError, match=f"--host {host} can be reached"):
            Settings(release=tmp_path, host=host, **given)
    for allowed in ({"no_access_control": True}, {"token_file": tmp_path / "tokens"}):
        with pytest.raises(CreditError, match=f"--host {host} .* unencrypted: .*--plain-http"):
            Settings(release=tmp_path, host=host, **allowed)
        Settings(release=tmp_path, host=host, **allowed, tls=one_way)
        Settings(release=tmp_path, host=host, **allowed, plain_http=True)
    for own in ("127.0.0.1", "::1", "localhost"):
        Settings(release=tmp_path, host=own)


def test_settings_name_the_flag_and_its_bound(tmp_path):
    with pytest.raises(CreditError, match="--max-batch 0: must be between 1 and 100000"):
        Settings(release=tmp_path, max_batch=0)
    with pytest.raises(CreditError, match="--max-waiting 10: must be at least --max-batch 1000"):
        Settings(release=tmp_path, max_waiting=10)


def test_an_error_of_the_service_shows_and_logs_no_value(serve_here, wide_release, caplog):
    caplog.set_level(logging.DEBUG)
    here = serve_here(wide_release)

    async def broken(scope, receive, send):
        await asyncio.sleep(0)
        raise ValueError("SENTINEL")

    here.parts.door._app = broken
    answer = here.client.get("/v1/model")
    assert answer.status_code == 500
    assert "SENTINEL" not in answer.text + "".join(r.getMessage() for r in caplog.records)
    assert any("ValueError" in record.getMessage() for record in caplog.records)


def test_tokens_are_not_kept_as_they_are():
    token = Token(name="till", sha256=hashlib.sha256(TOKEN.encode()).digest())
    assert TOKEN not in repr(token)
