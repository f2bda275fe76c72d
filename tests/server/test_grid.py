import dataclasses
import gc
import logging
import sys
import threading
import time
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_common import federation_pb2 as pb
from credit_common import wire
from credit_common.errors import LinkError, WireError
from credit_common.statistics import statistics_shapes
from credit_server.grid import GrpcGrid

SCHEMA = {"w": (3,), "head.bias": (1,)}
GRACE = 0.2
SOON = 15.0  # seconds that nothing here takes unless it hangs, on a busy machine too


@pytest.fixture
def with_waits(contract):
    """The contract with other waits: 0.2 s for who is gone, unless said otherwise."""

    def make(**federation):
        changed = {"grace_seconds": GRACE, **federation}
        return dataclasses.replace(
            contract, federation=dataclasses.replace(contract.federation, **changed)
        )

    return make


@pytest.fixture
def make_grid(with_waits):
    def make(enrolled=None, **federation):
        names = {"a": 2, "b": 3, "c": 4} if enrolled is None else enrolled
        return GrpcGrid(with_waits(**federation), SCHEMA, lambda: names)

    return make


@pytest.fixture
def grid(make_grid):
    return make_grid()


def background(function, *arguments, **named):
    """Call a function in another thread; the future gives its result and the seconds it took."""
    future = Future()

    def run():
        start = time.monotonic()
        try:
            result = function(*arguments, **named)
        except BaseException as error:  # for who asks the future
            future.set_exception(error)
        else:
            future.set_result((result, time.monotonic() - start))

    threading.Thread(target=run, daemon=True).start()  # one that hangs fails its own test alone
    return future


def collected(grid, messages, **named):
    """All replies of a round, once it is over."""
    return list(grid.send_and_receive(messages, **named))


class Clock:
    """The monotonic clock, some seconds ahead."""

    ahead = 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("credit_server.grid.time", made)
    return made


def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "this never happens"
        time.sleep(0.005)


class Holder:
    """A holder's stream as a list of what was delivered to it."""

    def __init__(self, grid, name="a", node_id=2, size_class="small"):
        self.grid, self.name, self.node_id, self.size_class = grid, name, node_id, size_class
        self.attach()

    def attach(self):
        self.tasks = []
        self.deliver = self.tasks.append
        self.grid.attach(self.name, self.node_id, self.size_class, self.deliver)

    def detach(self):
        self.grid.detach(self.node_id, self.deliver)

    def ids(self):
        return [t.request.message_id for t in self.tasks if t and t.HasField("request")]

    def answer(self, message_id=None, **outcome):
        reply = pb.Reply(message_id=message_id or self.ids()[-1], **(outcome or good()))
        return self.grid.answer(self.node_id, reply)


def arrays(value=1.0):
    return {name: np.full(shape, value, np.float32) for name, shape in SCHEMA.items()}


def good(value=1.0):
    return {"adapter": wire.pack(arrays(value))}


def counts(contract, value=1.5):
    return np.full((2, contract.evaluation.bins), value)


def request(node_id=2, kind="train", round_=1):
    content = RecordDict(
        {
            wire.ARRAYS: wire.array_record(arrays(0.0)),
            wire.CONFIG: ConfigRecord({wire.ROUND: round_}),
        }
    )
    return Message(content, dst_node_id=node_id, message_type=kind)


def told(reply):
    """What a reply says: the value of its arrays, its metrics, or "refused"."""
    if reply.has_error():
        assert (reply.error.code, reply.error.reason) == (wire.REFUSED, "refused")
        return "refused"
    return reply.content


# -- requests and answers ----------------------------------------------------------------------


def test_a_request_goes_to_its_holder_alone_and_its_answer_comes_back(grid):
    a, b = Holder(grid), Holder(grid, "b", 3)
    round_ = background(collected, grid, [request(3, round_=7)])
    until(b.ids)
    assert a.tasks == []
    (task,) = b.tasks
    assert (task.request.kind, task.request.round) == (pb.TRAIN, 7)
    assert b.answer(**good(4.5))
    (reply,), _ = round_.result(SOON)
    assert reply.metadata.reply_to_message_id == task.request.message_id
    assert reply.metadata.src_node_id == 3
    assert (told(reply)[wire.ARRAYS]["w"].numpy() == 4.5).all()


