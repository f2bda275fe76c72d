import dataclasses
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


def strategy(contract: Contract) -> tuple[CreditFedAvg, list[RoundReport]]:
    reports: list[RoundReport] = []
    return CreditFedAvg(contract, reports.append), reports


def test_adapters_are_averaged_by_public_weight(federation: Contract) -> None:
    fedavg, _ = strategy(federation)
    arrays, _ = fedavg.aggregate_train(1, [trained(2, [1.0], 300.0), trained(3, [5.0], 100.0)])
    assert arrays is not None
    np.testing.assert_allclose(arrays["w"].numpy(), [2.0])


def test_the_order_of_arrival_does_not_change_a_bit(federation: Contract) -> None:
    values = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32) * 1e3
    replies = [trained(2 + i, v, 10.0 ** (i - 2)) for i, v in enumerate(values)]
    first, _ = strategy(federation)[0].aggregate_train(1, replies)
    second, _ = strategy(federation)[0].aggregate_train(1, replies[::-1])
    assert first is not None
    assert second is not None
    assert first["w"].numpy().tobytes() == second["w"].numpy().tobytes()


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

    class TwoNodes:
        def get_node_ids(self) -> list[int]:
            return [2, 3]

    global_now = ArrayRecord({"w": Array(np.asarray([8.0], np.float32))})
    grid: Any = TwoNodes()
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
