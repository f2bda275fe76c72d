import dataclasses
import gc
import itertools
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp

from credit_common.contract import Contract, parse_contract
from credit_common.errors import CreditError, PrivacyError
from credit_common.sections import Upload
from credit_common.statistics import Edges
from credit_common.upload import encode
from credit_common.wire import (
    ARRAYS,
    HISTOGRAM,
    METRICS,
    SERVER_NODE,
    WEIGHT,
    array_record,
    request_round,
    set_identity,
    set_message_id,
)
from credit_server.aggregate import CreditFedAvg, RoundReport
from credit_server.app import coordinator_app


@pytest.fixture
def federation(contract_text: str) -> Contract:
    text = contract_text.replace("rounds = 3", "rounds = 4\naverage = 0.75")
    return parse_contract(text.replace("[evaluation]", "[evaluation]\nevery = 2\nbins = 3"))


def request(node: int, kind: str = "train") -> Message:
    set_identity(7, SERVER_NODE)
    message = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type=kind)
    set_message_id(message, f"message-{node}")
    return message


def trained(node: int, value: Any, weight: float) -> Message:
    arrays = ArrayRecord({"w": Array(np.asarray(value, np.float32))})
    content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: weight})})
    return Message(content, reply_to=request(node))


def counted(node: int, counts: list[float], weight: float = 1.0) -> Message:
    metrics = MetricRecord({WEIGHT: weight, HISTOGRAM: counts})
    return Message(RecordDict({METRICS: metrics}), reply_to=request(node, "evaluate"))


def refused(node: int) -> Message:
    return Message(Error(2001, "refused"), reply_to=request(node))


def nodes(*ids: int) -> Any:
    class Nodes:
        def get_node_ids(self) -> list[int]:
            return list(ids)

    return Nodes()


def strategy(contract: Contract, size: int = 1) -> tuple[CreditFedAvg, list[RoundReport]]:
    """A strategy that has asked for training from an adapter of so many zeros."""
    reports: list[RoundReport] = []
    fedavg = CreditFedAvg(contract, reports.append)
    asked = array_record({"w": np.zeros(size, np.float32)})
    assert len(list(fedavg.configure_train(1, asked, ConfigRecord(), nodes(2, 3)))) == 2
    return fedavg, reports


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_a_holder_that_leaves_between_two_looks_holds_up_no_round(
    federation: Contract, what: str
) -> None:
    class Leaving:
        """Node 4 is there at the first look alone, and nobody may look twice."""

        looks = iter([[2, 3, 4]])

        def get_node_ids(self) -> list[int]:
            return next(self.looks)

    fedavg, _ = strategy(federation)
    asked = array_record({"w": np.zeros(1, np.float32)})
    fedavg.released = {"w": np.zeros(1, np.float32)}
    configure = getattr(fedavg, f"configure_{what}")
    messages = list(configure(2, asked, ConfigRecord(), Leaving()))
    assert [message.metadata.dst_node_id for message in messages] == [2, 3, 4]
    assert {message.metadata.message_type for message in messages} == {what}
    assert {request_round(message) for message in messages} == {2}


def test_a_grid_that_fills_beside_the_coordinator_is_waited_for(federation: Contract) -> None:
    """Flower's simulation registers its nodes while the ServerApp begins."""

    class Filling(TwoNodes):
        looks = itertools.count()

        def get_node_ids(self) -> list[int]:
            return [2, 3][: next(self.looks)]

    fedavg = CreditFedAvg(federation, lambda report: None)
    asked = array_record({"w": np.zeros(1, np.float32)})
    grid: Any = Filling()
    messages = list(fedavg.configure_train(1, asked, ConfigRecord(), grid))
    assert [message.metadata.dst_node_id for message in messages] == [2, 3]


