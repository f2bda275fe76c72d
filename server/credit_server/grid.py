"""GrpcGrid: Flower's Grid between the ServerApp's thread and the holders' streams.

The ServerApp pushes requests and waits; each holder's stream takes what is addressed to it, again
after every reconnection until it is answered. An answer counts once. All waits end: with the
answer, with `answer_seconds` of the contract, or once a holder has been gone for `grace_seconds`.

A holder has one request at a time: the next is handed out when it has answered the one before, in
time or not. One that is late would else find a queue of requests of which each is over by the time
it comes to it, and would pay for all of them. While it is late, rounds do without it.

A request's id is made of the run and of all that it asks for, so that it is the same when a
coordinator that died asks it anew (see `credit_server.checkpoint`), and never that of another one.
"""

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from flwr.app import Message

from credit_common import federation_pb2 as pb
from credit_common.contract import Contract
from credit_common.errors import CreditError, LinkError, WireError
from credit_common.groups import count_columns
from credit_common.privacy import mechanism_plan
from credit_common.protocol import from_reply, to_request
from credit_common.statistics import statistics_shapes
from credit_common.wire import (
    request_round,
    set_aside,
    set_message_id,
)
from credit_server.own_grid import Answers, OwnGrid
from credit_server.quarantine import Quarantine

log = logging.getLogger(__name__)

RUN_ID = 1
_END = "the end of the run"
"""In the place of a request's id."""
SHOWN = 300
"""Characters of what is wrong with an answer that are logged."""
Deliver = Callable[[pb.Task | None], None]
"""Hands a task to a holder's stream, from any thread; None tells it that another one took over."""


@dataclass(kw_only=True)
class _Seat:
    """What the grid knows of one holder.

    Attributes:
        deliver: Its open stream, or None while it is gone.
        since: When it came or went, on the monotonic clock.
        told: Whether it was handed the end of the run.
        asked: Ids of requests to it, in order; some may be over.
        busy: Id of the request that its stream was handed and that it has not answered; `_END`
            after the end of the run.
    """

    name: str
    size_class: str
    deliver: Deliver | None = None
    since: float = field(default_factory=time.monotonic)
    told: bool = False
    asked: list[str] = field(default_factory=list)
    busy: str = ""


@dataclass(kw_only=True)
class _Open:
    """A request that waits for its answer."""

    message: Message
    task: pb.Task