def test_a_round_goes_on_with_the_last_answer_and_waits_for_no_clock(make_grid):
    grid = make_grid(grace_seconds=60.0)
    holders = [Holder(grid, name, node) for name, node in (("a", 2), ("b", 3))]
    round_ = background(collected, grid, [request(2), request(3)], timeout=3600)
    for holder in holders:
        until(holder.ids)
        assert not round_.done()
        holder.answer()
    replies, seconds = round_.result(SOON)
    assert sorted(reply.metadata.src_node_id for reply in replies) == [2, 3]
    assert seconds < SOON


def test_what_is_unanswered_is_handed_again_at_every_return_and_nothing_else(grid):
    holder = Holder(grid)
    first, second = grid.push_messages([request(round_=1), request(round_=2)])
    other = Holder(grid, "b", 3)
    assert holder.ids() == [first]
    holder.detach()
    holder.attach()
    assert holder.ids() == [first]
    assert holder.answer(first)
    assert holder.ids() == [first, second]
    holder.attach()
    assert holder.ids() == [second]
    assert holder.answer(second)
    holder.attach()
    assert holder.tasks == other.tasks == []


def late_in(grid, holder, round_=1, timeout=0.05):
    """A round that ends without the holder, who is at work on its request."""
    assert collected(grid, [request(holder.node_id, round_=round_)], timeout=timeout) == []
    return holder.ids()[-1]


def test_a_late_holder_is_handed_nothing_that_is_over_and_is_welcome_again(make_grid):
    grid = make_grid(min_holders=1)
    slow, _ = Holder(grid), Holder(grid, "b", 3)
    first = late_in(grid, slow)
    assert list(grid.get_node_ids()) == [3]  # rounds do without it
    grid.push_messages([request(2, round_=2)])
    assert late_in(grid, slow, round_=3) == first  # one request at a time
    assert len(slow.ids()) == 1
    assert not slow.answer(first)  # too late to count, and now it has nothing to do
    second = slow.ids()[-1]
    assert "-2-train-2-" in second
    assert list(grid.get_node_ids()) == [2, 3]
    assert slow.answer(second)
    assert len(slow.ids()) == 2  # the third is over: it is never asked, nor pays, for that
    (fourth,) = grid.push_messages([request(2, round_=4)])
    assert slow.ids()[-1] == fourth


def test_a_late_holder_that_comes_back_over_another_connection_is_welcome_at_once(make_grid):
    grid = make_grid(min_holders=1)
    slow = Holder(grid)
    late_in(grid, slow)
    with pytest.raises(LinkError, match=r"0 holders .* none; still at a request that is over: a$"):
        grid.get_node_ids()
    slow.detach()
    slow.attach()
    assert (list(grid.get_node_ids()), slow.tasks) == ([2], [])


def test_one_that_hangs_costs_one_round_its_time_and_the_next_ones_nothing(make_grid):
    grid = make_grid(min_holders=1, answer_seconds=1.0)
    hangs, quick = Holder(grid), Holder(grid, "b", 3)
    took = []
    for round_ in (1, 2, 3):
        asked = [request(node, round_=round_) for node in grid.get_node_ids()]
        going = background(collected, grid, asked)
        until(lambda round_=round_: len(quick.ids()) == round_)
        quick.answer()
        took.append(going.result(SOON)[1])
    assert 0.9 <= took[0] < SOON
    assert max(took[1:]) < 0.9
    assert len(hangs.ids()) == 1


def test_the_end_is_handed_to_a_late_holder_when_it_is_done(make_grid):
    grid = make_grid(min_holders=1, grace_seconds=30.0)
    slow = Holder(grid)
    first = late_in(grid, slow)
    end = background(grid.finish, END)
    time.sleep(0.05)
    assert slow.tasks[-1].HasField("request")
    assert not slow.answer(first)
    assert slow.tasks[-1] == pb.Task(finished=END)
    grid.told(2)
    assert end.result(SOON)[1] < 30


def test_a_request_waits_for_a_holder_that_comes_back_within_the_grace_time(make_grid):
    grid = make_grid(grace_seconds=10.0)
    holder = Holder(grid)
    holder.detach()
    round_ = background(collected, grid, [request()])
    time.sleep(0.1)
    assert not round_.done()
    holder.attach()
    until(holder.ids)
    assert holder.answer()
    (reply,), seconds = round_.result(SOON)
    assert told(reply) != "refused"
    assert seconds < 10.0


def test_an_answer_counts_once_and_the_first_one_stays(grid):
    holder = Holder(grid)
    ids = grid.push_messages([request()])
    assert holder.answer(**good(1.0))
    assert not holder.answer(**good(2.0))
    assert not holder.answer(refused=pb.Refused())
    (reply,) = grid.pull_messages(ids)
    assert (told(reply)[wire.ARRAYS]["w"].numpy() == 1.0).all()
    assert not holder.answer(**good(2.0))
    assert grid.pull_messages(ids) == []