def test_adapters_are_averaged_by_public_weight(federation: Contract) -> None:
    fedavg, _ = strategy(federation)
    arrays, _ = fedavg.aggregate_train(1, [trained(2, [1.0], 300.0), trained(3, [5.0], 100.0)])
    assert arrays is not None
    np.testing.assert_allclose(arrays["w"].numpy(), [2.0])


def test_the_order_of_arrival_does_not_change_a_bit(federation: Contract) -> None:
    values = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32) * 1e3
    replies = [trained(2 + i, v, 10.0 ** (i - 2)) for i, v in enumerate(values)]
    first, _ = strategy(federation, 1000)[0].aggregate_train(1, replies)
    second, _ = strategy(federation, 1000)[0].aggregate_train(1, replies[::-1])
    assert first is not None
    assert second is not None
    assert first["w"].numpy().tobytes() == second["w"].numpy().tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_histograms_have_the_same_bits_in_any_order(federation: Contract, seed: int) -> None:
    draw = np.random.default_rng(seed)
    replies = [counted(2 + i, list(1e4 * draw.normal(size=6))) for i in range(9)]
    found = []
    for order in (range(9), draw.permutation(9)):
        fedavg, reports = strategy(federation)
        fedavg.aggregate_evaluate(2, [replies[i] for i in order])
        histogram = reports[-1].histogram
        assert histogram is not None
        found.append(histogram.tobytes())
    assert found[0] == found[1]


def arriving(
    holders: int, size: int, seen: Callable[[Message], None] = lambda reply: None
) -> Iterator[Message]:
    for i in range(holders):
        reply = trained(2 + i, np.full(size, float(i), np.float32), 1.0)
        seen(reply)
        yield reply
        del reply


def test_replies_are_let_go_as_soon_as_they_are_summed(federation: Contract) -> None:
    replies: list[weakref.ref[RecordDict]] = []
    most = 0

    def seen(reply: Message) -> None:
        nonlocal most
        replies.append(weakref.ref(reply.content))
        most = max(most, sum(reply() is not None for reply in replies))

    fedavg, reports = strategy(federation, 10)
    gc.disable()  # reference counts alone: the collector comes at times of its own
    try:
        arrays, _ = fedavg.aggregate_train(1, arriving(200, 10, seen))
    finally:
        gc.enable()
    assert arrays is not None
    np.testing.assert_array_equal(arrays["w"].numpy(), np.full(10, 99.5))
    assert reports[0].holders == 200
    assert most <= 3


