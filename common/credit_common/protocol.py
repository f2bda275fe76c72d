"""Flower's messages as the protobuf messages of `federation.proto`, and how a channel is set up.

Nothing outside the schema crosses: a request is its id, kind, round and arrays, and a reply is an
id with an adapter, a histogram, statistics or a refusal. A holder's public weight is not even
sent; the coordinator knows the size class that it enrolled.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from credit_common import federation_pb2 as pb
from credit_common.contract import Contract
from credit_common.errors import LinkError, WireError
from credit_common.groups import count_columns
from credit_common.heads import Head, head_from_json
from credit_common.statistics import check_statistics, edge_arrays, statistics_shapes
from credit_common.upload import blank_upload
from credit_common.wire import (
    ARRAYS,
    CONFIG,
    HISTOGRAM,
    METRICS,
    ROUND,
    FloatArrays,
    adapter_reply,
    array_record,
    histogram_reply,
    pack,
    refusal,
    reply_statistics,
    request_arrays,
    request_round,
    set_message_id,
    statistics_reply,
    unpack_adapter,
    unpack_histogram,
    unpack_statistics,
    uploaded,
)

WIRE_VERSIONS = (1,)
"""What this package speaks. Encodings of uploads need no version: both sides have the contract that
names it, and a package that does not know it refuses that contract."""
SERVICE = "credit_federation.Federation"
PING_SECONDS = 20
"""Between two heartbeats: HTTP/2 pings, which are empty and need no thread of Python's."""
PING_TIMEOUT_SECONDS = 20
"""A side that leaves a heartbeat unanswered for so long counts as gone."""
HEADROOM = 1 << 16
"""Bytes that a message may have beside its arrays."""
MOST_HEADS, HEAD_BYTES = 10_000, 700
"""Heads that the end of a run may carry, and the size of one."""

_KINDS = {"train": pb.TRAIN, "evaluate": pb.EVALUATE, "query": pb.STATISTICS}
_TYPES = {kind: name for name, kind in _KINDS.items()}
_ASKED = {"train": "adapter", "evaluate": "histogram", "query": "statistics"}


def hello(contract_digest: str, head: Head | None = None) -> pb.Hello:
    """How a holder opens: wire versions, the contract that it accepted, its ledger's head."""
    opening = pb.Hello(wire_versions=WIRE_VERSIONS, contract_digest=contract_digest)
    if head is not None:
        opening.head.CopyFrom(to_head(head))
    return opening


def welcome(federation: str, wire_version: int, head: Head | None = None) -> pb.Welcome:
    """The coordinator's answer, with its clock and the newest head that the holder signed."""
    answer = pb.Welcome(wire_version=wire_version, federation=federation, server_time=time.time())
    if head is not None:
        answer.head.CopyFrom(to_head(head))
    return answer


def to_head(head: Head) -> pb.Head:
    """A ledger's head as it goes out."""
    return pb.Head(**{name: value for name, value in vars(head).items() if value is not None})


def from_head(message: pb.Hello | pb.Welcome | pb.Reply) -> Head | None:
    """The head in a message, its signature checked; None where it has none.

    Raises:
        TrustError: If a field is out of its bounds, or the signature is wrong.
    """
    return head_of(message.head) if message.HasField("head") else None


def head_of(head: pb.Head) -> Head:
    """A ledger's head as it came, its signature checked.

    Raises:
        TrustError: If a field is out of its bounds, or the signature is wrong.
    """
    optional = ("epsilon", "epsilon_replace_one")
    plain = {name: getattr(head, name) for name in Head.__dataclass_fields__}
    plain |= {name: None for name in optional if not head.HasField(name)}
    return head_from_json(plain)


def common_version(offered: Iterable[int]) -> int:
    """The highest wire version that both sides speak.

    Raises:
        LinkError: If there is none, naming both sides' versions.
    """
    both = set(offered) & set(WIRE_VERSIONS)
    if not both:
        theirs = ", ".join(str(version) for version in sorted(set(offered))[:20]) or "none"
        ours = ", ".join(map(str, WIRE_VERSIONS))
        raise LinkError(
            f"no common wire version: the coordinator speaks {ours}, the holder {theirs}; "
            "update the older side"
        )
    return max(both)


def to_request(message: Message) -> pb.Request:
    """A request of the coordinator's ServerApp as it goes out."""
    kind = message.metadata.message_type
    if kind not in _KINDS:
        raise WireError(f"message type {kind!r}: must be one of {', '.join(_KINDS)}")
    return pb.Request(
        message_id=message.metadata.message_id,
        kind=_KINDS[kind],
        round=request_round(message),
        arrays=pack(request_arrays(message)),
    )