def test_replies_are_pulled_once_and_only_those_that_are_there(grid):
    a, b = Holder(grid), Holder(grid, "b", 3)
    ids = list(grid.push_messages([request(2), request(3)]))
    assert grid.pull_messages(ids) == []
    a.answer()
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids)] == [2]
    b.answer()
    assert [reply.metadata.src_node_id for reply in grid.pull_messages([*ids, *ids])] == [3]
    assert grid.pull_messages(ids) == []


@pytest.mark.parametrize("message_id", ["", "nothing", "x" * 10_000])
def test_an_answer_to_no_request_does_not_count(grid, message_id):
    holder = Holder(grid)
    grid.push_messages([request()])
    assert not grid.answer(2, pb.Reply(message_id=message_id, **good()))
    assert holder.answer()


def test_an_answer_counts_from_its_own_holder_alone(grid):
    a, b = Holder(grid), Holder(grid, "b", 3)
    ids = grid.push_messages([request(2)])
    (message_id,) = a.ids()
    assert not b.answer(message_id, **good(66.0))
    assert not grid.answer(4, pb.Reply(message_id=message_id, **good(66.0)))  # never attached
    assert grid.pull_messages(ids) == []
    assert a.answer(message_id, **good(1.0))
    (reply,) = grid.pull_messages(ids)
    assert (told(reply)[wire.ARRAYS]["w"].numpy() == 1.0).all()


def test_an_answer_after_its_round_does_not_count(grid):
    a, b = Holder(grid), Holder(grid, "b", 3)
    round_ = background(collected, grid, [request(2), request(3)], timeout=0.3)
    until(lambda: a.ids() and b.ids())
    a.answer()
    replies, _ = round_.result(SOON)
    assert [reply.metadata.src_node_id for reply in replies] == [2]
    (late,) = b.ids()
    assert not b.answer(late)
    assert grid.pull_messages([late]) == []
    b.attach()
    assert b.tasks == []  # nor is it asked again


def test_ids_of_two_coordinators_stay_apart(make_grid):
    # A holder's ledger would answer a known id with the bytes that it sent then.
    ids = [i for grid in (make_grid(), make_grid()) for i in grid.push_messages([request()])]
    assert len(set(ids)) == 2
    assert all(1 <= len(i) <= 200 for i in ids)


def test_a_run_that_goes_on_asks_the_same_by_the_same_id_and_anything_else_by_another(with_waits):
    def ids(*asked, run="run"):
        grid = GrpcGrid(with_waits(), SCHEMA, dict, run)
        return list(grid.push_messages(asked))

    def other(**arrays_):
        message = request()
        message.content[wire.ARRAYS] = wire.array_record({**arrays(0.0), **arrays_})
        return message

    (before,) = ids(request())
    assert ids(request()) == [before]
    one_bit = np.array([0, 0, np.nextafter(np.float32(0), np.float32(1))], np.float32)
    others = [
        *ids(request(3), request(round_=2), request(kind="evaluate"), other(w=one_bit)),
        *ids(request(), run="another"),
    ]
    assert len({before, *others}) == 6


# -- answers that do not follow the schema -----------------------------------------------------

NAN = {**arrays(), "w": np.array([1, np.nan, 1], np.float32)}
BAD_ADAPTERS = {
    "nothing": {},
    "a histogram": {"histogram": wire.pack({wire.HISTOGRAM: np.ones((2, 50))})},
    "no bytes": {"adapter": b""},
    "text": {"adapter": b"not tensors at all"},
    "cut": {"adapter": wire.pack(arrays())[:-1]},
    "no arrays": {"adapter": wire.pack({})},
    "one array less": {"adapter": wire.pack({"w": arrays()["w"]})},
    "one array more": {"adapter": wire.pack({**arrays(), "weight": np.ones(1, np.float32)})},
    "another name": {"adapter": wire.pack({"v": arrays()["w"], "head.bias": np.ones(1)})},
    "another shape": {"adapter": wire.pack({**arrays(), "w": np.ones(4, np.float32)})},
    "another rank": {"adapter": wire.pack({**arrays(), "w": np.ones((1, 3), np.float32)})},
    "float64": {"adapter": wire.pack({**arrays(), "w": np.ones(3)})},
    "float16": {"adapter": wire.pack({n: a.astype(np.float16) for n, a in arrays().items()})},
    "nan": {"adapter": wire.pack(NAN)},
    "infinity": {"adapter": wire.pack({**arrays(), "w": np.full(3, -np.inf, np.float32)})},
}


