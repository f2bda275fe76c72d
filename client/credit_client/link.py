"""A holder's end of the wire: connect, take requests, hand out answers, come back by itself.

Nothing but what the gate made goes out here. Heartbeats are HTTP/2 pings of gRPC's own threads, so
that they go on while a training step keeps Python busy.
"""

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import grpc
from flwr.app import Message
from flwr.clientapp import ClientApp

from credit_client.gate import Exit
from credit_client.heads import OwnHeads
from credit_client.identity import Identity, open_identity
from credit_client.reach import is_loopback, why_unreachable
from credit_client.waits import (
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    FIRST_WAIT_SECONDS,
    JOIN_SECONDS,
    LONGEST_WAIT_SECONDS,
    SLOWEST_BYTES_A_SECOND,
)
from credit_common import federation_pb2 as pb
from credit_common.bundle import parse_address
from credit_common.errors import CreditError, LinkError, TrustError
from credit_common.protocol import (
    SERVICE,
    WIRE_VERSIONS,
    channel_options,
    from_head,
    from_request,
    hello,
    to_head,
    to_reply,
)
from credit_common.wire import SERVER_NODE, empty_context, refusal, set_identity

log = logging.getLogger(__name__)

RUN_ID = 1
SHOWN = 300
"""Characters of the coordinator's words that are shown."""
_jitter = secrets.SystemRandom()