def from_request(request: pb.Request, node_id: int) -> Message:
    """A request as the holder's ClientApp takes it.

    Raises:
        WireError: If kind, id or arrays do not follow the schema.
    """
    if request.kind not in _TYPES:
        known = ", ".join(f"{kind} ({name})" for kind, name in _TYPES.items())
        raise WireError(f"request of kind {request.kind}: must be one of {known}")
    if not 1 <= len(request.message_id) <= 200:
        raise WireError("a request's message id must have 1 to 200 characters")
    arrays = array_record(unpack_adapter(request.arrays))
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({ROUND: request.round})})
    message = Message(content, dst_node_id=node_id, message_type=_TYPES[request.kind])
    set_message_id(message, request.message_id)
    return message


def to_reply(reply: Message) -> pb.Reply:
    """A reply as it goes out: the gate's bytes, or a bare refusal."""
    answered = reply.metadata.reply_to_message_id
    if reply.has_error():
        return pb.Reply(message_id=answered, refused=pb.Refused())
    if ARRAYS in reply.content.array_records:
        arrays = reply.content.array_records[ARRAYS]
        adapter = pack(uploaded(arrays))
        return pb.Reply(message_id=answered, adapter=adapter)
    if HISTOGRAM not in reply.content.metric_records[METRICS]:
        return pb.Reply(message_id=answered, statistics=pack(reply_statistics(reply)))
    counts = np.asarray(reply.content.metric_records[METRICS][HISTOGRAM], np.float64)
    return pb.Reply(message_id=answered, histogram=pack({HISTOGRAM: counts.reshape(2, -1)}))


def from_reply(
    request: Message,
    reply: pb.Reply,
    weight: float,
    shape: tuple[int, int],
    statistics: Mapping[str, tuple[int, ...]] | None = None,
) -> Message:
    """A reply as the coordinator's ServerApp takes it.

    An adapter's arrays are not looked at: `credit_common.upload.check_upload` does that.

    Args:
        request: What it answers.
        reply: As it came.
        weight: Public weight of the holder's size class.
        shape: A histogram's, (2, columns).
        statistics: Names and shapes of the arrays of statistics, if the contract has any.

    Raises:
        WireError: If it is not what the request asked for.
    """
    outcome = reply.WhichOneof("outcome")
    if outcome == "refused":
        return refusal(request)
    asked = _ASKED[request.metadata.message_type]
    if outcome != asked:
        raise WireError(f"reply has {outcome or 'nothing'}, the request asked for {asked}")
    if outcome == "adapter":
        return adapter_reply(request, reply.adapter, weight)
    if outcome == "statistics":
        check_statistics(statistics or {}, unpack_statistics(reply.statistics))
        return statistics_reply(request, reply.statistics)
    found = unpack_histogram(reply.histogram).shape
    if found != shape:
        raise WireError(f"histogram has shape {found}, must have {shape}")
    return histogram_reply(request, reply.histogram, weight)


def largest_arrays(contract: Contract, adapter: FloatArrays) -> int:
    """Bytes of the largest arrays that any message of a contract has.

    Args:
        contract: Sets the sizes of histograms, and of statistics and federated edges.
        adapter: Any adapter of its model.
    """
    edges = {f.name: f.grid.inner[: f.bins - 1] for f in contract.federated_fields}
    counts = {name: np.zeros(shape) for name, shape in statistics_shapes(contract).items()}
    blank = blank_upload(contract.training.upload, {n: a.shape for n, a in adapter.items()})
    return max(
        len(pack({**adapter, **edge_arrays(edges)})),
        len(pack(blank)),
        len(pack(counts)),
        2 * count_columns(contract, contract.training.rounds) * 8,
    )


def channel_options(
    array_bytes: int, side: Literal["holder", "coordinator"]
) -> list[tuple[str, int]]:
    """Settings of one side of a channel: heartbeats, and the largest message.

    Args:
        array_bytes: Size of the largest arrays that the schema allows.
        side: What goes to holders may carry the heads of all of them.
    """
    up = array_bytes + HEADROOM
    down = up + MOST_HEADS * HEAD_BYTES
    receive, send = (down, up) if side == "holder" else (up, down)
    return [
        ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_SECONDS * 1000),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_SECONDS * 1000),  # else a minute passes first
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS * 500),
        ("grpc.max_receive_message_length", receive),
        ("grpc.max_send_message_length", send),
    ]
