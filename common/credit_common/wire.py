"""Flower messages and their bytes: named float arrays behind a schema, never pickle.

flwr's names outside its public API live in this module alone: `TaskIdentity`, without which a
Message cannot be made outside Flower's own processes, a message's id, which Flower's servers set,
and `Run`, which its Grid interface speaks of. A contract test holds them to the installed flwr.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from credit_common.arrays import SENT, from_array, to_array
from credit_common.certificates import SERVER_NODE as SERVER_NODE
from credit_common.errors import WireError

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records in a message's content."""
WEIGHT, HISTOGRAM, ROUND = "weight", "histogram", "server-round"
"""Names of the metrics of a reply, and of the round in a request (Flower's own)."""
REFUSED = 2001
"""The one error code that a holder ever sends; what went wrong stays in its own log."""

SET_ASIDE = 2002
"""The code by which a coordinator's grid tells its strategy that an answer was set aside, and, as
the error's reason, why; nobody sends it."""

FloatArrays = Mapping[str, NDArray[np.floating[Any]]]
AnyArrays = Mapping[str, NDArray[Any]]


def set_identity(run_id: int, node_id: int) -> None:
    """Say whose messages this process makes."""
    TaskIdentity.task_id = run_id
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a request its id, which its reply will name."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """Flower's description of a run, with nothing but its id."""
    return Run.create_empty(run_id)


def empty_context(run_id: int, node_id: int) -> Context:
    """Flower's context of an app; this project keeps no state in it."""
    return Context(run_id, node_id, {}, RecordDict(), {})


def request_round(message: Message) -> int:
    """Round number of a request.

    Raises:
        WireError: If it has none, or it is not a positive integer.
    """
    value = message.content.config_records.get(CONFIG, ConfigRecord()).get(ROUND)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WireError(f"request without a {ROUND}")
    return value


def request_arrays(message: Message) -> dict[str, NDArray[np.float32]]:
    """Arrays of a request, in its own order.

    Raises:
        WireError: If there is not exactly one record of arrays under its name, or one of them is
            not float32 in NumPy's own format; pickles are not opened.
    """
    # Not by `content.array_records`: it puts itself and the content into a reference cycle.
    records = {
        name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)
    }
    if set(records) != {ARRAYS}:
        raise WireError(f"a request carries one record of arrays named {ARRAYS!r}")
    return decoded(records[ARRAYS])


def decoded(record: ArrayRecord) -> dict[str, NDArray[np.float32]]:
    """Arrays of a record, in its own order.

    Raises:
        WireError: If one of them is not float32 in NumPy's own format; pickles are not opened.
    """
    return {name: from_array(name, array) for name, array in record.items()}


def uploaded(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Arrays of an upload, in its own order; `credit_common.upload` checks them.

    Raises:
        WireError: If one of them is not of a type that is sent, in NumPy's own format; pickles are
            not opened.
    """
    return {name: from_array(name, array, SENT) for name, array in record.items()}


def array_record(arrays: AnyArrays) -> ArrayRecord:
    """Arrays as Flower's record, sorted by name."""
    record = ArrayRecord()
    for name in sorted(arrays):  # one by one: ArrayRecord(arrays) would make each Array again
        record[name] = to_array(arrays[name])
    return record


def request_digest(message: Message, contract_digest: str) -> str:
    """SHA-256 of what a request asks: contract, type, round and arrays."""
    kind, round_ = message.metadata.message_type, request_round(message)
    header = json.dumps([contract_digest, kind, round_]).encode()
    return hashlib.sha256(header + pack(request_arrays(message))).hexdigest()


def pack(arrays: AnyArrays) -> bytes:
    """Arrays as safetensors bytes, the same bytes for the same arrays."""
    return bytes(
        save_tensors({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    )


def unpack(payload: bytes) -> dict[str, NDArray[Any]]:
    """Arrays from safetensors bytes.

    Raises:
        WireError: If the bytes are anything else.
    """
    try:
        return dict(load_tensors(payload))
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise WireError("payload is not in safetensors format") from None


def unpack_adapter(payload: bytes) -> dict[str, NDArray[np.float32]]:
    """Arrays of an adapter from safetensors bytes.

    Raises:
        WireError: If the bytes are anything else, or an array is not float32.
    """
    arrays = {}
    for name, values in unpack(payload).items():
        if values.dtype != np.float32:
            raise WireError(f"array {name}: must be float32")
        arrays[name] = values.astype(np.float32, copy=False)
    return arrays


def unpack_histogram(payload: bytes) -> NDArray[np.float64]:
    """Noised counts (2, columns) from safetensors bytes.

    Raises:
        WireError: If the bytes are anything else, or a count is not finite.
    """
    arrays = unpack(payload)
    counts = arrays.get(HISTOGRAM)
    if set(arrays) != {HISTOGRAM} or counts is None or counts.dtype != np.float64:
        raise WireError(f"payload is not one float64 array named {HISTOGRAM!r}")
    if counts.ndim != 2 or len(counts) != 2 or not np.isfinite(counts).all():
        raise WireError(f"histogram of shape {counts.shape}: must be (2, bins), all finite")
    return counts.astype(np.float64, copy=False)


def adapter_reply(request: Message, payload: bytes, weight: float) -> Message:
    """The reply that carries a trained adapter, as uploaded, and its holder's public weight."""
    content = RecordDict(
        {ARRAYS: array_record(unpack(payload)), METRICS: MetricRecord({WEIGHT: weight})}
    )
    return Message(content, reply_to=request)


def histogram_reply(request: Message, payload: bytes, weight: float) -> Message:
    """The reply that carries a noised score histogram, flattened row by row."""
    counts = [float(x) for x in unpack_histogram(payload).ravel()]
    metrics = MetricRecord({WEIGHT: weight, HISTOGRAM: counts})
    return Message(RecordDict({METRICS: metrics}), reply_to=request)


def unpack_statistics(payload: bytes) -> dict[str, NDArray[np.float64]]:
    """Noised counts by field from safetensors bytes.

    Raises:
        WireError: If the bytes are anything else, or an array is not one row of float64.
    """
    arrays = {}
    for name, counts in unpack(payload).items():
        if counts.dtype != np.float64 or counts.ndim != 1:
            raise WireError(f"array {name}: must be one row of float64")
        arrays[name] = counts.astype(np.float64, copy=False)
    return arrays


def statistics_reply(request: Message, payload: bytes) -> Message:
    """The reply that carries noised counts by field."""
    metrics = MetricRecord()
    for name, row in unpack_statistics(payload).items():
        metrics[name] = [float(x) for x in row]
    return Message(RecordDict({METRICS: metrics}), reply_to=request)


def reply_statistics(reply: Message) -> dict[str, NDArray[np.float64]]:
    """The counts by field of such a reply."""
    rows = reply.content.metric_records[METRICS]
    return {name: np.asarray(row, np.float64) for name, row in rows.items()}


def refusal(request: Message) -> Message:
    """The reply of a holder that does not do what it is asked; it never says why."""
    return Message(Error(REFUSED, "refused"), reply_to=request)


def set_aside(request: Message, reason: str) -> Message:
    """What stands in a round for an answer that the coordinator does not use."""
    return Message(Error(SET_ASIDE, reason), reply_to=request)