class Link:
    """A channel to the coordinator; use as a context manager.

    Args:
        identity: The holder's certificate, key and accepted bundle.
        address: HOST:PORT of the coordinator. Its certificate must be that of the bundle's server
            name whatever the address is.
        array_bytes: Size of the largest message's arrays.
        exit_: Makes the bytes of all that is sent; the default lets no answer pass.
        heads: Signs the ledger's heads; None sends none, as without privacy.
    """

    def __init__(
        self,
        identity: Identity,
        address: str,
        array_bytes: int,
        *,
        exit_: Exit | None = None,
        heads: OwnHeads | None = None,
    ) -> None:
        self.address = address
        self._exit = exit_ or Exit(identity.manifest)
        self._heads = heads
        self._answer_seconds = JOIN_SECONDS + array_bytes / SLOWEST_BYTES_A_SECOND
        self._array_bytes = array_bytes
        grace = identity.bundle.contract.federation.grace_seconds
        self._longest_wait = max(FIRST_WAIT_SECONDS, min(LONGEST_WAIT_SECONDS, grace / 2))
        self._rounds = identity.bundle.contract.training.rounds
        set_identity(RUN_ID, SERVER_NODE)  # requests are made here in the coordinator's name
        self._open(identity)

    def _open(self, identity: Identity) -> None:
        """A channel with the identity's certificate; nothing is sent yet."""
        self._identity = identity
        host, _ = parse_address(self.address)
        bundle = identity.bundle
        options: list[tuple[str, Any]] = [
            *channel_options(self._array_bytes, "holder"),
            ("grpc.ssl_target_name_override", bundle.server_name),
            ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1),
            # One backoff, in `work`: with gRPC's own behind it, attempts would fall into its waits.
            ("grpc.max_reconnect_backoff_ms", int(FIRST_WAIT_SECONDS * 1000)),
            ("grpc.initial_reconnect_backoff_ms", int(FIRST_WAIT_SECONDS * 1000)),
            # By its name a wait, but the longest time that TCP, TLS and the first frames may take.
            ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
        ]
        credentials = grpc.ssl_channel_credentials(
            root_certificates=bundle.ca_pem.encode(),
            private_key=identity.key_pem,
            certificate_chain=identity.certificate_pem,
        )
        self._channel = grpc.secure_channel(self.address, credentials, options=options)
        path = f"/{SERVICE}/"
        # No serialisers: what these are called with are the bytes that the gate made.
        channel: Any = self._channel
        self._join = channel.unary_unary(path + "Join", None, pb.Welcome.FromString)
        self._work = channel.unary_stream(path + "Work", None, pb.Task.FromString)
        self._answer = channel.unary_unary(path + "Answer", None, pb.Receipt.FromString)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        # An interrupt that falls between gRPC's opening of a call and the start of the thread that
        # serves it leaves close() waiting for ever.
        closing = threading.Thread(target=self._channel.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def join(self) -> pb.Welcome:
        """Ask whether this holder would be let in.

        Raises:
            LinkError: If the coordinator cannot be reached, or speaks no common wire version, or
                runs another contract.
            PrivacyError: If the coordinator has a head that the ledger does not continue.
            TrustError: If one side does not take the other's certificate.
        """
        try:
            return self._joined()
        except grpc.RpcError as error:
            raise self._reason(error) from None

    def work(
        self,
        app: ClientApp,
        *,
        was_in: bool = False,
        on_connected: Callable[[], None] = lambda: None,
        on_waiting: Callable[[str, float], None] = lambda reason, seconds: None,
        on_answered: Callable[[pb.Request, pb.Reply], None] = lambda request, reply: None,
    ) -> pb.Finished:
        """Answer requests until the run ends; a lost connection is taken up again.

        Each time with the certificate that is on the disk by then. A holder that was let in once
        waits for a renewed one when its own has expired or was replaced, and for the coordinator
        when something else answers at its address.

        Args:
            app: The holder's app, called in this thread.
            was_in: Whether the coordinator has let this holder in before.
            on_connected: Called when the coordinator has let this holder in.
            on_waiting: Called with the reason and the seconds until the next attempt.
            on_answered: Called after an answer was received.

        Returns:
            The released model and what is known of it.

        Raises:
            LinkError, TrustError: As in `join`, for reasons that another attempt cannot mend.
        """
        context = empty_context(RUN_ID, self._identity.subject.node_id)
        finished: pb.Finished | None = None
        failures = 0
        while True:
            self._renew()
            try:
                self._joined()
                was_in = True
                on_connected()
                # Read to the stream's end, so that the coordinator knows that the last task came.
                for task in self._work(self._greeting()):
                    failures = 0
                    if task.WhichOneof("what") == "finished":
                        finished = task.finished
                    else:
                        reply = to_reply(self._run(app, task.request, context))
                        self._send(reply, task.request.round)
                        on_answered(task.request, reply)
                reason: CreditError = LinkError("the coordinator closed the stream", final=False)
            except grpc.RpcError as error:
                reason = self._reason(error, was_in)
            if finished is not None:
                return finished
            outdated = isinstance(reason, TrustError) and reason.outdated and was_in
            if not outdated and (not isinstance(reason, LinkError) or reason.final):
                raise reason
            seconds = min(self._longest_wait, FIRST_WAIT_SECONDS * 2**failures)
            seconds *= _jitter.uniform(0.8, 1.2)
            failures = min(failures + 1, 10)
            on_waiting(str(reason), seconds)
            time.sleep(seconds)

    def _renew(self) -> None:
        """Take up a certificate that was renewed on the disk, and nothing else that changed there.

        A new key or another contract need a new start: the ledger's heads are signed with the one,
        the other is agreed to before training begins.
        """
        own = self._identity
        try:
            if own.certificate_path.read_bytes() == own.certificate_pem:
                return
            found = open_identity(own.home)
        except (OSError, CreditError) as error:  # it may be half copied: there is a next time
            log.warning("the certificate on the disk is not taken up: %s", error)
            return
        if (found.subject, found.key_pem) != (own.subject, own.key_pem):
            log.warning("the certificate on the disk is of another key or name: start anew for it")
            return
        log.info("%s was renewed: valid until %s", own.certificate_path, found.not_after)
        self._close()
        self._open(
            dataclasses.replace(
                own, certificate_pem=found.certificate_pem, not_after=found.not_after
            )
        )

    def _joined(self) -> pb.Welcome:
        welcome: pb.Welcome = self._join(self._greeting(), timeout=JOIN_SECONDS)
        if welcome.wire_version not in WIRE_VERSIONS:
            raise LinkError(
                f"the coordinator chose wire version {welcome.wire_version}, which this holder "
                "did not offer"
            )
        if self._heads is not None:
            self._heads.check(from_head(welcome))
        return welcome

    def _greeting(self) -> bytes:
        head = self._heads.head() if self._heads else None
        return self._exit.greeting(hello(self._identity.bundle.contract_digest, head))

    def _reason(self, error: grpc.RpcError, was_in: bool = False) -> CreditError:
        """What a failed call means to the holder's person.

        Only the coordinator itself turns away who was let in before: what is found in its place
        then (a portal, a forwarder that is restarted) passes.
        """
        call: Any = error  # a failed call is both an RpcError and a Call
        code: grpc.StatusCode = call.code()
        said = "".join(c for c in (call.details() or "")[:SHOWN] if c.isprintable())
        if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
            outdated = code is grpc.StatusCode.UNAUTHENTICATED
            return TrustError(f"the coordinator refused: {said}", outdated=outdated)
        if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED):
            return LinkError(f"the coordinator refused: {said}")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LinkError(f"a message is larger than the contract's model: {said}")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            found = why_unreachable(self._identity, self.address)
            if found.final and not was_in:
                return TrustError(found.line)
            return LinkError(found.line, final=False)
        return LinkError(f"the connection failed ({code.name.lower()})", final=False)

    def _run(self, app: ClientApp, request: pb.Request, context: Any) -> Message:
        message = from_request(request, self._identity.subject.node_id)
        try:
            return app(message, context)
        except Exception as error:  # whatever broke may quote data: its type is all that is kept
            log.warning("refused a request: %s", type(error).__name__)
            return refusal(message)

    def _send(self, reply: pb.Reply, round_: int) -> None:
        if self._heads is not None:
            reply.head.CopyFrom(to_head(self._heads.head(spend=round_ >= self._rounds)))
        content = self._exit.answer(reply, round_)
        receipt = self._answer(content, timeout=self._answer_seconds, wait_for_ready=True)
        if not receipt.counted:
            log.warning("the coordinator no longer waits for the answer to %s", reply.message_id)
