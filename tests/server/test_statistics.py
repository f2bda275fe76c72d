"""The coordinator's side of the statistics round, on holders that answer what they are told to."""

import dataclasses

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from credit_common.contract import Contract
from credit_common.statistics import edge_arrays, quantile_edges, statistics_shapes
from credit_common.wire import (
    ARRAYS,
    adapter_reply,
    histogram_reply,
    pack,
    refusal,
    request_arrays,
    request_round,
    set_aside,
    statistics_reply,
)
from credit_server.aggregate import RoundReport
from credit_server.answers import TooFewError
from credit_server.app import coordinator_app
from credit_server.quarantine import Quarantine
from credit_server.statistics import federated_edges
from credit_simulations.loop import LoopGrid

Counts = dict[str, np.ndarray]


def counts_of(contract: Contract, seed: int) -> Counts:
    draw = np.random.default_rng(seed)
    return {n: draw.uniform(0, 50, shape) for n, shape in statistics_shapes(contract).items()}


def holder(counts: Counts | None, seen: list[Message], bins: int = 50) -> ClientApp:
    """Answers with these counts, or refuses; trains by adding 1, under the class "small"."""
    app = ClientApp()

    @app.query()
    def _query(message: Message, context: Context) -> Message:
        seen.append(message)
        return refusal(message) if counts is None else statistics_reply(message, pack(counts))

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        seen.append(message)
        return adapter_reply(message, pack({"w": request_arrays(message)["w"] + 1}), 30.0)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        seen.append(message)
        return histogram_reply(message, pack({"histogram": np.ones((2, bins))}), 1.0)

    return app


def test_edges_are_those_of_the_sum_over_holders(federated: Contract) -> None:
    own = [counts_of(federated, seed) for seed in range(3)]
    seen: list[Message] = []
    grid = LoopGrid({f"shop{i}": holder(counts, seen) for i, counts in enumerate(own)})
    edges = federated_edges(federated, grid)
    total = {name: sum(counts[name] for counts in own) for name in own[0]}
    assert edges == quantile_edges(federated, total)
    assert len(seen) == 3
    for message in seen:
        assert request_arrays(message) == {}
        assert request_round(message) == 1
        assert message.metadata.message_type == "query"


def test_a_contract_without_federated_edges_asks_nobody(contract: Contract) -> None:
    seen: list[Message] = []
    assert federated_edges(contract, LoopGrid({"a": holder(None, seen)})) == {}
    assert seen == []


def test_a_holder_that_refuses_is_left_out_while_there_are_enough(federated: Contract) -> None:
    own = [counts_of(federated, 1), None, counts_of(federated, 2)]
    grid = LoopGrid({f"shop{i}": holder(counts, []) for i, counts in enumerate(own)})
    total = {name: own[0][name] + own[2][name] for name in own[0]}
    quarantine = Quarantine(federated)
    assert federated_edges(federated, grid, quarantine) == quantile_edges(federated, total)
    assert quarantine.drain() == {f"node {grid.node_ids['shop1']}": {"refused": 1}}


def test_too_few_answers_end_the_run_before_it_begins(federated: Contract) -> None:
    grid = LoopGrid({"a": holder(None, []), "b": holder(counts_of(federated, 1), [])})
    says = "statistics: 1 of 2 holders answered the query request, the contract needs 2; 1 refused"
    with pytest.raises(TooFewError, match=says) as told:
        federated_edges(federated, grid)
    assert told.value.heard == set(grid.node_ids.values())


