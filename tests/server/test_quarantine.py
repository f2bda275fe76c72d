"""Every payload of the fuzz list is set aside, or harmless, and the round completes."""

import dataclasses
import logging
import queue
import threading
import time

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from credit_common import federation_pb2 as pb
from credit_common import wire
from credit_common.contract import parse_contract
from credit_common.errors import CreditError, WireError
from credit_common.privacy import mechanism_plan
from credit_server.app import coordinator_app
from credit_server.grid import GrpcGrid
from credit_server.plausible import bounds
from credit_server.quarantine import Quarantine, reason_of

SHAPES = {"wide.weight": (1, 400)}
LIAR = 9
SHOP = f"shop-{LIAR}"


@pytest.fixture
def federation(contract_text):
    """The small contract's wide part alone: three rounds, no waits for who is gone."""

    def make(**training):
        contract = parse_contract(contract_text).training_only("wide")
        changed = dataclasses.replace(contract.training, **training)
        least = max(3, changed.least_answers)
        return dataclasses.replace(
            contract,
            federation=dataclasses.replace(
                contract.federation, answer_seconds=20.0, min_holders=least, grace_seconds=5.0
            ),
            training=changed,
        )

    return make


def change(contract, node, round_):
    """What an honest holder of class small does in a round: the plan's noise, and a little more."""
    plan = mechanism_plan(contract, "small")
    draw = np.random.default_rng((node, round_))
    scale = contract.training.learning_rate.wide * plan.noise_multiplier / 30
    return (scale * draw.normal(size=(plan.steps, *SHAPES["wide.weight"])).sum(0) + 0.01).astype(
        np.float32
    )


class Holder:
    """A holder's stream, answered in a thread of its own: honest in all but what `lie` says.

    Args:
        lie: Called with this holder, a training request and the honest adapter; returns the
            outcomes that it answers with, in order.
    """

    def __init__(self, contract, grid, node, lie=None):
        self.contract, self.grid, self.node, self.lie = contract, grid, node, lie
        self.tasks, self.past, self.ids = queue.SimpleQueue(), [], []
        grid.attach(f"shop-{node}", node, "small", self.tasks.put)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while (task := self.tasks.get()) is not None:
            request = task.request
            if request.kind == pb.EVALUATE:
                counts = np.ones((2, self.contract.evaluation.bins))
                payload = wire.pack({wire.HISTOGRAM: counts})
                self.grid.answer(
                    self.node, pb.Reply(message_id=request.message_id, histogram=payload)
                )
                continue
            base = wire.unpack(request.arrays)["wide.weight"]
            honest = base + change(self.contract, self.node, request.round)
            answers = [{"adapter": pack(honest)}]
            if self.lie is not None:
                answers = self.lie(self, base, honest)
            for answer in answers:
                named = {"message_id": request.message_id, **answer}
                self.grid.answer(self.node, pb.Reply(**named))
            self.ids.append(request.message_id)
            self.past.append(pack(honest))


def pack(weights, **more):
    return wire.pack({"wide.weight": weights, **more})


def replayed(holder, base, honest):
    return [{"adapter": holder.past[0] if holder.past else pack(honest)}]


def wrong_round(holder, base, honest):
    """The answer under the id of the round before, then under its own."""
    earlier = [{"message_id": holder.ids[-1], "adapter": pack(honest)}] if holder.ids else []
    return [*earlier, {"adapter": pack(honest)}]


