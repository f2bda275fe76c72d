"""A run that breaks off at any point and goes on ends as one that never did, bit for bit."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from credit_common.contract import Contract
from credit_common.errors import CreditError
from credit_common.statistics import statistics_shapes
from credit_common.wire import (
    adapter_reply,
    histogram_reply,
    pack,
    refusal,
    request_arrays,
    request_round,
    statistics_reply,
)
from credit_server.aggregate import RoundReport, State
from credit_server.app import coordinator_app
from credit_server.checkpoint import Checkpoint, Keeper, unfinished
from credit_simulations.loop import LoopGrid

INITIAL = {"w": np.array([0.5, -1.5, 3.0], np.float32)}


class Crash(BaseException):
    """The coordinator is gone."""


@pytest.fixture
def run_contract(federated: Contract) -> Contract:
    """Everything that carries something from round to round; evaluated in rounds 2, 4 and 5."""
    return dataclasses.replace(
        federated,
        training=dataclasses.replace(
            federated.training,
            rounds=5,
            average=0.75,
            server_momentum=0.6,
            server_learning_rate=0.7,
        ),
        evaluation=dataclasses.replace(federated.evaluation, every=2),
    )


def answering(contract: Contract, index: int, asked: list[tuple[str, int]]) -> ClientApp:
    """A holder whose answers follow from the request, as those of a ledger that keeps them do."""
    app = ClientApp()

    def noted(message: Message) -> int:
        number = request_round(message)
        asked.append((message.metadata.message_type, number))
        return number

    @app.query()
    def _query(message: Message, context: Context) -> Message:
        noted(message)
        draw = np.random.default_rng(index)
        shapes = statistics_shapes(contract)
        return statistics_reply(
            message, pack({n: draw.uniform(0, 9, s) for n, s in shapes.items()})
        )

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        number, arrays = noted(message), request_arrays(message)
        if index == 2 and number == 3:
            return refusal(message)
        start, edge = arrays["w"], arrays["edges.age"][0]
        return adapter_reply(message, pack({"w": np.sin(start * 7 + index + edge)}), 1.0 + index)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        noted(message)
        draw = np.random.default_rng(request_arrays(message)["w"].view(np.uint32))
        bins = contract.evaluation.bins
        return histogram_reply(message, pack({"histogram": draw.normal(size=(2, bins))}), 1.0)

    return app


class Coordinator:
    """Starts over a folder until it is through; what it told, and what holders were asked."""

    def __init__(self, home, contract: Contract) -> None:
        self.home, self.contract = home, contract
        self.told: list[RoundReport] = []
        self.asked: list[tuple[str, int]] = []

    def start(self, watch: Callable[[str], None] = lambda when: None) -> Checkpoint:
        found = (self.home / "run.checkpoint").exists()
        begun = unfinished(self.home, self.contract, resume=found)
        fresh = Checkpoint(contract_digest=self.contract.digest, run="run", state=State(adapter={}))
        keeper = Keeper(self.home, begun or fresh)

        def keep(state: State, done: RoundReport | None) -> None:
            watch("before")
            keeper.settle(state, done)
            watch("after")

        app = coordinator_app(
            self.contract,
            INITIAL,
            self.told.append,
            start=begun.state if begun else None,
            keep=keep,
        )
        grid = LoopGrid({f"h{i}": answering(self.contract, i, self.asked) for i in range(3)})
        app(grid, grid.context)
        return unfinished(self.home, self.contract, resume=True)


def crashing(at: int) -> Callable[[str], None]:
    """Gone at the n-th moment before or after something was kept."""
    count = 0

    def watch(when: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise Crash

    return watch


def bits(kept: Checkpoint) -> tuple:
    state = kept.state
    arrays = {
        f"{part}/{name}": (array.dtype, array.tobytes())
        for part in ("adapter", "released", "velocity")
        for name, array in getattr(state, part).items()
    }
    rows = [
        (r.round, r.holders, r.evaluated, None if r.histogram is None else r.histogram.tobytes())
        for r in kept.reports
    ]
    return state.round, state.pending, state.holders, state.edges, arrays, rows


MOMENTS = 20  # the start, the edges, five trainings and three evaluations, each before and after


@pytest.fixture
def whole(tmp_path, run_contract) -> Coordinator:
    (tmp_path / "whole").mkdir()
    return Coordinator(tmp_path / "whole", run_contract)


@pytest.mark.parametrize("moment", range(1, MOMENTS + 1))
def test_a_crash_at_any_moment_changes_nothing(tmp_path, run_contract, whole, moment):
    wanted = bits(whole.start())
    home = tmp_path / "home"
    home.mkdir()
    broken = Coordinator(home, run_contract)
    with pytest.raises(Crash):
        broken.start(crashing(moment))
    assert bits(broken.start()) == wanted
    rounds = [report.round for report in broken.told]
    assert sorted(set(rounds)) == rounds  # told once at most, and
    missed = set(range(1, 6)) - set(rounds)
    assert len(missed) <= 1  # one that was kept and not yet told is told by nobody
    last = whole.told[-1]
    if broken.told[-1].round == 5:
        assert broken.told[-1].adapter["w"].tobytes() == last.adapter["w"].tobytes()
    # Whatever was kept is never asked for again; what was not is asked once more, of all three.
    again = len(broken.asked) - len(whole.asked)
    assert again == (0 if moment % 2 == 0 or moment == 1 else 3)


def test_a_run_that_dies_all_the_time_gets_there_with_each_step_that_it_keeps(
    tmp_path, run_contract, whole
):
    wanted = bits(whole.start())
    home = tmp_path / "home"
    home.mkdir()
    broken, starts = Coordinator(home, run_contract), 0
    while True:
        starts += 1
        try:
            # A start keeps where it stands, takes one step, and is gone after that.
            kept = broken.start(crashing(4))
        except Crash:
            continue
        break
    assert bits(kept) == wanted
    assert starts == 10
    assert len(broken.asked) == len(whole.asked)
    trained = [number for kind, number in broken.asked if kind == "train"]
    assert trained == [number for number in range(1, 6) for _ in range(3)]


def test_there_were_as_many_moments(run_contract, whole):
    count = []
    whole.start(count.append)
    assert len(count) == MOMENTS
    assert {report.round for report in whole.told if report.histogram is not None} == {2, 4, 5}
    assert min(report.holders for report in whole.told) == 2
    assert whole.told[0].edges


def test_a_round_with_too_few_answers_can_be_tried_again(tmp_path, run_contract):
    more = dataclasses.replace(run_contract.federation, min_holders=3)
    strict = dataclasses.replace(run_contract, federation=more)
    coordinator = Coordinator(tmp_path, strict)
    for _ in range(2):
        with pytest.raises(CreditError, match="round 3: 2 of 3 holders"):
            coordinator.start()
    assert unfinished(tmp_path, strict, resume=True).state.round == 2
    assert [report.round for report in coordinator.told] == [1, 2]
