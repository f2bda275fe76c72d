"""The gRPC service of the coordinator: mutual TLS, who is let in, and the streams of the grid.

It runs on an event loop in a thread of its own, so that neither aggregation nor the ServerApp holds
up a heartbeat. Who calls is read from the certificate of the connection and from nothing else.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NoReturn

import grpc
import grpc.aio

from credit_common import federation_pb2 as pb
from credit_common.certificates import load_certificate, public_hex, public_key_of
from credit_common.contract import Contract
from credit_common.errors import CreditError, LinkError, TrustError
from credit_common.protocol import (
    PING_SECONDS,
    SERVICE,
    channel_options,
    common_version,
    from_head,
    welcome,
)
from credit_server.authority import Authority, issue_server
from credit_server.enrol import Enrolled, Registry
from credit_server.grid import GrpcGrid
from credit_server.heads import Heads
from credit_server.waits import CLOSE_SECONDS, RECHECK_SECONDS

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Service:
    """A running service; use as a context manager.

    Args:
        contract: What holders must have accepted.
        registry: Who may come.
        grid: Where requests come from and answers go to.
        heads: Keeps the heads of the holders' ledgers.
        authority: Issues the server's certificate, anew at each start.
        server_name: Name in that certificate.
        listen: HOST:PORT to listen on; port 0 takes a free one.
        array_bytes: Size of the largest message's arrays.

    Raises:
        LinkError: If the address cannot be listened on.
    """

    def __init__(
        self,
        contract: Contract,
        registry: Registry,
        grid: GrpcGrid,
        heads: Heads,
        *,
        authority: Authority,
        server_name: str,
        listen: str,
        array_bytes: int,
    ) -> None:
        self._contract, self._registry, self._grid = contract, registry, grid
        self._heads = heads
        self._heads_lock = asyncio.Lock()  # they are written beside the loop, one after the other
        key, certificate = issue_server(authority, server_name)
        self._credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority.ca_pem, require_client_auth=True
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        try:
            self.port: int = self._call(self._start(listen, array_bytes))
        except RuntimeError:
            self._end_loop()
            raise LinkError(
                f"cannot listen on {listen}: the port is taken or the address is not this machine's"
            ) from None

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._end_loop()

    async def _start(self, listen: str, array_bytes: int) -> int:
        options: list[tuple[str, Any]] = [
            *channel_options(array_bytes, "coordinator"),
            ("grpc.so_reuseport", 0),  # else a second coordinator would silently share the port
            ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_SECONDS * 500),
        ]
        self._server = grpc.aio.server(options=options)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Join": grpc.unary_unary_rpc_method_handler(
                self._join, pb.Hello.FromString, pb.Welcome.SerializeToString
            ),
            "Work": grpc.unary_stream_rpc_method_handler(
                self._work, pb.Hello.FromString, pb.Task.SerializeToString
            ),
            "Answer": grpc.unary_unary_rpc_method_handler(
                self._answer, pb.Reply.FromString, pb.Receipt.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )
        port = self._server.add_secure_port(listen, self._credentials)
        await self._server.start()
        return port

    async def _stop(self) -> None:
        await self._server.stop(CLOSE_SECONDS)
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _join(self, hello: pb.Hello, context: Context) -> pb.Welcome:
        # Its head is not taken here: the holder is to see its newest one, and to judge by itself.
        holder, version = await self._admitted(hello, context)
        newest = self._heads.newest(holder.node_id)
        return welcome(self._contract.federation.name, version, newest)

    async def _work(self, hello: pb.Hello, context: Context) -> AsyncIterator[pb.Task]:
        holder, _ = await self._admitted(hello, context)
        async with self._heads_lock:
            await self._take_head(hello, holder, context)
        tasks: asyncio.Queue[pb.Task | None] = asyncio.Queue()

        def deliver(task: pb.Task | None) -> None:
            self._loop.call_soon_threadsafe(tasks.put_nowait, task)

        log.info("holder %s is connected", holder.name)
        self._grid.attach(holder.name, holder.node_id, holder.size_class, deliver)
        try:
            while True:
                try:
                    task = await asyncio.wait_for(tasks.get(), RECHECK_SECONDS)
                except TimeoutError:
                    await self._holder(context)
                    continue
                if task is None:
                    await context.abort(
                        grpc.StatusCode.ABORTED,
                        "another connection of this holder took over; one holder runs once",
                    )
                await self._holder(context)
                yield task
                if task.WhichOneof("what") == "finished":
                    self._grid.told(holder.node_id)
                    return
        finally:
            self._grid.detach(holder.node_id, deliver)
            log.info("holder %s is gone", holder.name)

    async def _answer(self, reply: pb.Reply, context: Context) -> pb.Receipt:
        holder = await self._holder(context)
        async with self._heads_lock:
            # Each head is two syncs of the disk: an answer that nobody asked for brings none.
            if self._grid.expects(holder.node_id, reply.message_id):
                await self._take_head(reply, holder, context)
            return pb.Receipt(counted=self._grid.answer(holder.node_id, reply))

    async def _admitted(self, hello: pb.Hello, context: Context) -> tuple[Enrolled, int]:
        holder = await self._holder(context)
        try:
            version = common_version(hello.wire_versions)
            self._check_digest(hello.contract_digest)
        except LinkError as error:
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, error, holder.name)
        return holder, version

    async def _take_head(
        self, message: pb.Hello | pb.Reply, holder: Enrolled, context: Context
    ) -> None:
        try:
            head = from_head(message)
            if head is not None:
                where = "the certificate presented"
                certificate = load_certificate(_presented(context), where)
                key = public_hex(public_key_of(certificate, where))
                await asyncio.to_thread(self._heads.take, head, holder.node_id, key)
        except TrustError as error:
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, error, holder.name)

    async def _holder(self, context: Context) -> Enrolled:
        """Who calls, by the certificate of the connection."""
        try:
            return self._registry.admit(_presented(context))
        except TrustError as error:
            # By the code a holder knows whether a newer certificate would do.
            code = grpc.StatusCode.PERMISSION_DENIED
            if error.outdated:
                code = grpc.StatusCode.UNAUTHENTICATED
            await self._refuse(context, code, error, "a holder")

    def _check_digest(self, accepted: str) -> None:
        ours = self._contract.digest
        if accepted != ours:
            theirs = accepted[:12] if accepted.isalnum() else "none"
            raise LinkError(
                f"contract digest: the coordinator runs {ours[:12]}..., the holder accepted "
                f"{theirs}...; read the coordinator's bundle, then credit-client accept"
            )

    async def _refuse(
        self, context: Context, code: grpc.StatusCode, error: CreditError, who: str
    ) -> NoReturn:
        log.warning("%s is refused: %s", who, error)
        await context.abort(code, str(error))
        raise AssertionError  # abort raises

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _presented(context: Context) -> bytes:
    pem: bytes = next(iter(context.auth_context().get("x509_pem_cert", [])), b"")
    return pem
