"""The one door through which anything leaves a holder.

An answer is made in this order: look the request up (a repeated one gets the same bytes, never
fresh noise); check the budget; compute; charge the ledger and store the reply in one durable
transaction; only then hand the reply out. Whatever fails once data was read is charged too, and
refused for ever: that it failed may be due to one user. Nothing else in this package makes a
message.

What goes to the network are bytes, and `Exit` alone makes them: it lists each message in the
manifest, and lets arrays pass only if they are the very bytes that the ledger charged.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from credit_client.balance import Account
from credit_client.ledger import Ledger
from credit_client.manifest import GREETING, REFUSAL, Manifest
from credit_common import federation_pb2 as pb
from credit_common.contract import Contract
from credit_common.errors import CacheError, CreditError, PrivacyError, WireError
from credit_common.events import Event
from credit_common.groups import count_columns
from credit_common.privacy import NO_PRIVACY, MechanismPlan
from credit_common.statistics import Counts, check_statistics, statistics_shapes
from credit_common.upload import Encoded, check_upload
from credit_common.wire import (
    HISTOGRAM,
    adapter_reply,
    histogram_reply,
    pack,
    refusal,
    request_digest,
    request_round,
    statistics_reply,
)

log = logging.getLogger(__name__)

FAILED = b""
"""What the ledger keeps in the place of an answer that could not be computed."""


class Gate:
    """Charges, lists and builds every outbound message of one holder.

    Args:
        contract: The contract that the holder accepted.
        plan: The mechanism that trainer and ledger share.
        ledger: The holder's durable account.
        schema: Names and shapes of an adapter; nothing but an upload of it (see
            `credit_common.upload`), as the contract says, leaves as arrays.
        user_column: Column of the shard that users are known by; None for the contract's name.
        allow_no_privacy: Whether a contract without a budget is accepted at all.

    Raises:
        PrivacyError: If the contract has no budget and that is not allowed.
    """

    def __init__(
        self,
        contract: Contract,
        plan: MechanismPlan,
        ledger: Ledger,
        schema: dict[str, tuple[int, ...]],
        *,
        user_column: str | None = None,
        allow_no_privacy: bool = False,
    ) -> None:
        if not plan.private and not allow_no_privacy:
            raise PrivacyError(NO_PRIVACY)
        self._contract, self._plan, self._ledger = contract, plan, ledger
        self._schema = schema
        self._weight = plan.expected_batch_size  # in proportion to the public size class
        ledger.bind_split(
            contract.split.salt, contract.split.holdout, user_column or contract.record.user
        )

    def send_adapter(self, request: Message, train: Callable[[], Encoded]) -> Message:
        """Answer a training request with the upload that `train` returns."""

        def compute() -> bytes:
            upload = {name: _finite(array) for name, array in train().items()}
            check_upload(self._contract.training.upload, self._schema, upload)
            return pack(upload)

        event = self._plan.round_event()
        return self._answer(
            request,
            "train",
            event,
            compute,
            lambda sent: adapter_reply(request, sent, self._weight),
        )

    def send_statistics(self, request: Message, count: Callable[[], Counts]) -> Message:
        """Answer a statistics request with the noised counts that `count` returns.

        Training users are counted, so that they are charged.
        """

        def compute() -> bytes:
            counts = count()
            check_statistics(statistics_shapes(self._contract), counts)
            return pack(counts)

        event = self._plan.statistics_event()
        return self._answer(
            request, "train", event, compute, lambda sent: statistics_reply(request, sent)
        )

    def send_histogram(self, request: Message, count: Callable[[], NDArray[np.float64]]) -> Message:
        """Answer an evaluation request with the noised counts that `count` returns.

        What is charged goes by the round in the request, as what is counted does: the last one
        counts by groups too, however often a coordinator says that it is the last.
        """
        try:
            round_ = request_round(request)
        except WireError as error:
            log.warning("refused a request: %s", error)
            return refusal(request)
        groups = len(self._contract.groups_at(round_))
        shape = (2, count_columns(self._contract, round_))

        def compute() -> bytes:
            counts = count()
            if counts.dtype != np.float64 or counts.shape != shape:
                raise WireError(f"histogram is {counts.dtype} {counts.shape}, must be {shape}")
            return pack({HISTOGRAM: counts})

        event = self._plan.evaluation_event(groups)
        return self._answer(
            request,
            "holdout",
            event,
            compute,
            lambda sent: histogram_reply(request, sent, self._weight),
        )

    def _answer(
        self,
        request: Message,
        account: Account,
        event: Event | None,
        compute: Callable[[], bytes],
        build: Callable[[bytes], Message],
    ) -> Message:
        # The event goes by what is computed, not by the message's type: "train.default" is routed
        # to training too.
        plan = self._plan
        try:
            digest = request_digest(request, self._contract.digest)
            message_id = request.metadata.message_id
            payload = self._ledger.lookup(message_id, digest)
            if payload is None:
                self._ledger.check(account, event, budget_epsilon=plan.epsilon, delta=plan.delta)
                payload = self._computed(compute)
                self._ledger.charge(
                    account,
                    event,
                    contract_digest=self._contract.digest,
                    message_id=message_id,
                    request_digest=digest,
                    reply=payload,
                    budget_epsilon=plan.epsilon,
                    delta=plan.delta,
                )
            if payload == FAILED:
                log.warning("refused a request: computing its answer failed, which was charged")
                return refusal(request)
            log.info("released %s, %d bytes, sha256 %s", account, len(payload), _short(payload))
            return build(payload)
        except CreditError as error:  # own errors name no data; the server learns one code
            log.warning("refused a request: %s", error)
            return refusal(request)
        except Exception as error:  # whatever broke may quote data: its type is all that is kept
            log.warning("refused a request: %s", type(error).__name__)
            return refusal(request)

    @staticmethod
    def _computed(compute: Callable[[], bytes]) -> bytes:
        try:
            return compute()
        except CacheError as error:  # which rows were read depends on who was sampled
            log.error("computing an answer failed: %s", error)
            return FAILED
        except CreditError:
            raise  # the others are about the request or a shape, never about what the data says
        except Exception as error:  # may quote data, and may depend on it: its type is all we keep
            log.warning("computing an answer failed: %s", type(error).__name__)
            return FAILED


class Exit:
    """Makes the bytes of what a holder sends.

    Args:
        manifest: Where each message is listed before it leaves.
        ledger: What answers must have been charged to; None lets greetings pass alone.
    """

    def __init__(self, manifest: Manifest, ledger: Ledger | None = None) -> None:
        self._manifest, self._ledger = manifest, ledger

    def greeting(self, hello: pb.Hello) -> bytes:
        """The opening of a call."""
        content = hello.SerializeToString(deterministic=True)
        self._manifest.add(GREETING, len(content))
        return content

    def answer(self, reply: pb.Reply, round_: int) -> bytes:
        """The answer to a request of a round.

        Raises:
            PrivacyError: If it carries anything but what the ledger charged for this request.
        """
        reply.DiscardUnknownFields()
        content = reply.SerializeToString(deterministic=True)
        facts = {"message_id": reply.message_id, "round": round_}
        kind = reply.WhichOneof("outcome")
        if kind == "refused":
            self._manifest.add(REFUSAL, len(content), **facts)
            return content
        if kind is None or self._ledger is None:
            raise PrivacyError(f"an answer to {reply.message_id!r} has no charge")
        payload: bytes = getattr(reply, kind)
        entry = self._ledger.confirm(reply.message_id, payload)
        self._manifest.add(kind, len(content), payload_sha256=entry.reply_digest, **facts)
        return content


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    """Released numbers as finite ones. A refusal instead would tell of a release uncharged."""
    if array.dtype != np.float32:
        return array
    largest = float(np.finfo(np.float32).max)
    finite: NDArray[Any] = np.nan_to_num(array, nan=0.0, posinf=largest, neginf=-largest)
    return finite


def _short(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()[:16]