FUZZ = {
    "wrong name": (lambda h, b, w: [{"adapter": wire.pack({"wide.bias": w})}], "schema"),
    "another name": (
        lambda h, b, w: [{"adapter": pack(w, weight=np.ones(1, np.float32))}],
        "schema",
    ),
    "wrong shape": (lambda h, b, w: [{"adapter": pack(w[:, :1])}], "schema"),
    "wrong dtype": (lambda h, b, w: [{"adapter": pack(w.astype(np.float16))}], "schema"),
    "wrong outcome": (lambda h, b, w: [{"histogram": pack(w)}], "schema"),
    "nothing": (lambda h, b, w: [{}], "schema"),
    "text": (lambda h, b, w: [{"adapter": b"\x02\0\0\0\0\0\0\0{}no arrays"}], "schema"),
    "huge header": (lambda h, b, w: [{"adapter": b"\xff" * 7 + b"\0" + pack(w)[8:]}], "size"),
    "huge array": (lambda h, b, w: [{"adapter": pack(np.tile(w, 100))}], "size"),
    "nan": (lambda h, b, w: [{"adapter": pack(np.where(w > 0, w, np.nan))}], "not-finite"),
    "infinity": (lambda h, b, w: [{"adapter": pack(w * np.float32(np.inf))}], "not-finite"),
    "largest float": (lambda h, b, w: [{"adapter": pack(np.full_like(w, 3.4e38))}], "norm"),
    "scaled": (lambda h, b, w: [{"adapter": pack(b + 1000 * (w - b))}], "norm"),
    "unchanged": (lambda h, b, w: [{"adapter": pack(b)}], "no-noise"),
    "without noise": (lambda h, b, w: [{"adapter": pack(b + np.float32(0.01))}], "no-noise"),
    "replayed": (replayed, "norm|replayed"),
    "refused": (lambda h, b, w: [{"refused": pb.Refused()}], "refused"),
}
"""What a liar answers with, and why that is set aside; "replayed" from the second round on."""


def run(contract, lie=None, honest=(3, 5, 7)):
    """Run the contract over a grid with a liar beside; returns the reports and the grid."""
    reports = []
    grid = GrpcGrid(contract, SHAPES, dict)
    holders = [Holder(contract, grid, node) for node in honest]
    holders += [Holder(contract, grid, LIAR, lie)] if lie else []
    initial = {"wide.weight": np.zeros(SHAPES["wide.weight"], np.float32)}
    try:
        server = coordinator_app(contract, initial, reports.append, quarantine=grid.quarantine)
        server(grid, grid.context)
    finally:
        for holder in holders:
            holder.tasks.put(None)
            holder.thread.join(10)
    return reports


def expected(contract, nodes_of):
    """The adapter after all rounds, by the honest changes of these nodes in each round."""
    total = np.zeros(SHAPES["wide.weight"])
    for round_ in range(1, contract.training.rounds + 1):
        total += np.mean([change(contract, n, round_) for n in nodes_of(round_)], axis=0)
    return total


@pytest.mark.parametrize("what", FUZZ)
def test_a_lie_is_set_aside_and_the_run_goes_on_as_without_the_liar(federation, what):
    lie, reason = FUZZ[what]
    contract = federation()
    reports = run(contract, lie)
    assert [report.round for report in reports] == [1, 2, 3]
    first = {LIAR} if what == "replayed" else set()
    for report in reports:
        own = report.set_aside.get(SHOP, {})
        if first and report.round == 1:
            assert own == {}
            continue
        (why,) = own
        assert (why in reason.split("|"), own[why]) == (True, 1)
        assert set(report.set_aside) == {SHOP}
    nodes = {3, 5, 7}
    found = reports[-1].adapter["wide.weight"]
    want = expected(contract, lambda round_: nodes | first if round_ == 1 else nodes)
    np.testing.assert_allclose(found, want, atol=1e-5)


AGAIN = {
    "duplicate": (lambda h, b, w: [{"adapter": pack(w)}, {"adapter": pack(-w)}], "duplicate", 0),
    "late": (wrong_round, "late|duplicate", 1),
    "never asked": (
        lambda h, b, w: [{"message_id": "x", "adapter": pack(-w)}, {"adapter": pack(w)}],
        "late",
        0,
    ),
}


@pytest.mark.parametrize("what", AGAIN)
def test_what_comes_beside_an_answer_changes_nothing(federation, what):
    lie, reason, since = AGAIN[what]
    contract = federation()
    reports = run(contract, lie)
    counted = sum(sum(r.set_aside.get(SHOP, {}).values()) for r in reports)
    # The last answer's duplicate may come after the last report.
    assert contract.training.rounds - 1 <= counted + since <= contract.training.rounds
    assert {why for r in reports for why in r.set_aside.get(SHOP, {})} <= set(reason.split("|"))
    np.testing.assert_allclose(
        reports[-1].adapter["wide.weight"],
        expected(contract, lambda round_: {3, 5, 7, LIAR}),
        atol=1e-5,
    )