@pytest.mark.parametrize("what", BAD_ADAPTERS)
def test_a_bad_adapter_is_a_refusal_and_the_round_goes_on(make_grid, what):
    grid = make_grid(grace_seconds=60.0)
    bad, fine = Holder(grid), Holder(grid, "b", 3)
    round_ = background(collected, grid, [request(2), request(3)])
    until(lambda: bad.ids() and fine.ids())
    reply = pb.Reply(message_id=bad.ids()[0], **BAD_ADAPTERS[what])
    assert grid.answer(2, reply)
    assert not bad.answer()  # it has had its turn
    fine.answer()
    replies, _ = round_.result(SOON)
    by_node = {reply.metadata.src_node_id: told(reply) for reply in replies}
    assert by_node[2] == "refused" != by_node[3]


EIGHT = {"w": np.array([127, -127, 0], np.int8), "head.bias": np.ones(1, np.int8)}
SCALES = {f"{name}.scale": np.full(shape, 0.5, np.float32) for name, shape in SCHEMA.items()}
HALF = {name: np.full(shape, 0x3F80, np.uint16) for name, shape in SCHEMA.items()}
UPLOADS = {
    "int8": ("int8", {**EIGHT, **SCALES}, True),
    "int8, a negative scale": (
        "int8",
        {**EIGHT, **SCALES, "w.scale": np.array([1, 1, -1], np.float32)},
        False,
    ),
    "int8, a huge scale": (
        "int8",
        {**EIGHT, **SCALES, "w.scale": np.full(3, 3e38, np.float32)},
        False,
    ),
    "int8, a scale of nan": (
        "int8",
        {**EIGHT, **SCALES, "w.scale": np.full(3, np.nan, np.float32)},
        False,
    ),
    "int8, no scales": ("int8", EIGHT, False),
    "int8, float32 instead": ("int8", arrays(), False),
    "int8, bfloat16 instead": ("int8", HALF, False),
    "int8, float64 instead": ("int8", {**EIGHT, **SCALES, "w": np.ones(3)}, False),
    "int8, -128": ("int8", {**EIGHT, **SCALES, "w": np.full(3, -128, np.int8)}, False),
    "bfloat16, float16 instead": ("bfloat16", {**HALF, "w": np.ones(3, np.float16)}, False),
    "float32, bool instead": ("float32", {**arrays(), "w": np.ones(3, np.bool_)}, False),
    "int8, another shape": ("int8", {**EIGHT, **SCALES, "w": np.ones(4, np.int8)}, False),
    "bfloat16": ("bfloat16", HALF, True),
    "bfloat16, nan": ("bfloat16", {**HALF, "w": np.full(3, 0x7FFF, np.uint16)}, False),
    "bfloat16, infinity": ("bfloat16", {**HALF, "w": np.full(3, 0x7F80, np.uint16)}, False),
    "bfloat16, int8 instead": ("bfloat16", {**EIGHT, **SCALES}, False),
    "float32, int8 instead": ("float32", {**EIGHT, **SCALES}, False),
}


@pytest.mark.parametrize("what", UPLOADS)
def test_an_upload_counts_in_the_contracts_encoding_alone(with_waits, what):
    kind, sent, fine = UPLOADS[what]
    contract = with_waits()
    training = dataclasses.replace(contract.training, upload=kind)
    contract = dataclasses.replace(contract, training=training)
    grid = GrpcGrid(contract, SCHEMA, lambda: {"a": 2})
    holder = Holder(grid)
    ids = grid.push_messages([request()])
    assert holder.answer(adapter=wire.pack(sent))
    (reply,) = grid.pull_messages(ids)
    assert (told(reply) == "refused") is not fine


def test_a_malformed_upload_does_not_end_the_round_of_the_others(grid):
    first, second = Holder(grid), Holder(grid, "b", 3)
    replies = grid.send_and_receive([request(2), request(3)], timeout=SOON)
    first.answer(adapter=wire.pack({**arrays(), "w": np.ones(3)}))
    second.answer()
    assert [reply.has_error() for reply in replies] == [True, False]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        (wire.HISTOGRAM, np.ones((2, 49))),
        (wire.HISTOGRAM, np.ones((1, 100))),
        (wire.HISTOGRAM, np.ones((50, 2))),
        (wire.HISTOGRAM, np.ones(100)),
        (wire.HISTOGRAM, np.ones((2, 50), np.float32)),
        (wire.HISTOGRAM, np.full((2, 50), np.nan)),
        (wire.HISTOGRAM, np.full((2, 50), np.inf)),
        ("counts", np.ones((2, 50))),
    ],
)
def test_a_bad_histogram_is_a_refusal(grid, name, table):
    holder = Holder(grid)
    ids = grid.push_messages([request(kind="evaluate")])
    assert holder.answer(histogram=wire.pack({name: table}))
    (reply,) = grid.pull_messages(ids)
    assert told(reply) == "refused"


