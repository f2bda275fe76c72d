"""What an answer must be to count, and the record of what was set aside.

Every check between a holder's bytes and a Flower strategy is here. The grid has what can be known
of an answer alone (`adapter_arrays`: size before anything is allocated, names, shapes, types,
finite numbers; who was asked is in its own list of open requests), the strategy what needs the
round's adapter (`admit`: the change and its norm). An answer that fails is left out, the round goes
on with the others, and is told with it by holder and reason, never by content.

    refused      the holder's own refusal; its log says why
    size         more bytes than the schema has
    schema       other arrays, shapes or types than were asked for, or no weight of the contract
    not-finite   numbers that are not finite, or beyond what can be summed
    norm         a change larger than an honest holder's can be (see `plausible`)
    no-noise     a change smaller than an honest holder's noise
    replayed     the bytes of one of this holder's last answers, where noise makes each one new
    duplicate    a second answer to one request
    late         an answer to a request that is not open: of an earlier round, or never made
    foreign      an answer to what another holder was asked

The right contract's digest is not said in an answer: a holder that accepted another one is given no
stream (`service`), so it never learns an id that it could answer.
"""

import hashlib
import logging
import math
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import WireError
from credit_common.privacy import mechanism_plan
from credit_common.upload import blank_upload, check_upload, decode
from credit_common.wire import (
    ARRAYS,
    HISTOGRAM,
    METRICS,
    SET_ASIDE,
    WEIGHT,
    pack,
    unpack,
    uploaded,
)
from credit_server.plausible import Bound, Shapes, bounds

log = logging.getLogger(__name__)

Adapter = dict[str, NDArray[np.float32]]
SetAside = Mapping[str, Mapping[str, int]]
"""Holder's name -> reason -> how often."""

REASONS = (
    "refused",
    "size",
    "schema",
    "not-finite",
    "norm",
    "no-noise",
    "replayed",
    "duplicate",
    "late",
    "foreign",
)
HEADER = 1024
"""Bytes that another writer's header may have more than ours."""
REMEMBERED = 64
"""Answers of each holder whose digests are kept."""


def _numbered(node_id: int) -> str:
    return f"node {node_id}"