class GrpcGrid(OwnGrid):
    """The coordinator's side of all streams; safe to use from several threads.

    Attributes:
        quarantine: Checks answers, and counts those that are set aside.

    Args:
        contract: Sets waits, the minimum of holders and their weights.
        schema: Name -> shape of an adapter's arrays; an answer of another schema is set aside.
        enrolled: Names and node ids of all holders that may come, as they are now.
        run: What ids of requests begin with: of a run that goes on, that from before; None makes
            one up, since ids must stay apart where ledgers outlive runs.
    """

    def __init__(
        self,
        contract: Contract,
        schema: Mapping[str, tuple[int, ...]],
        enrolled: Callable[[], Mapping[str, int]],
        run: str | None = None,
    ) -> None:
        self._contract, self._enrolled = contract, enrolled
        self.quarantine = Quarantine(contract, schema, self._name)
        super().__init__(RUN_ID)
        self._changed = threading.Condition()
        self._seats: dict[int, _Seat] = {}
        self._open: dict[str, _Open] = {}
        self._replies: dict[str, Message] = {}
        self._answered: dict[int, str] = {}  # what each holder answered last
        self._end: pb.Task | None = None
        self._prefix = uuid.uuid4().hex if run is None else run

    # -- the ServerApp's side ------------------------------------------------------------------

    def wait_for_start(self, on_wait: Callable[[list[str], list[str]], None]) -> None:
        """Wait for the enrolled holders: for the minimum as long as it takes, then a grace time.

        Args:
            on_wait: Called with the names that are there and those that are missing, at first and
                when they change.
        """
        federation = self._contract.federation
        shown: tuple[list[str], list[str]] | None = None
        enough: float | None = None
        while True:
            with self._changed:
                here = sorted(seat.name for seat in self._seats.values() if seat.deliver)
                missing = sorted(set(self._enrolled()) - set(here))
                if shown == (here, missing):
                    now = time.monotonic()
                    if len(here) < federation.min_holders:
                        enough = None
                        left = 1.0
                    else:
                        enough = now if enough is None else enough
                        left = enough + federation.grace_seconds - now
                        if not missing or left <= 0:
                            return
                    self._changed.wait(min(left, 1.0))  # an enrolment changes who is missing
                    continue
            shown = (here, missing)
            on_wait(here, missing)  # outside the lock: it writes to disk and to a pipe

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the holders that are connected and not late with an answer, in order.

        Raises:
            LinkError: If fewer than the contract's minimum are there within the grace time.
        """
        federation = self._contract.federation
        with self._changed:
            enough = self._changed.wait_for(
                lambda: len(self._here()) >= federation.min_holders, federation.grace_seconds
            )
            if not enough:
                gone = sorted(seat.name for seat in self._seats.values() if not seat.deliver)
                late = sorted(seat.name for seat in self._seats.values() if self._late(seat))
                raise LinkError(
                    f"{len(self._here())} holders are connected, the contract needs "
                    f"{federation.min_holders}; gone for {federation.grace_seconds:g} s: "
                    f"{', '.join(gone) or 'none'}"
                    + (f"; still at a request that is over: {', '.join(late)}" if late else "")
                )
            return self._here()

    def wait_for_others(self, heard: Set[int]) -> bool:
        """Whether an enrolled holder that is not among `heard` is connected in the grace time."""
        if set(self._enrolled().values()) <= heard:
            return False
        with self._changed:
            return self._changed.wait_for(
                lambda: not set(self._here()) <= heard,
                self._contract.federation.grace_seconds,
            )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand requests to their holders' streams; returns the requests' ids.

        All are packed first: where one cannot be, none is handed out.
        """
        packed = {}
        for message in messages:
            asked = to_request(message)
            message_id = asked.message_id = self._id_of(message, asked)
            set_message_id(message, message_id)
            packed[message_id] = _Open(message=message, task=pb.Task(request=asked))
        with self._changed:
            self._open.update(packed)
            try:
                for message_id, request in packed.items():
                    seat = self._seats.get(request.message.metadata.dst_node_id)
                    if seat:
                        seat.asked.append(message_id)
                        self._hand_out(seat)
            except BaseException:  # whatever it is: nobody learns the ids, so nobody reads answers
                self._take_back(packed)
                raise
        return list(packed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there to the messages with these ids; each is pulled once."""
        with self._changed:
            return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push now; wait for the answers as they are iterated over, each handed on as it arrives.

        Iteration ends with the last answer, or when the waits have ended; later answers no longer
        count, nor do any once the iterator is closed or dropped. `timeout` can only shorten the
        contract's `answer_seconds`: Flower's strategies give one of their own.
        """
        ids = list(self.push_messages(messages))
        longest = self._contract.federation.answer_seconds
        deadline = time.monotonic() + (longest if timeout is None else min(timeout, longest))
        return Answers(self._as_they_arrive(ids, deadline), lambda: self._take_back(ids))

    def _as_they_arrive(self, ids: list[str], deadline: float) -> Iterator[Message]:
        waiting = set(ids)
        while waiting:
            with self._changed:
                arrived = [i for i in self._replies if i in waiting]
                while not arrived and (left := self._patience(waiting, deadline)):
                    self._changed.wait(left)
                    arrived = [i for i in self._replies if i in waiting]
            if not arrived:
                return
            waiting.difference_update(arrived)
            for message_id in arrived:
                with self._changed:
                    reply = self._replies.pop(message_id, None)
                if reply is not None:
                    yield reply
                    del reply  # the aggregation has it; nothing is kept here

    def _take_back(self, ids: Iterable[str]) -> None:
        """Forget what is unanswered or unread of these requests; a second time does nothing."""
        with self._changed:
            for message_id in ids:
                self._replies.pop(message_id, None)
                late = self._open.pop(message_id, None)
                if late is not None:
                    seat = self._seats.get(late.message.metadata.dst_node_id)
                    log.warning("no answer of %s in time", seat.name if seat else "a holder")

    def finish(self, finished: pb.Finished, *, again: bool = False) -> None:
        """Hand the end of the run to all holders, and wait for those who are there to take it.

        Args:
            finished: What they get.
            again: Whether the run went on from its very end, so that holders who do not know of it
                are on their way back: the grace time is for them too.
        """
        with self._changed:
            self._end = pb.Task(finished=finished)
            for seat in self._seats.values():
                self._hand_out(seat)
            grace = self._contract.federation.grace_seconds
            until = time.monotonic() + grace

            def settled() -> bool:
                long_gone = time.monotonic() - grace
                if again and not set(self._enrolled().values()) <= set(self._seats):
                    return False
                return all(
                    seat.told or (seat.deliver is None and seat.since <= long_gone)
                    for seat in self._seats.values()
                )

            while not settled() and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, 1.0))

    # -- the streams' side ---------------------------------------------------------------------

    def attach(self, name: str, node_id: int, size_class: str, deliver: Deliver) -> None:
        """A holder's stream is open: it gets all that is unanswered. An older stream is let go."""
        with self._changed:
            seat = self._seats.setdefault(node_id, _Seat(name=name, size_class=size_class))
            if seat.deliver:
                seat.deliver(None)
            seat.deliver, seat.since, seat.busy = deliver, time.monotonic(), ""
            seat.asked = [
                message_id
                for message_id, waiting in list(self._open.items())  # a dropped round may end now
                if waiting.message.metadata.dst_node_id == node_id
            ]
            self._hand_out(seat)
            self._changed.notify_all()

    def detach(self, node_id: int, deliver: Deliver) -> None:
        """A holder's stream is closed, unless a newer one has taken over."""
        with self._changed:
            seat = self._seats[node_id]
            if seat.deliver is deliver:
                seat.deliver, seat.since, seat.busy = None, time.monotonic(), ""
                self._changed.notify_all()

    def told(self, node_id: int) -> None:
        """A holder was handed the end of the run."""
        with self._changed:
            self._seats[node_id].told = True
            self._changed.notify_all()

    def expects(self, node_id: int, message_id: str) -> bool:
        """Whether a holder has an answer to give to this request, if only a late one."""
        with self._changed:
            waiting, seat = self._open.get(message_id), self._seats.get(node_id)
            if waiting is not None and waiting.message.metadata.dst_node_id == node_id:
                return True
            return seat is not None and self._late(seat) and seat.busy == message_id

    def answer(self, node_id: int, reply: pb.Reply) -> bool:
        """Take a holder's answer.

        Returns:
            Whether it counts: it is the first to a request that waits for this very holder. An
            answer that does not follow the schema is set aside, so that the round goes on.
        """
        with self._changed:
            seat = self._seats.get(node_id)
            waiting = self._open.get(reply.message_id)
            counts = waiting is not None and waiting.message.metadata.dst_node_id == node_id
            if not counts:
                again = self._answered.get(node_id) == reply.message_id
                reason = "foreign" if waiting else "duplicate" if again else "late"
                self.quarantine.note(node_id, reason)
            if seat is None:
                return False
            if waiting is not None and counts:
                self._replies[reply.message_id] = self._checked(waiting.message, reply, seat)
                del self._open[reply.message_id]
                self._answered[node_id] = reply.message_id
            if seat.busy == reply.message_id:
                seat.busy = ""
                self._hand_out(seat)
            self._changed.notify_all()
            return counts

    # -- inside --------------------------------------------------------------------------------

    def _name(self, node_id: int) -> str:
        with self._changed:
            seat = self._seats.get(node_id)
        return seat.name if seat else f"node {node_id}"

    def _here(self) -> list[int]:
        return sorted(n for n, seat in self._seats.items() if seat.deliver and not self._late(seat))

    def _late(self, seat: _Seat) -> bool:
        """Whether a holder is still at a request that is over."""
        return seat.busy not in ("", _END) and seat.busy not in self._open

    def _hand_out(self, seat: _Seat) -> None:
        """Give a holder that is there and has nothing to do its next request, or else the end."""
        if seat.deliver is None or seat.busy:
            return
        while seat.asked:
            waiting = self._open.get(seat.asked[0])
            if waiting is not None:
                seat.deliver(waiting.task)
                seat.busy = seat.asked.pop(0)
                return
            del seat.asked[0]  # it is over
        if self._end is not None:
            seat.deliver(self._end)
            seat.busy = _END

    def _id_of(self, message: Message, asked: pb.Request) -> str:
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        arrays = hashlib.sha256(asked.arrays).hexdigest()[:16]
        return f"{self._prefix}-{asked.round}-{kind}-{node}-{arrays}"

    def _patience(self, waiting: Iterable[str], deadline: float) -> float:
        """Seconds that the open requests with these ids are still worth waiting for."""
        now = time.monotonic()
        longest = 0.0
        for message_id in waiting:
            if message_id not in self._open:
                continue  # answered, and pulled by someone else
            seat = self._seats.get(self._open[message_id].message.metadata.dst_node_id)
            if seat is None:
                continue  # nobody of this id was ever here
            grace = seat.since + self._contract.federation.grace_seconds - now
            longest = max(longest, threading.TIMEOUT_MAX if seat.deliver else grace)
        return min(longest, max(deadline - now, 0.0))

    def _checked(self, request: Message, reply: pb.Reply, seat: _Seat) -> Message:
        try:
            shape = (2, count_columns(self._contract, request_round(request)))
            plan = mechanism_plan(self._contract, seat.size_class)
            if reply.WhichOneof("outcome") == "adapter":
                self.quarantine.adapter_arrays(reply.adapter)
            counted = statistics_shapes(self._contract)
            weight = plan.expected_batch_size
            return from_reply(request, reply, weight, shape, counted)
        except CreditError as error:  # may quote names that the holder chose
            said = "".join(c for c in str(error)[:SHOWN] if c.isprintable())
            log.warning("the answer of %s is not used: %s", seat.name, said)
            return set_aside(request, error.reason if isinstance(error, WireError) else "schema")