def test_a_liar_ends_no_run_that_bears_one(federated: Contract) -> None:
    robust = dataclasses.replace(
        federated,
        federation=dataclasses.replace(federated.federation, min_holders=3),
        training=dataclasses.replace(federated.training, aggregation="median", byzantine=1),
    )
    liar = ClientApp()

    @liar.query()
    def _query(message: Message, context: Context) -> Message:
        return set_aside(message, "not-finite")  # what a grid makes of counts that are NaN

    own = [counts_of(robust, seed) for seed in range(2)]
    apps = {f"shop{i}": holder(counts, []) for i, counts in enumerate(own)}
    quarantine = Quarantine(robust)
    grid = LoopGrid({**apps, "liar": liar})
    total = {name: own[0][name] + own[1][name] for name in own[0]}
    assert federated_edges(robust, grid, quarantine) == quantile_edges(robust, total)
    assert quarantine.drain() == {f"node {grid.node_ids['liar']}": {"not-finite": 1}}
    with pytest.raises(TooFewError, match=r"2 of 3 holders .*; 1 refused"):  # that is no lie
        federated_edges(robust, LoopGrid({**apps, "other": holder(None, [])}))


def test_a_holder_that_starts_anew_meanwhile_is_asked_again(federated: Contract) -> None:
    class Away(LoopGrid):
        """Of its holders the last is away at the first request, and back later."""

        waited: list[int]

        def send_and_receive(self, messages, *, timeout=None):
            asked = list(messages)
            here = asked if hasattr(self, "waited") else asked[:-1]
            return super().send_and_receive(here, timeout=timeout)

        def wait_for_others(self, heard):
            self.waited = sorted(heard)
            return True

    seen: list[Message] = []
    reports: list[RoundReport] = []
    grid = Away({f"shop{i}": holder(counts_of(federated, i), seen) for i in range(2)})
    server = coordinator_app(federated, {"w": np.zeros(3, np.float32)}, reports.append)
    server(grid, grid.context)
    assert grid.waited == [grid.node_ids["shop0"]]
    kinds = [message.metadata.message_type for message in seen]
    assert kinds[:4] == ["query"] * 3 + ["train"]
    assert len(reports) == federated.training.rounds


def test_the_sum_does_not_depend_on_the_order_of_answers(federated: Contract) -> None:
    class Reversed(LoopGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return list(super().send_and_receive(messages, timeout=timeout))[::-1]

    def apps() -> dict[str, ClientApp]:
        return {f"shop{i}": holder(counts_of(federated, i), []) for i in range(5)}

    edges = federated_edges(federated, LoopGrid(apps()))
    assert federated_edges(federated, Reversed(apps())) == edges


def test_each_later_request_carries_the_edges_beside_the_adapter(federated: Contract) -> None:
    short = dataclasses.replace(
        federated, evaluation=dataclasses.replace(federated.evaluation, every=2)
    )
    seen: list[Message] = []
    reports: list[RoundReport] = []
    grid = LoopGrid({f"shop{i}": holder(counts_of(short, i), seen) for i in range(2)})
    server = coordinator_app(short, {"w": np.zeros(3, np.float32)}, reports.append)
    server(grid, grid.context)
    kinds = [message.metadata.message_type for message in seen]
    assert kinds == ["query"] * 2 + ["train"] * 4 + ["evaluate"] * 2 + (["train"] * 2) + (
        ["evaluate"] * 2
    )
    edges = edge_arrays(reports[0].edges)
    assert set(edges) == {"edges.age", "edges.income"}
    for message in seen[2:]:
        arrays = request_arrays(message)
        assert set(arrays) == {"w", *edges}
        for name, values in edges.items():
            assert np.array_equal(arrays[name], values)
    for report in reports:
        assert set(report.adapter) == {"w"}
        assert report.edges == reports[0].edges
    assert reports[-1].adapter["w"].tolist() == [3.0] * 3


def test_requests_of_a_contract_without_them_carry_the_adapter_alone(contract: Contract) -> None:
    seen: list[Message] = []
    reports: list[RoundReport] = []
    grid = LoopGrid({f"shop{i}": holder(None, seen) for i in range(2)})
    server = coordinator_app(contract, {"w": np.zeros(3, np.float32)}, reports.append)
    server(grid, grid.context)
    assert all(set(message.content[ARRAYS]) == {"w"} for message in seen)
    assert all(report.edges == {} for report in reports)