class Quarantine:
    """Checks answers and counts those that are set aside; safe to use from several threads.

    Args:
        contract: What answers follow.
        shapes: Name -> shape of an adapter's arrays. Without it a strategy's answers are checked
            for their form alone: neither change, nor weight, nor whether they came before.
        name: Gives a node's name, under which it is told.
    """

    def __init__(
        self,
        contract: Contract,
        shapes: Shapes | None = None,
        name: Callable[[int], str] = _numbered,
    ) -> None:
        self._contract, self.name = contract, name
        self._shapes = shapes or {}
        self._most = len(pack(blank_upload(contract.training.upload, self._shapes))) + HEADER
        self._bounds: dict[float, dict[str, Bound]] = {}
        for size_class, _ in contract.privacy.size_classes if shapes else ():
            plan = mechanism_plan(contract, size_class)
            self._bounds[plan.expected_batch_size] = bounds(contract, plan, self._shapes)
        self._lock = threading.Lock()
        self._counts: dict[int, Counter[str]] = defaultdict(Counter)
        self._sent: dict[int, deque[tuple[bytes, str]]] = defaultdict(
            lambda: deque(maxlen=REMEMBERED)
        )

    # -- the record ----------------------------------------------------------------------------

    def note(self, node_id: int, reason: str) -> None:
        """Count an answer that is set aside; a reason that is not in the list is a refusal."""
        with self._lock:
            self._counts[node_id][reason if reason in REASONS else "refused"] += 1

    def drain(self) -> SetAside:
        """What was set aside since the last call, by name in order."""
        with self._lock:
            found, self._counts = self._counts, defaultdict(Counter)
        # Outside the lock: who knows the names may have one of its own, and count under it.
        named = {self.name(node): dict(sorted(why.items())) for node, why in found.items()}
        return dict(sorted(named.items()))

    # -- what a grid checks --------------------------------------------------------------------

    def adapter_arrays(self, payload: bytes) -> None:
        """Refuse bytes that are no upload of this contract.

        Raises:
            WireError: With its reason: size, schema or not-finite.
        """
        if len(payload) > self._most or int.from_bytes(payload[:8], "little") > self._most:
            raise WireError(
                f"adapter of {len(payload)} bytes, or its header: must be at most {self._most}",
                reason="size",
            )
        check_upload(self._contract.training.upload, self._shapes, unpack(payload))

    # -- what a strategy checks ----------------------------------------------------------------

    def admit(self, base: Adapter, reply: Message) -> tuple[Adapter, float]:
        """The adapter that a reply stands for, and its holder's public weight.

        Args:
            base: The adapter of the request, without edges.
            reply: A holder's, without an error.

        Raises:
            WireError: With its reason, if it has none that an honest holder could have sent.
        """
        # Flower's views (`content.array_records`) are in a reference cycle with the content: a
        # reply that was seen through one stays in memory until the garbage collector comes by.
        record = reply.content.get(ARRAYS)
        if not isinstance(record, ArrayRecord):
            raise WireError(f"it carries no arrays named {ARRAYS!r}")
        arrays = uploaded(record)
        adapter = decode(self._contract.training.upload, arrays, base)
        weight = _metrics_of(reply).get(WEIGHT)
        if not isinstance(weight, int | float):
            raise WireError("it carries no weight")
        if self._shapes and weight not in self._bounds:
            raise WireError("its weight is not that of a size class")
        self._check_change(base, adapter, weight)
        if self._shapes and self._contract.privacy.private:
            self._check_new(reply, arrays)
        return adapter, float(weight)

    def shortened(self, base: Adapter, adapter: Adapter, weight: float) -> dict[str, float]:
        """Array -> factor that brings its group's change within the usual (see `plausible`)."""
        factors = dict.fromkeys(base, 1.0)
        for group, bound in self._bounds.get(weight, {}).items():
            change, before = _norms(group, base, adapter)
            usual = bound.usual + bound.drift * before
            for name in factors:
                if name.split(".")[0] == group and change > usual:
                    factors[name] = usual / change
        return factors

    def _check_change(self, base: Adapter, adapter: Adapter, weight: float) -> None:
        for group, bound in self._bounds.get(weight, {}).items():
            change, before = _norms(group, base, adapter)
            if not bound.holds(change, before):
                # The norm is told neither here nor anywhere: it is what a holder sent.
                less = change < bound.least
                raise WireError(
                    f"its change of {group} has less noise than the contract's, a norm of at least "
                    f"{bound.least:.4g}"
                    if less
                    else f"its change of {group} is larger than an honest one can be, a norm of "
                    f"{bound.most + bound.drift * before:.4g}",
                    reason="no-noise" if less else "norm",
                )

    def _check_new(self, reply: Message, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Refuse the bytes of an answer to another request; a request may be asked again."""
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        node_id, asked = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
        with self._lock:
            sent = self._sent[node_id]
            before = next((id_ for own, id_ in sent if own == digest.digest()), None)
            if before is None:
                sent.append((digest.digest(), asked))
            elif before != asked:
                raise WireError("it has the bytes of an earlier answer", reason="replayed")


def reason_of(reply: Message) -> str:
    """Why a reply with an error is none: what the grid says of it, or the holder's refusal."""
    return (reply.error.reason or "refused") if reply.error.code == SET_ASIDE else "refused"


def histogram_of(reply: Message, size: int) -> NDArray[np.float64]:
    """The counts (size,) of a reply; WireError where it has none."""
    counts = _metrics_of(reply).get(HISTOGRAM)
    if not isinstance(counts, list) or len(counts) != size:
        raise WireError("it carries no histogram of the contract's bins")
    return np.asarray(counts, np.float64)


def _metrics_of(reply: Message) -> MetricRecord:
    record = reply.content.get(METRICS)
    return record if isinstance(record, MetricRecord) else MetricRecord()


def _norms(group: str, base: Adapter, adapter: Adapter) -> tuple[float, float]:
    """L2 norms of a group's change and of what it was before."""
    change = before = 0.0
    for name, start in base.items():
        if name.split(".")[0] == group:
            exact = start.astype(np.float64)
            before += float(np.square(exact).sum())
            change += float(np.square(adapter[name].astype(np.float64) - exact).sum())
    return math.sqrt(change), math.sqrt(before)
