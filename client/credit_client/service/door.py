"""What every request passes, before and after the app: access, rate, size, time, figures, log.

Plain ASGI, so that a request costs no task and no thread of its own. The body is read here, whole
and within its limits, before anything looks into it.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from credit_client.service.access import Token, name_of
from credit_client.service.figures import Figures
from credit_client.service.limits import Buckets
from credit_client.service.refusals import because, refuse
from credit_client.service.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz", "/readyz"})
"""Paths that say nothing but whether the service is up."""
DISCARDED = 8
"""How many times its limit a body is read to its end, and thrown away, for its sender to hear."""
_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]

log = logging.getLogger(__name__)


class _TooLargeError(Exception):
    """A body beyond its limit."""


class Door:
    """The ASGI app around the app."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        figures: Figures,
        *,
        tokens: tuple[Token, ...] = (),
        buckets: Buckets | None = None,
    ) -> None:
        self._app, self._settings, self._figures = app, settings, figures
        self._buckets = buckets
        self.tokens = tokens
        self.draining: Callable[[], bool] = lambda: False
        """Whether the worker is about to end: connections are not kept then."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        start = time.perf_counter()
        scope.setdefault("state", {})
        name, known = self._client(scope)
        id_ = os.urandom(8).hex()
        scope["state"] |= {"request_id": id_, "client": name}
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [*_HEADERS, (b"x-request-id", id_.encode())]
                if self.draining() or status in (408, 413):
                    more.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            await self._guarded(scope, receive, told, name, known)
        except Exception as error:  # uvicorn would log its text, and a client would get no answer
            # The text of an error may hold what was sent: its kind and place are told alone.
            log.error("%s: request failed: %s at %s", id_, type(error).__name__, _place(error))
            if not status:
                answer = refuse(500, because("an error of the service itself"), id_)
                await answer(scope, receive, told)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            self._figures.requests.labels(route, str(status), name if known else "-").inc()
            self._figures.seconds.labels(route).observe(seconds)
            if self._settings.access_log:
                method = scope["method"] if route != "other" else "-"
                log.info("%s %s %s %d %.1f ms %s", id_, method, route, status, seconds * 1e3, name)

    def close(self) -> None:
        """Let go what the workers share."""
        if self._buckets is not None:
            self._buckets.close()

    def _client(self, scope: Scope) -> tuple[str, bool]:
        """Name for limits, and whether it is one that was shown rather than an address."""
        if self.tokens:
            for header, value in scope["headers"]:
                if header == b"authorization":
                    name = name_of(self.tokens, value)
                    if name is not None:
                        return name, True
        elif "peer" in scope["state"]:  # the name in a certificate that the handshake has checked
            return scope["state"]["peer"], True
        client = scope.get("client")
        return (str(client[0]) if client else "unknown"), False

    async def _guarded(
        self, scope: Scope, receive: Receive, send: Send, name: str, known: bool
    ) -> None:
        body: bytes | None = b""
        answer = self._turned_away(scope, name, known)
        if answer is None:
            id_, most = scope["state"]["request_id"], self._settings.max_body
            try:
                async with asyncio.timeout(self._settings.body_seconds):
                    body = await _whole(scope, receive, most)
            except _TooLargeError:
                answer = refuse(413, because(f"the body is larger than {most} bytes"), id_)
            except TimeoutError:
                answer = refuse(408, because("the body is late"), id_)
        if answer is not None:
            await answer(scope, receive, send)
        elif body is not None:
            await self._app(scope, _again(body, receive), send)

    def _turned_away(self, scope: Scope, name: str, known: bool) -> JSONResponse | None:
        """The answer to a client that may not come in, or not now."""
        if scope["path"] in OPEN:
            return None
        id_ = scope["state"]["request_id"]
        wait = self._buckets.take(name, known) if self._buckets else 0.0
        if wait:
            headers = {"Retry-After": str(math.ceil(wait))}
            return refuse(429, because("too many requests"), id_, headers)
        if self.tokens and not known:
            headers = {"WWW-Authenticate": "Bearer"}
            return refuse(401, because("a bearer token is needed"), id_, headers)
        return None


def _again(body: bytes, receive: Receive) -> Receive:
    """What the app receives: the body that was read, then whatever comes."""
    left = [body]

    async def replay() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return replay


async def _whole(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The whole body; None where the client leaves before its end."""
    declared = next((v for name, v in scope["headers"] if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared[:20]) > DISCARDED * most:
        raise _TooLargeError
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= most:
            chunks.append(chunk)
        elif size > DISCARDED * most:
            raise _TooLargeError
        if not message.get("more_body", False):
            if size > most:
                raise _TooLargeError
            return b"".join(chunks)


def _place(error: BaseException) -> str:
    """Module and line that raised."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return f"{last.tb_frame.f_globals.get('__name__')}:{last.tb_lineno}" if last else "?"
