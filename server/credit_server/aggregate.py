"""Flower's FedAvg with public weights, answers summed as they come, the contract's schedule."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import CreditError, WireError
from credit_common.sections import Upload
from credit_common.statistics import Edges, edge_arrays
from credit_common.upload import decode
from credit_common.wire import (
    ARRAYS,
    HISTOGRAM,
    METRICS,
    WEIGHT,
    array_record,
    decoded,
    uploaded,
)
from credit_server.mean import ExactSum, WeightedMean

log = logging.getLogger(__name__)

Adapter = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What the coordinator knows after a round.

    Attributes:
        round: From 1.
        holders: How many answered.
        adapter: The adapter that would be released now (the running average).
        histogram: Sum of the holders' noised histograms (2, bins), or None where the schedule has
            no evaluation in this round.
        evaluated: How many histograms were summed.
        edges: Of the fields whose edges are federated, the same in all rounds.
    """

    round: int
    holders: int
    adapter: Adapter
    histogram: NDArray[np.float64] | None
    evaluated: int = 0
    edges: Edges = field(default_factory=dict)


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
    holder that has not answered. An answer with arrays that were not asked for, or numbers beyond
    what can be summed, does not count. A round with fewer answers than the contract's minimum ends
    the run with an error. An exponential average of the global adapter is kept, which is what is
    evaluated and released (post-processing, so it costs no privacy, as is the contract's server
    momentum); federated edges go out beside it.
    """

    def __init__(
        self,
        contract: Contract,
        on_round: Callable[[RoundReport], None],
        edges: Edges | None = None,
        start: State | None = None,
    ) -> None:
        minimum = contract.federation.min_holders
        super().__init__(
            min_train_nodes=minimum,
            min_evaluate_nodes=minimum,
            min_available_nodes=minimum,
            weighted_by_key=WEIGHT,
        )
        self._contract = contract
        self._on_round = on_round
        start = start or State(adapter={})
        self._edges = edges or start.edges or {}
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
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the round's adapters and move the running average."""
        upload = self._contract.training.upload
        mean = WeightedMean({name: array.shape for name, array in self._global.items()})

        def take(reply: Message) -> None:
            mean.add(_adapter_of(upload, self._global, reply), _weight_of(reply))

        self._answered = self._taken(server_round, "train", replies, take)
        fresh = self._moved(mean.value())
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
        return super().configure_evaluate(server_round, released, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Add up the holders' histograms."""
        if not self._due(server_round):
            return None
        bins = self._contract.evaluation.bins
        total = ExactSum(2 * bins)

        def take(reply: Message) -> None:
            total.add(_histogram_of(reply, 2 * bins))

        evaluated = self._taken(server_round, "evaluate", replies, take)
        counts = total.value()
        self._pending = False
        self._report(server_round, counts.reshape(2, bins), evaluated)
        return MetricRecord({HISTOGRAM: counts.tolist()})

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
            )
        )

    def _taken(
        self,
        server_round: int,
        what: str,
        replies: Iterable[Message],
        take: Callable[[Message], None],
    ) -> int:
        """Take the replies one by one; returns how many count."""
        received = valid = 0
        for reply in replies:
            received += 1
            if reply.has_error():
                continue
            try:
                take(reply)
                valid += 1
            except WireError as error:
                log.warning(
                    "the answer of node %d is not used: %s", reply.metadata.src_node_id, error
                )
        minimum = self._contract.federation.min_holders
        if valid < minimum:
            raise CreditError(
                f"round {server_round}: {valid} of {received} holders answered the "
                f"{what} request, the contract needs {minimum}; the others refused (their own "
                "logs say why, for example a budget that is used up)"
            )
        return valid


def _adapter_of(upload: Upload, sent: Adapter, reply: Message) -> Adapter:
    """The adapter that a reply stands for; WireError where it has none.

    Args:
        upload: The contract's.
        sent: The adapter of the request, without edges.
        reply: A holder's.
    """
    # Flower's views (`content.array_records`) are in a reference cycle with the content: a reply
    # that was seen through one stays in memory until the garbage collector comes by.
    record = reply.content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise WireError(f"it carries no arrays named {ARRAYS!r}")
    return decode(upload, uploaded(record), sent)


def _weight_of(reply: Message) -> float:
    weight = _metrics_of(reply).get(WEIGHT)
    if not isinstance(weight, int | float):
        raise WireError("it carries no weight")
    return float(weight)


def _histogram_of(reply: Message, size: int) -> NDArray[np.float64]:
    counts = _metrics_of(reply).get(HISTOGRAM)
    if not isinstance(counts, list) or len(counts) != size:
        raise WireError("it carries no histogram of the contract's bins")
    return np.asarray(counts, np.float64)


def _metrics_of(reply: Message) -> MetricRecord:
    record = reply.content.get(METRICS)
    return record if isinstance(record, MetricRecord) else MetricRecord()