@pytest.mark.parametrize("aggregation", ["trimmed_mean", "median", "multi_krum"])
def test_a_sign_flip_is_plausible_and_harmless_by_aggregation(federation, aggregation):
    contract = federation(aggregation=aggregation, byzantine=1, rounds=1)
    honest = range(2, 7)

    def flipped(holder, base, own):
        return [{"adapter": pack(base - 5 * (own - base))}]

    (report,) = run(contract, flipped, honest)
    assert report.set_aside == {}
    own = np.stack([change(contract, node, 1) for node in honest])
    found = report.adapter["wide.weight"]
    if aggregation == "multi_krum":  # it leaves one out, which is the liar
        np.testing.assert_allclose(found, own.mean(0), atol=1e-5)
    assert (own.min(0) - 1e-6 <= found).all()
    assert (found <= own.max(0) + 1e-6).all()


def test_too_few_that_remain_end_the_run_by_node_and_reason(federation):
    with pytest.raises(
        CreditError,
        match=r"^round 1: 2 of 3 holders answered the train request, the contract needs 3; "
        r"set aside: shop-9 \(not-finite\)$",
    ):
        run(federation(), FUZZ["nan"][0], honest=(3, 5))


def asked_with_a_latecomer(contract, honest, back=7):
    """A liar and some honest holders; another one comes back once the liar has been heard.

    Returns the reports and the holders.
    """
    nodes = (*honest, back, LIAR)
    grid = GrpcGrid(contract, SHAPES, lambda: {f"shop-{node}": node for node in nodes})
    holders = {node: Holder(contract, grid, node) for node in honest}
    timers, reports = [], []

    def lie(holder, base, own):
        if not timers:
            timers.append(threading.Timer(0.3, come))
            timers[0].start()
        return [{"adapter": pack(np.full_like(own, np.nan))}]

    def come():
        holders[back] = Holder(contract, grid, back)

    holders[LIAR] = Holder(contract, grid, LIAR, lie)
    initial = {"wide.weight": np.zeros(SHAPES["wide.weight"], np.float32)}
    try:
        server = coordinator_app(contract, initial, reports.append, quarantine=grid.quarantine)
        server(grid, grid.context)
    finally:
        timers[0].join(10)
        for holder in holders.values():
            holder.tasks.put(None)
            holder.thread.join(10)
    return reports, holders


def test_a_round_with_too_few_answers_asks_again_once_another_holder_is_back(federation):
    contract = federation(rounds=2)
    reports, holders = asked_with_a_latecomer(contract, honest=(3, 5))
    assert [report.holders for report in reports] == [3, 3]
    want = 0
    for round_ in (1, 2):
        want = want + np.mean([change(contract, node, round_) for node in (3, 5, 7)], axis=0)
    np.testing.assert_allclose(reports[-1].adapter["wide.weight"], want, atol=1e-5)
    # The same question has the same id: a ledger repeats its answer and charges nothing.
    for node in (3, 5):
        first, again, second = holders[node].ids
        assert first == again != second
    assert len(holders[7].ids) == 2
    # An honest answer that was repeated is not told as one of another round.
    assert set(reports[0].set_aside) == {SHOP}
    assert reports[0].set_aside[SHOP] == {"not-finite": 2}