def test_statistics_of_another_form_are_a_refusal(federated):
    grid = GrpcGrid(federated, SCHEMA, lambda: {"a": 2})
    holder = Holder(grid)
    right = {name: np.ones(shape) for name, shape in statistics_shapes(federated).items()}
    for sent, fine in (
        (right, True),
        ({**right, "statistics.age": np.ones(40)}, False),
        ({**right, "statistics.users": np.ones(1)}, False),
        ({}, False),
    ):
        (message_id,) = grid.push_messages([request(kind="query")])
        assert holder.answer(statistics=wire.pack(sent))
        (reply,) = grid.pull_messages([message_id])
        assert (told(reply) == "refused") is not fine


def test_an_adapter_is_no_answer_to_an_evaluation(grid):
    holder = Holder(grid)
    ids = grid.push_messages([request(kind="evaluate")])
    assert holder.answer(**good())
    assert told(next(iter(grid.pull_messages(ids)))) == "refused"


def test_a_size_class_that_the_contract_does_not_have_is_a_refusal(grid):
    holder = Holder(grid, size_class="gigantic")
    ids = grid.push_messages([request()])
    assert holder.answer()
    assert told(next(iter(grid.pull_messages(ids)))) == "refused"


def test_names_that_a_holder_chose_cannot_write_lines_into_the_log(grid, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("credit_server"), "propagate", True)  # as it is at first
    holder = Holder(grid)
    for dtype in (np.float32, np.float64):
        grid.push_messages([request()])
        name = "x\n2026-01-01T00:00:00Z holder b is gone\r\x1b[2J" + "y" * 5000
        with caplog.at_level(logging.WARNING, "credit_server"):
            holder.answer(adapter=wire.pack({name: np.ones(1, dtype)}))
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert record.getMessage().startswith("the answer of a is not used: ")
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 500


# -- weights -----------------------------------------------------------------------------------


