"""Flower's FedAvg with public weights, answers summed as they come, the contract's schedule.

What counts as an answer is `quarantine`'s affair, and how a round that may have liars is made one
change is that of `robust`; the mean of a round that has none is taken here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.groups import count_columns
from credit_common.statistics import Edges, edge_arrays
from credit_common.wire import (
    ARRAYS,
    CONFIG,
    HISTOGRAM,
    ROUND,
    WEIGHT,
    array_record,
    decoded,
)
from credit_server.answers import asked_nodes, taken
from credit_server.mean import ExactSum, WeightedMean
from credit_server.quarantine import Adapter, Quarantine, SetAside, histogram_of
from credit_server.robust import KeptChanges


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What the coordinator knows after a round.

    Attributes:
        round: From 1.
        holders: How many answered.
        adapter: The adapter that would be released now (the running average).
        histogram: Sum of the holders' noised counts (2, columns), see `credit_common.groups`, or
            None where the schedule has no evaluation in this round.
        evaluated: How many histograms were summed.
        edges: Of the fields whose edges are federated, the same in all rounds.
        set_aside: Answers since the round before that did not count: by holder and reason.
    """

    round: int
    holders: int
    adapter: Adapter
    histogram: NDArray[np.float64] | None
    evaluated: int = 0
    edges: Edges = field(default_factory=dict)
    set_aside: SetAside = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a run has come, between two requests: all that its next request depends on.

    Attributes:
        round: Rounds whose training is aggregated; 0 before the first.
        holders: How many answered the last one.
        pending: Whether that round's evaluation is still to come.
        adapter: The global adapter.
        released: The running average; empty before the first round.
        velocity: Of the server's momentum; empty where there is none.
        edges: Of the fields whose edges are federated; None before they are known.
    """

    round: int = 0
    holders: int = 0
    pending: bool = False
    adapter: Mapping[str, NDArray[np.float32]]
    released: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    velocity: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    edges: Edges | None = None


class CreditFedAvg(FedAvg):
    """FedAvg over all holders of a round, weighted by their public size classes.

    Replies are taken one by one as they arrive and are not kept, so that the memory of the sums
    does not grow with the holders; they have the same bits whatever the order (see `mean`). What a
    grid keeps of a round is its own affair: `GrpcGrid` has a packed copy of the request for each
    holder that has not answered. Under a robust aggregation of the contract the replies' changes
    are kept until the round is over (see `robust`). An answer that no honest holder could have
    sent does not count (see `quarantine`). A round with fewer answers than the contract's minimum
    ends the run with an error; those that were set aside count towards it, up to the contract's
    `byzantine`. An exponential average of the global adapter is kept, which is what is evaluated
    and released (post-processing, so it costs no privacy, as is the contract's server momentum);
    federated edges go out beside it.
    """

    def __init__(
        self,
        contract: Contract,
        on_round: Callable[[RoundReport], None],
        edges: Edges | None = None,
        start: State | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        super().__init__(weighted_by_key=WEIGHT)
        self._contract = contract
        self._on_round = on_round
        start = start or State(adapter={})
        self._edges = edges or start.edges or {}
        self._quarantine = quarantine or Quarantine(contract)
        self._round, self._pending, self._answered = start.round, start.pending, start.holders
        self._global: Adapter = dict(start.adapter)
        self._velocity: dict[str, NDArray[np.float64]] = dict(start.velocity)
        self.released: Adapter = dict(start.released)

    def state(self) -> State:
        """How far the run has come; to be asked between two requests."""
        return State(
            round=self._round,
            holders=self._answered,
            pending=self._pending,
            adapter=dict(self._global),
            released=dict(self.released),
            velocity=dict(self._velocity),
            edges=self._edges,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for a round of training from the global adapter."""
        self._global = decoded(arrays)
        if self._edges:
            arrays = self._asked(self._global)
        return self._requests(server_round, "train", arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the round's adapters and move the running average."""
        self._answered, found = self._combined(server_round, replies)
        fresh = self._moved(found)
        past = self._contract.training.average if self.released else 0.0
        self.released = {
            name: (past * self.released[name] + (1.0 - past) * value if past else value).astype(
                np.float32
            )
            for name, value in fresh.items()
        }
        self._global, self._round, self._pending = fresh, server_round, self._due(server_round)
        if not self._pending:
            self._report(server_round, None)
        return array_record(fresh), MetricRecord()

    def _combined(self, server_round: int, replies: Iterable[Message]) -> tuple[int, Adapter]:
        """How many answers count, and the adapter that the contract's aggregation makes of them."""
        if self._contract.training.aggregation == "mean":
            mean = WeightedMean({name: array.shape for name, array in self._global.items()})

            def add(reply: Message) -> None:
                mean.add(*self._quarantine.admit(self._global, reply))

            answered, _ = self._taken(server_round, "train", replies, add)
            return answered, mean.value()
        kept = KeptChanges(self._contract, self._global, self._quarantine)

        def keep(reply: Message) -> None:
            kept.add(reply.metadata.src_node_id, *self._quarantine.admit(self._global, reply))

        answered, aside = self._taken(server_round, "train", replies, keep)
        return answered, kept.value(aside)

    def _moved(self, mean: Adapter) -> Adapter:
        """The global adapter after the round; under plain FedAvg the mean itself."""
        training = self._contract.training
        rate, momentum = training.server_learning_rate, training.server_momentum
        if (rate, momentum) == (1.0, 0.0):
            return mean
        moved = {}
        for name, value in mean.items():
            start = self._global[name].astype(np.float64)
            change = value.astype(np.float64) - start
            self._velocity[name] = momentum * self._velocity.get(name, 0.0) + change
            moved[name] = (start + rate * self._velocity[name]).astype(np.float32)
        return moved

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for histograms of the released adapter, on the contract's schedule alone."""
        if not self._due(server_round):
            return []
        released = self._asked(self.released)
        return self._requests(server_round, "evaluate", released, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the holders' histograms."""
        if not self._due(server_round):
            return None
        columns = count_columns(self._contract, server_round)
        total = ExactSum(2 * columns)

        def take(reply: Message) -> None:
            total.add(histogram_of(reply, 2 * columns))

        evaluated, _ = self._taken(server_round, "evaluate", replies, take)
        counts = total.value()
        self._pending = False
        self._report(server_round, counts.reshape(2, columns), evaluated)
        return MetricRecord({HISTOGRAM: counts.tolist()})

    def _requests(
        self, server_round: int, what: str, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A request to each holder that is there now.

        Flower's own looks twice, and where one has left in between, it waits without end for as
        many as it saw first. Whether they are enough is seen from their answers.
        """
        config[ROUND] = server_round
        content = RecordDict({ARRAYS: arrays, CONFIG: config})
        return [
            Message(content, dst_node_id=node, message_type=what)
            for node in asked_nodes(self._contract, grid)
        ]

    def _asked(self, adapter: Adapter) -> ArrayRecord:
        return array_record({**adapter, **edge_arrays(self._edges)})

    def _due(self, server_round: int) -> bool:
        return self._contract.evaluation.due(server_round, self._contract.training.rounds)

    def _report(
        self, server_round: int, histogram: NDArray[np.float64] | None, evaluated: int = 0
    ) -> None:
        self._on_round(
            RoundReport(
                round=server_round,
                holders=self._answered,
                adapter=dict(self.released),
                histogram=histogram,
                edges=self._edges,
                evaluated=evaluated,
                set_aside=self._quarantine.drain(),
            )
        )

    def _taken(
        self,
        server_round: int,
        what: str,
        replies: Iterable[Message],
        take: Callable[[Message], None],
    ) -> tuple[int, int]:
        asked = (f"round {server_round}", what)
        return taken(self._contract, self._quarantine, asked, replies, take)