def test_the_memory_of_a_round_does_not_grow_with_its_holders(federation: Contract) -> None:
    size, peaks = 20_000, []
    for holders in (10, 200):
        fedavg, _ = strategy(federation, size)
        gc.collect()
        tracemalloc.start()
        fedavg.aggregate_train(1, arriving(holders, size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * 4 * size  # two adapters; there are 190 more replies


ODD = {
    "beyond the range": trained(4, [3e38], 1.0),
    "not a number": trained(4, [np.nan], 1.0),
    "another shape": trained(4, [1.0, 2.0], 1.0),
    "float64": Message(
        RecordDict(
            {ARRAYS: ArrayRecord({"w": Array(np.ones(1))}), METRICS: MetricRecord({WEIGHT: 1.0})}
        ),
        reply_to=request(4),
    ),
    "no arrays": Message(RecordDict({METRICS: MetricRecord({WEIGHT: 1.0})}), reply_to=request(4)),
    "no weight": Message(
        RecordDict(
            {ARRAYS: ArrayRecord({"w": Array(np.ones(1, np.float32))}), METRICS: MetricRecord()}
        ),
        reply_to=request(4),
    ),
    "weight zero": trained(4, [1.0], 0.0),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_answer_that_cannot_be_summed_counts_as_a_refusal(
    federation: Contract, what: str, place: int
) -> None:
    fedavg, reports = strategy(federation)
    asked = ArrayRecord({"w": Array(np.zeros(1, np.float32))})
    fedavg.configure_train(1, asked, ConfigRecord(), nodes(2, 3, 4))
    replies = [trained(2, [1.0], 1.0), trained(3, [3.0], 1.0)]
    replies.insert(place, ODD[what])
    arrays, _ = fedavg.aggregate_train(1, replies)
    assert arrays is not None
    np.testing.assert_array_equal(arrays["w"].numpy(), [2.0])
    assert reports[0].holders == 2
    with pytest.raises(CreditError, match="round 1: 1 of 2 holders"):
        fedavg.aggregate_train(1, [trained(2, [1.0], 1.0), ODD[what]])


@pytest.mark.parametrize("counts", [[1.0] * 5, [np.nan] * 6, [1e12] * 6])
def test_a_histogram_that_cannot_be_summed_counts_as_a_refusal(
    federation: Contract, counts: list[float]
) -> None:
    fedavg, reports = strategy(federation)
    fedavg.aggregate_evaluate(2, [counted(2, [1.0] * 6), counted(3, counts), counted(4, [2.0] * 6)])
    assert reports[-1].evaluated == 2
    np.testing.assert_array_equal(reports[-1].histogram, np.full((2, 3), 3.0))


@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (2.0, 0.0), (0.5, 0.8)])
def test_the_server_moves_by_rate_and_momentum(
    federation: Contract, rate: float, momentum: float
) -> None:
    training = dataclasses.replace(
        federation.training, server_learning_rate=rate, server_momentum=momentum, average=0.0
    )
    fedavg, _ = strategy(dataclasses.replace(federation, training=training), 2)
    at, velocity = np.zeros(2), np.zeros(2)
    for round_, step in enumerate([[1.0, -2.0], [0.5, 4.0], [-3.0, 0.25]], 1):
        asked = array_record({"w": at.astype(np.float32)})
        fedavg.configure_train(round_, asked, ConfigRecord(), nodes(2, 3))
        arrays, _ = fedavg.aggregate_train(
            round_, [trained(2, at + 2 * np.asarray(step), 1.0), trained(3, at, 1.0)]
        )
        velocity = momentum * velocity + step
        at = at + rate * velocity
        assert arrays is not None
        np.testing.assert_allclose(arrays["w"].numpy(), at, rtol=1e-6)
        np.testing.assert_allclose(fedavg.released["w"], at, rtol=1e-6)
        at = arrays["w"].numpy().astype(np.float64)


def test_the_released_adapter_is_the_running_average(federation: Contract) -> None:
    fedavg, reports = strategy(federation)
    for round_, value in enumerate([4.0, 8.0], start=1):
        fedavg.aggregate_train(round_, [trained(2, [value], 1.0), trained(3, [value], 1.0)])
    np.testing.assert_allclose(fedavg.released["w"], [0.75 * 4.0 + 0.25 * 8.0])
    np.testing.assert_allclose(reports[0].adapter["w"], [4.0])


def test_what_is_evaluated_is_what_is_released(federation: Contract) -> None:
    fedavg, _ = strategy(federation)
    for round_, value in enumerate([4.0, 8.0], start=1):
        fedavg.aggregate_train(round_, [trained(2, [value], 1.0), trained(3, [value], 1.0)])

    global_now = ArrayRecord({"w": Array(np.asarray([8.0], np.float32))})
    grid = nodes(2, 3)
    messages = list(fedavg.configure_evaluate(2, global_now, ConfigRecord(), grid))
    assert len(messages) == 2
    for message in messages:
        np.testing.assert_allclose(message.content[ARRAYS]["w"].numpy(), [5.0])
    assert list(fedavg.configure_evaluate(1, global_now, ConfigRecord(), grid)) == []


def test_histograms_are_added_and_never_averaged(federation: Contract) -> None:
    fedavg, reports = strategy(federation)
    replies = [counted(3, [1.0] * 6, 900.0), counted(2, [0.5, -1.0, 2.0, 0.0, 0.0, 3.0], 1.0)]
    fedavg.aggregate_evaluate(2, replies)
    histogram = reports[-1].histogram
    assert histogram is not None
    np.testing.assert_array_equal(histogram, [[1.5, 0.0, 3.0], [1.0, 1.0, 4.0]])
    assert reports[-1].evaluated == 2


@pytest.mark.parametrize("round_", [1, 2, 3, 4])
def test_each_round_is_reported_once(federation: Contract, round_: int) -> None:
    fedavg, reports = strategy(federation)
    fedavg.aggregate_train(round_, [trained(2, [1.0], 1.0), trained(3, [1.0], 1.0)])
    fedavg.aggregate_evaluate(round_, [counted(2, [0.0] * 6), counted(3, [0.0] * 6)])
    assert [report.round for report in reports] == [round_]
    assert (reports[0].histogram is not None) == (round_ % 2 == 0)
    assert reports[0].evaluated == (2 if round_ % 2 == 0 else 0)


def test_too_few_answers_end_the_run_with_their_number(federation: Contract) -> None:
    fedavg, _ = strategy(federation)
    replies = [trained(2, [1.0], 1.0), refused(3), refused(4)]
    with pytest.raises(CreditError, match=r"round 3: 1 of 3 holders .* needs 2"):
        fedavg.aggregate_train(3, replies)


def test_refusals_beside_enough_answers_do_not_count(federation: Contract) -> None:
    fedavg, reports = strategy(federation)
    arrays, _ = fedavg.aggregate_train(
        1, [trained(2, [1.0], 1.0), refused(3), trained(4, [3.0], 1.0)]
    )
    assert arrays is not None
    np.testing.assert_allclose(arrays["w"].numpy(), [2.0])
    assert reports[0].holders == 2


class TwoNodes:
    def get_node_ids(self) -> list[int]:
        return [2, 3]


@pytest.mark.parametrize("edges", [{}, {"age": (25.0, 40.0)}])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_changes_are_added_to_the_adapter_of_their_own_round(
    federation: Contract, kind: Upload, edges: Edges
) -> None:
    training = dataclasses.replace(federation.training, upload=kind, average=0.0)
    contract = dataclasses.replace(federation, training=training)
    fedavg = CreditFedAvg(contract, lambda report: None, edges)
    grid: Any = TwoNodes()
    for round_, start in enumerate([np.full((1, 2), 8.0), np.full((1, 2), -1.0)], start=1):
        asked = {"w": start.astype(np.float32)}
        sent = list(fedavg.configure_train(round_, array_record(asked), ConfigRecord(), grid))
        assert len(sent) == 2
        replies = []
        for node, change, weight in ((2, [[1.0, -2.0]], 3.0), (3, [[5.0, 2.0]], 1.0)):
            after = {"w": asked["w"] + np.asarray(change, np.float32)}
            arrays = encode(kind, after, asked, np.random.default_rng(node).random)
            content = {ARRAYS: array_record(arrays), METRICS: MetricRecord({WEIGHT: weight})}
            replies.append(Message(RecordDict(content), reply_to=request(node)))
        arrays_now, _ = fedavg.aggregate_train(round_, replies)
        assert arrays_now is not None
        assert list(arrays_now) == ["w"]
        # One step of int8 is 5 / 127 at most; these numbers are exact in bfloat16.
        np.testing.assert_allclose(
            arrays_now["w"].numpy(), start + np.array([[2.0, -1.0]]), atol=0.04
        )
        np.testing.assert_allclose(fedavg.released["w"], arrays_now["w"].numpy())


def test_a_federation_without_privacy_is_refused_unless_allowed(federation: Contract) -> None:
    open_contract = federation.without_privacy()
    with pytest.raises(PrivacyError, match="--allow-no-privacy"):
        coordinator_app(open_contract, {}, lambda report: None)
    app = coordinator_app(open_contract, {}, lambda report: None, allow_no_privacy=True)
    assert isinstance(app, ServerApp)
