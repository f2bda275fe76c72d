"""Below HTTP: the listening socket, TLS 1.3, and connections that never say what they want."""

import asyncio
import socket
import ssl
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from credit_client.service.settings import Settings, Tls
from credit_common.errors import CreditError, TrustError

LARGEST_HEAD = 1 << 16
"""Bytes of a request's head."""
LONGER_SECONDS = 5.0
"""By which a connection outlives a body that is late, so that its sender hears of it."""
BACKLOG = 1024


def listen(settings: Settings) -> socket.socket:
    """The socket that all workers accept from.

    Raises:
        CreditError: If the address cannot be had.
    """
    where = f"--host {settings.host} --port {settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        own = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CreditError(f"{where}: {error.strerror or 'no such address'}") from None
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
        own.listen(BACKLOG)
    except OSError as error:
        own.close()
        raise CreditError(f"{where}: {(error.strerror or 'cannot be had').lower()}") from None
    own.setblocking(False)
    return own


def tls_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.3 with the service's certificate, and its clients' if they must have one.

    Raises:
        TrustError: If a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        # A key under a password would be asked for at the terminal, by each worker.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no certificate and key in PEM that fit"
        raise TrustError(f"--tls-cert {tls.certificate} --tls-key {tls.key}: {why}") from None
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            why = error.strerror or "no certificates in PEM"
            raise TrustError(f"--tls-client-ca {tls.client_ca}: {why}") from None
    return context


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol of uvicorn with a size for heads, and the peer's name for the app.

    A head, a body, and a client that reads its answers have their times. The door times bodies that
    are read; one that was answered before (401, 429) is nobody's but the connection's.
    """
    longest = {
        "head": settings.header_seconds,
        "body": settings.body_seconds + LONGER_SECONDS,
        "answer": settings.body_seconds + LONGER_SECONDS,
    }

    class Connection(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.access_log = False  # it would show queries, whoever has set handlers for it
            # Else up to 64 KiB of answers may lie there unread before anybody is told of it.
            transport.set_write_buffer_limits(high=1, low=0)
            self._timers: dict[str, asyncio.TimerHandle] = {}
            self._head, self._inside = 0, False
            secure = transport.get_extra_info("ssl_object")
            if settings.mutual and secure is not None:
                self.app_state = {**self.app_state, "peer": _common_name(secure.getpeercert())}
            self._expect("head")

        def data_received(self, data: bytes) -> None:
            if not self._inside:
                self._head += len(data)
                self._expect("head")
            super().data_received(data)
            if self._inside:
                self._expect("body")
            elif self._head > LARGEST_HEAD:
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._head, self._inside = 0, True
            self._done("head")
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._inside, self._head = False, 0
            self._done("body")
            super().on_message_complete()

        def pause_writing(self) -> None:
            self._expect("answer")
            super().pause_writing()

        def resume_writing(self) -> None:
            self._done("answer")
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            for what in longest:
                self._done(what)
            super().connection_lost(exc)

        def _expect(self, what: str) -> None:
            if what not in self._timers:
                self._timers[what] = self.loop.call_later(longest[what], self.transport.abort)

        def _done(self, what: str) -> None:
            timer = self._timers.pop(what, None)
            if timer is not None:
                timer.cancel()

    return Connection


def configured(app: Any, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the app: it says nothing, and believes no header about who calls."""
    config = uvicorn.Config(
        app,
        http=protocol(settings),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
    )
    config.load()
    if settings.tls is not None:
        config.ssl = tls_context(settings.tls)  # uvicorn's own allows TLS 1.2
    return config


def _common_name(certificate: Any) -> str:
    """The name of a client's certificate; one without has that of its serial number."""
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return str(certificate.get("serialNumber", "unnamed"))