def field(number, payload):
    """A protobuf field that the schema does not have, as bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


@pytest.mark.parametrize(("size_class", "weight"), [("small", 30.0), ("large", 300.0)])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_weight_is_that_of_the_enrolled_size_class(grid, with_waits, size_class, weight, kind):
    holder = Holder(grid, size_class=size_class)
    ids = grid.push_messages([request(kind=kind)])
    payload = wire.pack({wire.HISTOGRAM: counts(with_waits())})
    outcome = good() if kind == "train" else {"histogram": payload}
    reply = pb.Reply(message_id=holder.ids()[0], **outcome)
    more = field(14, b"weight=1e9") + field(15, b"size_class=large")
    reply = pb.Reply.FromString(reply.SerializeToString() + more)
    assert grid.answer(2, reply)
    (got,) = grid.pull_messages(ids)
    assert told(got)[wire.METRICS][wire.WEIGHT] == weight


def test_a_size_class_is_that_of_the_first_stream(grid):
    holder = Holder(grid)
    holder.size_class = "large"
    holder.attach()
    ids = grid.push_messages([request()])
    holder.answer()
    assert told(next(iter(grid.pull_messages(ids))))[wire.METRICS][wire.WEIGHT] == 30.0


# -- answers are handed on as they arrive ------------------------------------------------------


def test_an_answer_is_handed_on_while_others_are_awaited(grid):
    first, second = Holder(grid), Holder(grid, "b", 3)
    replies = iter(grid.send_and_receive([request(2), request(3)], timeout=SOON))
    second.answer()
    assert next(replies).metadata.src_node_id == 3
    first.answer()
    assert next(replies).metadata.src_node_id == 2
    assert list(replies) == []


def test_nothing_is_kept_of_an_answer_that_was_handed_on(grid):
    holders = [Holder(grid, str(node), node) for node in range(2, 12)]
    replies = grid.send_and_receive([request(h.node_id) for h in holders], timeout=SOON)
    seen = []
    for holder in holders:
        holder.answer()
        seen.append(weakref.ref(next(replies).content))
        gc.collect()
        assert sum(reply() is not None for reply in seen) <= 1


def test_a_round_that_is_given_up_takes_its_requests_back(grid):
    first, second, third = (
        Holder(grid, name, node) for name, node in (("a", 2), ("b", 3), ("c", 4))
    )
    replies = grid.send_and_receive([request(2), request(3), request(4)], timeout=SOON)
    first.answer()
    third.answer()
    next(replies)
    replies.close()
    assert not second.answer()
    second.attach()
    assert second.tasks == []
    assert grid.pull_messages(third.ids()) == []


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_round_that_nobody_begins_to_read_takes_its_requests_back(grid, how):
    holder, waiting = Holder(grid), Holder(grid, "b", 3)
    replies = grid.send_and_receive([request(2), request(3)], timeout=SOON)
    assert holder.answer()
    if how == "closed":
        replies.close()
        assert list(replies) == []
    else:
        del replies
    assert grid.pull_messages(holder.ids()) == []
    assert not waiting.answer()
    waiting.attach()
    assert waiting.tasks == []


def test_a_request_that_cannot_be_packed_keeps_all_of_its_round_back(grid):
    holder = Holder(grid)
    with pytest.raises(WireError, match="message type"):
        grid.send_and_receive([request(2), request(3, kind="train.more")])
    assert holder.tasks == []
    holder.attach()
    assert holder.tasks == []


def test_requests_are_taken_back_where_a_stream_fails_to_take_one(grid):
    holder = Holder(grid)

    def closed(task):
        raise RuntimeError("the loop is closed")

    grid.attach("b", 3, "small", closed)
    with pytest.raises(RuntimeError, match="closed"):
        grid.send_and_receive([request(2), request(3)])
    assert not holder.answer()
    holder.attach()
    assert holder.tasks == []


# -- how long a round waits --------------------------------------------------------------------


def test_a_gone_holder_costs_a_round_the_grace_time_at_most(grid, clock):
    gone, here = Holder(grid), Holder(grid, "b", 3)
    round_ = background(collected, grid, [request(2), request(3)])
    until(here.ids)
    here.answer()
    time.sleep(0.1)  # the round waits again
    clock.ahead += 1000  # it was there for long
    left = time.monotonic()
    gone.detach()
    replies, _ = round_.result(SOON)
    assert [reply.metadata.src_node_id for reply in replies] == [3]
    assert GRACE * 0.9 <= time.monotonic() - left < GRACE + 3


def test_a_holder_that_is_long_gone_costs_nothing(make_grid, clock):
    grid = make_grid(grace_seconds=60.0)
    Holder(grid).detach()
    clock.ahead += 61
    replies, seconds = background(collected, grid, [request(2)]).result(SOON)
    assert (replies, seconds < SOON) == ([], True)


def test_a_node_that_was_never_there_costs_nothing(make_grid):
    grid = make_grid(grace_seconds=60.0)
    replies, seconds = background(collected, grid, [request(99)]).result(SOON)
    assert (replies, seconds < SOON) == ([], True)


def test_a_connected_holder_is_waited_for_far_beyond_the_grace_time(grid):
    holder = Holder(grid)
    round_ = background(collected, grid, [request()], timeout=3600)
    until(holder.ids)
    time.sleep(4 * GRACE)
    assert not round_.done()
    holder.answer()
    (reply,), _ = round_.result(SOON)
    assert told(reply) != "refused"


@pytest.mark.parametrize("timeout", [None, 3600.0])  # Flower's strategies give 3600
def test_no_round_lasts_longer_than_the_contracts_answer_seconds(make_grid, timeout):
    grid = make_grid(answer_seconds=1.0)
    Holder(grid)
    round_ = background(collected, grid, [request()], timeout=timeout)
    replies, seconds = round_.result(SOON)
    assert replies == []
    assert 0.9 <= seconds < 5


def test_a_shorter_timeout_than_the_contracts_is_kept(grid):
    Holder(grid)
    replies, seconds = background(collected, grid, [request()], timeout=0.1).result(SOON)
    assert replies == []
    assert 0.05 <= seconds < 5


# -- who is there ------------------------------------------------------------------------------


def test_node_ids_are_of_those_who_are_connected_in_order(grid):
    holders = [Holder(grid, name, node) for name, node in (("c", 9), ("a", 4), ("b", 7))]
    assert list(grid.get_node_ids()) == [4, 7, 9]
    holders[1].detach()
    assert list(grid.get_node_ids()) == [7, 9]


def test_too_few_holders_end_the_run_by_counts_and_names(make_grid):
    grid = make_grid()
    Holder(grid)
    Holder(grid, "b", 3).detach()
    with pytest.raises(LinkError, match=r"^1 holders are connected, .* needs 2; gone .* 0.2 s: b$"):
        background(grid.get_node_ids).result(SOON)
    with pytest.raises(LinkError, match=r"^0 holders .* needs 2; .*: none$"):
        make_grid().get_node_ids()


def test_a_missing_holder_may_come_within_the_grace_time(make_grid):
    grid = make_grid(grace_seconds=10.0)
    Holder(grid)
    asked = background(grid.get_node_ids)
    time.sleep(0.1)
    assert not asked.done()
    Holder(grid, "b", 3)
    ids, seconds = asked.result(SOON)
    assert list(ids) == [2, 3]
    assert seconds < 10.0


def test_a_newer_stream_takes_over_the_older_one(grid):
    holder = Holder(grid)
    ids = grid.push_messages([request()])
    older, old_deliver = holder.tasks, holder.deliver
    Holder(grid, "b", 3)
    holder.attach()
    assert older[-1] is None  # the end of the older one
    assert holder.ids() == ids
    grid.detach(2, old_deliver)  # the older stream ends: the holder is still there
    assert list(grid.get_node_ids()) == [2, 3]
    assert holder.answer()
    grid.push_messages([request()])
    assert len(older) == 2
    assert len(holder.tasks) == 2


# -- the start ---------------------------------------------------------------------------------


class Watch:
    def __init__(self):
        self.seen = []

    def __call__(self, here, missing):
        self.seen.append((here, missing))


def test_a_run_starts_at_once_when_all_who_are_enrolled_are_there(make_grid):
    grid, watch = make_grid(grace_seconds=60.0), Watch()
    start = background(grid.wait_for_start, watch)
    until(lambda: watch.seen == [([], ["a", "b", "c"])])
    Holder(grid, "b", 3)
    until(lambda: watch.seen[-1] == (["b"], ["a", "c"]))
    Holder(grid, "a", 2)
    until(lambda: watch.seen[-1] == (["a", "b"], ["c"]))
    assert not start.done()
    Holder(grid, "c", 4)
    start.result(SOON)
    assert watch.seen[-1] == (["a", "b", "c"], [])
    assert len(watch.seen) == 4


def test_a_run_starts_with_the_minimum_after_the_grace_time(make_grid):
    grid, watch = make_grid(grace_seconds=0.4), Watch()
    Holder(grid)
    start = background(grid.wait_for_start, watch)
    time.sleep(1.0)
    assert not start.done()  # one is not the minimum, however long
    Holder(grid, "b", 3)
    came = time.monotonic()
    start.result(SOON)
    assert 0.35 <= time.monotonic() - came < 5
    assert watch.seen[-1] == (["a", "b"], ["c"])


def test_the_grace_time_begins_anew_when_there_were_too_few_in_between(make_grid):
    grid = make_grid(grace_seconds=0.6)
    Holder(grid)
    b = Holder(grid, "b", 3)
    start = background(grid.wait_for_start, Watch())
    time.sleep(0.3)
    b.detach()
    time.sleep(0.6)
    assert not start.done()
    b.attach()
    came = time.monotonic()
    start.result(SOON)
    assert time.monotonic() - came >= 0.5


def test_all_who_are_enrolled_do_not_start_below_the_minimum(make_grid):
    enrolled = {"a": 2}
    grid, watch = make_grid(enrolled), Watch()
    a = Holder(grid)
    start = background(grid.wait_for_start, watch)
    for _ in range(5):
        time.sleep(GRACE)
        a.attach()  # changes nothing
    assert not start.done()
    assert watch.seen == [(["a"], [])]
    enrolled["b"] = 3  # enrolled while the coordinator waits
    until(lambda: watch.seen[-1] == (["a"], ["b"]))
    Holder(grid, "b", 3)
    start.result(SOON)
    assert len(watch.seen) == 3  # and nothing is told twice


def test_one_who_is_told_slowly_holds_up_no_stream(make_grid):
    grid = make_grid(grace_seconds=60.0)
    told_on, seen = threading.Event(), []

    def on_wait(here, missing):
        seen.append(here)
        assert told_on.wait(SOON)

    start = background(grid.wait_for_start, on_wait)
    until(lambda: seen)
    came = [background(Holder, grid, name, node) for name, node in (("a", 2), ("b", 3), ("c", 4))]
    for holder in came:
        holder.result(SOON)
    assert seen == [[]]
    told_on.set()
    start.result(SOON)
    assert seen == [[], ["a", "b", "c"]]


# -- the end -----------------------------------------------------------------------------------

END = pb.Finished(rounds=3, holders=2, adapter=b"bytes")


def test_the_end_is_handed_to_all_and_to_one_who_comes_late(make_grid):
    grid = make_grid(grace_seconds=30.0)
    holders = [Holder(grid, name, node) for name, node in (("a", 2), ("b", 3))]
    end = background(grid.finish, END)
    for holder in holders:
        until(lambda holder=holder: holder.tasks)
        assert holder.tasks == [pb.Task(finished=END)]
        assert not end.done()
        grid.told(holder.node_id)
        holder.detach()
    _, seconds = end.result(SOON)
    assert seconds < 30.0
    late = Holder(grid, "c", 4)
    assert late.tasks == [pb.Task(finished=END)]
    holders[0].attach()  # one who lost it on the way
    assert holders[0].tasks == [pb.Task(finished=END)]


def test_the_end_waits_for_one_who_is_just_gone(make_grid):
    grid = make_grid(grace_seconds=10.0)
    holder = Holder(grid)
    holder.detach()
    end = background(grid.finish, END)
    time.sleep(0.1)
    assert not end.done()
    holder.attach()
    assert holder.tasks == [pb.Task(finished=END)]
    grid.told(2)
    _, seconds = end.result(SOON)
    assert seconds < 10.0


def test_the_end_does_not_wait_for_the_long_gone(make_grid, clock):
    grid = make_grid(grace_seconds=60.0)
    Holder(grid).detach()
    here = Holder(grid, "b", 3)
    clock.ahead += 61
    end = background(grid.finish, END)
    until(lambda: here.tasks)
    assert not end.done()
    grid.told(3)
    end.result(SOON)


def test_the_end_waits_the_grace_time_at_most_for_one_who_never_takes_it(grid):
    Holder(grid)
    _, seconds = background(grid.finish, END).result(SOON)
    assert GRACE * 0.9 <= seconds < GRACE + 3


def test_the_end_of_a_run_that_went_on_waits_for_those_who_were_not_there_yet(make_grid):
    for again, waits in ((True, True), (False, False)):
        grid = make_grid({"a": 2, "b": 3}, grace_seconds=10.0)
        end = background(grid.finish, END, again=again)
        time.sleep(0.1)
        assert end.done() is not waits
        if waits:
            for name, node in (("a", 2), ("b", 3)):
                assert Holder(grid, name, node).tasks == [pb.Task(finished=END)]
                grid.told(node)
        assert end.result(SOON)[1] < 10.0


# -- many at once ------------------------------------------------------------------------------


@pytest.fixture
def restless():
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_many_who_answer_at_once_lose_nothing_and_count_once(make_grid, restless):
    nodes, rounds = range(2, 26), 5
    grid = make_grid(grace_seconds=60.0)
    holders = [Holder(grid, f"h{node}", node) for node in nodes]
    counted = [0] * len(holders)
    barrier = threading.Barrier(len(holders))
    lost = []

    def answer(place):
        holder = holders[place]
        for _ in range(rounds):
            barrier.wait(SOON)
            end = time.monotonic() + SOON
            done = False
            while not done:  # the stream breaks and comes back all the time, answers go twice
                if time.monotonic() > end:
                    lost.append(holder.name)
                    return
                holder.detach()
                holder.attach()
                for message_id in holder.ids():
                    value = good(float(holder.node_id))
                    took = [holder.answer(message_id, **value) for _ in range(2)]
                    assert took[1] is False
                    counted[place] += took[0]
                    done = done or took[0]

    threads = [background(answer, place) for place in range(len(holders))]
    for round_ in range(1, rounds + 1):
        requests = [request(node, round_=round_) for node in nodes]
        replies = grid.send_and_receive(requests, timeout=SOON)
        by_node = {
            reply.metadata.src_node_id: float(told(reply)[wire.ARRAYS]["w"].numpy()[0])
            for reply in replies
        }
        assert by_node == {node: float(node) for node in nodes}
    for thread in threads:
        thread.result(SOON)
    assert (lost, counted) == ([], [rounds] * len(holders))


def test_two_answers_to_one_request_at_once_count_once(grid, restless):
    holder = Holder(grid)
    for _ in range(20):
        ids = grid.push_messages([request()])
        barrier = threading.Barrier(8)

        def answer(value, barrier=barrier):
            barrier.wait(SOON)
            return holder.answer(**good(value))

        took = [background(answer, float(value)) for value in range(8)]
        winners = [value for value, future in enumerate(took) if future.result(SOON)[0]]
        (reply,) = grid.pull_messages(ids)
        assert [float(told(reply)[wire.ARRAYS]["w"].numpy()[0])] == winners
