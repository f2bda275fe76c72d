"""Flower's FedAvg with public weights, a fixed order of summation and the contract's schedule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import CreditError
from credit_common.sections import Upload
from credit_common.statistics import Edges, edge_arrays
from credit_common.upload import decode
from credit_common.wire import ARRAYS, HISTOGRAM, WEIGHT, array_record, decoded, uploaded

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


class CreditFedAvg(FedAvg):
    """FedAvg over all holders of a round, weighted by their public size classes.

    The arithmetic is Flower's. Added: replies are summed in the order of node ids whatever the
    order of arrival; a round with fewer answers than the contract's minimum ends the run with an
    error; an exponential average of the global adapter is kept, which is what is evaluated and
    released (post-processing, so it costs no privacy); federated edges go out beside it.
    """

    def __init__(
        self,
        contract: Contract,
        on_round: Callable[[RoundReport], None],
        edges: Edges | None = None,
    ) -> None:
        minimum = contract.federation.min_holders
        super().__init__(
            min_train_nodes=minimum,
            min_evaluate_nodes=minimum,
            min_available_nodes=minimum,
            weighted_by_key=WEIGHT,
            evaluate_metrics_aggr_fn=sum_histograms,
        )
        self._contract = contract
        self._on_round = on_round
        self._edges = edges or {}
        self._answered = 0
        self._sent = ArrayRecord()
        self.released: Adapter = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for a round of training from the global adapter."""
        self._sent = arrays
        if self._edges:
            arrays = self._asked({name: array.numpy() for name, array in arrays.items()})
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the round's adapters and move the running average."""
        ordered = self._in_order(server_round, "train", replies)
        self._answered = len(ordered)
        upload = self._contract.training.upload
        if upload != "float32":
            for reply in ordered:
                own = _adapter_of(upload, self._sent, reply)
                reply.content[ARRAYS] = array_record(own)
        arrays, metrics = super().aggregate_train(server_round, ordered)
        assert arrays is not None  # there are at least the contract's minimum of replies
        fresh = {name: array.numpy() for name, array in arrays.items()}
        past = self._contract.training.average if self.released else 0.0
        self.released = {
            name: (past * self.released[name] + (1.0 - past) * value if past else value).astype(
                np.float32
            )
            for name, value in fresh.items()
        }
        if not self._due(server_round):
            self._report(server_round, None)
        return arrays, metrics

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
        ordered = self._in_order(server_round, "evaluate", replies)
        metrics = super().aggregate_evaluate(server_round, ordered)
        assert metrics is not None
        counts = np.asarray(metrics[HISTOGRAM], np.float64)
        counts = counts.reshape(2, self._contract.evaluation.bins)
        self._report(server_round, counts, len(ordered))
        return metrics

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

    def _in_order(self, server_round: int, what: str, replies: Iterable[Message]) -> list[Message]:
        received = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        valid = [reply for reply in received if not reply.has_error()]
        minimum = self._contract.federation.min_holders
        if len(valid) < minimum:
            raise CreditError(
                f"round {server_round}: {len(valid)} of {len(received)} holders answered the "
                f"{what} request, the contract needs {minimum}; the others refused (their own "
                "logs say why, for example a budget that is used up)"
            )
        return valid


def _adapter_of(upload: Upload, sent: ArrayRecord, reply: Message) -> Adapter:
    """The adapter that a reply stands for.

    Args:
        upload: The contract's.
        sent: The adapter of the request, without edges.
    """
    return decode(upload, uploaded(reply.content.array_records[ARRAYS]), decoded(sent))


def sum_histograms(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
    """The unweighted sum of the holders' noised counts."""
    rows = [
        np.asarray(next(iter(content.metric_records.values()))[HISTOGRAM], np.float64)
        for content in contents
    ]
    return MetricRecord({HISTOGRAM: [float(x) for x in np.sum(rows, axis=0)]})