def test_who_never_comes_back_ends_the_run_after_the_grace_time(federation):
    contract = federation(rounds=1)
    brief = dataclasses.replace(contract.federation, grace_seconds=1.0)
    contract = dataclasses.replace(contract, federation=brief)
    grid = GrpcGrid(contract, SHAPES, lambda: {f"shop-{node}": node for node in (3, 5, 7, LIAR)})
    holders = [Holder(contract, grid, node) for node in (3, 5)]
    holders.append(Holder(contract, grid, LIAR, FUZZ["nan"][0]))
    initial = {"wide.weight": np.zeros(SHAPES["wide.weight"], np.float32)}
    start = time.monotonic()
    try:
        server = coordinator_app(contract, initial, print, quarantine=grid.quarantine)
        with pytest.raises(CreditError, match=r"2 of 3 holders answered.*not-finite"):
            server(grid, grid.context)
    finally:
        for holder in holders:
            holder.tasks.put(None)
            holder.thread.join(10)
    assert 1 <= time.monotonic() - start < 10
    assert [len(holder.ids) for holder in holders] == [1, 1, 1]


def test_found_liars_count_towards_the_minimum_that_allows_for_them(federation):
    contract = federation(aggregation="trimmed_mean", byzantine=1)
    reports = run(contract, FUZZ["nan"][0], honest=(3, 5))
    assert [report.holders for report in reports] == [2, 2, 2]
    # The liar is known: of the two who are left, none is trimmed.
    want = expected(contract, lambda round_: {3, 5})
    np.testing.assert_allclose(reports[-1].adapter["wide.weight"], want, atol=1e-5)
    with pytest.raises(CreditError, match=r"2 of 3 .* needs 3; 1 refused"):
        run(contract, FUZZ["refused"][0], honest=(3, 5))


def test_nothing_of_what_was_sent_is_in_the_log(federation, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("credit_server"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "credit_server"):
        run(federation(), lambda h, b, w: [{"adapter": pack(b + np.float32(123.4567))}])
    told = [record.getMessage() for record in caplog.records]
    assert any("larger than an honest one can be" in line for line in told)
    assert not any("123.4" in line or "2469" in line for line in told)  # nor its norm


# -- by itself ---------------------------------------------------------------------------------


def reply(weight, node=2, **arrays):
    wire.set_identity(1, wire.SERVER_NODE)
    content = RecordDict(
        {
            wire.ARRAYS: wire.array_record(arrays),
            wire.METRICS: MetricRecord({wire.WEIGHT: weight}),
        }
    )
    return Message(content, reply_to=Message(RecordDict(), dst_node_id=node, message_type="train"))


@pytest.mark.parametrize("weight", [0.0, -30.0, 1e12, 31.0, float("nan")])
def test_a_weight_is_that_of_a_size_class(federation, weight):
    contract = federation()
    quarantine = Quarantine(contract, SHAPES)
    base = {"wide.weight": np.zeros(SHAPES["wide.weight"], np.float32)}
    fine = {"wide.weight": change(contract, 2, 1)}
    assert quarantine.admit(base, reply(30.0, **fine))[1] == 30.0
    with pytest.raises(WireError, match="size class"):
        quarantine.admit(base, reply(weight, 3, **fine))


def test_the_bounds_are_those_of_the_holders_own_class(federation):
    contract = federation()
    quarantine = Quarantine(contract, SHAPES)
    base = {"wide.weight": np.zeros(SHAPES["wide.weight"], np.float32)}
    small = bounds(contract, mechanism_plan(contract, "small"), SHAPES)["wide"]
    sent = {"wide.weight": np.full(SHAPES["wide.weight"], 0.99 * small.most / 20, np.float32)}
    quarantine.admit(base, reply(30.0, **sent))
    with pytest.raises(WireError, match="larger than an honest"):
        quarantine.admit(base, reply(300.0, **sent))


def test_reasons_that_are_not_in_the_list_are_refusals(federation):
    quarantine = Quarantine(federation())
    for reason in ("norm", "<script>", "norm", "late"):
        quarantine.note(4, reason)
    quarantine.note(3, "size")
    assert quarantine.drain() == {
        "node 3": {"size": 1},
        "node 4": {"late": 1, "norm": 2, "refused": 1},
    }
    wire.set_identity(1, wire.SERVER_NODE)
    asked = Message(RecordDict(), dst_node_id=2, message_type="train")
    assert reason_of(wire.refusal(asked)) == "refused"
    assert reason_of(wire.set_aside(asked, "size")) == "size"
