"""One change of a round's, where some of its holders may lie: Flower's own strategies.

A contract that names "trimmed_mean", "median" or "multi_krum" has its answers kept until the round
is over; the mean alone is summed as answers come (`mean`). Then the changes, float64, are handed to
Flower's FedTrimmedAvg, FedMedian or MultiKrum (Yin et al. 2018; Blanchard et al. 2017):

    trimmed_mean  in each coordinate the f largest and f smallest are left out, and the others'
                  mean is taken
    median        in each coordinate the median; of an even number, the mean of the middle two
    multi_krum    each holder's score is the sum of its squared distances to the n - f - 2 others
                  that lie closest; the n - f holders of least score are averaged

FedTrimmedAvg and FedMedian count each holder once and know no weight: a liar of the largest class
has no more say than one of the smallest, and large honest holders have no more either. MultiKrum
chooses without weights and averages those that it chose by their public weights, as FedAvg does.

f is the contract's `byzantine` less the holders that were set aside in this round: those lie no
more. Changes are shortened to what is usual for the holder's size class first
(`plausible.Bound.usual`), so that a liar who stays below what is impossible has no more length than
others may have. Each group's change is told in units of its learning rate, since Krum's distances
would otherwise be of the group that moves fastest alone. Answers are sorted by node id: their order
has no say in any bit.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, MultiKrum
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import WireError
from credit_common.sections import Training
from credit_common.wire import ARRAYS, METRICS, WEIGHT
from credit_server.quarantine import Adapter, Quarantine


class KeptChanges:
    """The changes of a round, kept until it is over.

    Args:
        contract: Names the aggregation.
        base: The adapter of the request.
        quarantine: Says how long a change usually is.
    """

    def __init__(self, contract: Contract, base: Adapter, quarantine: Quarantine) -> None:
        self._training, self._base, self._quarantine = contract.training, base, quarantine
        self._kept: dict[int, tuple[dict[str, NDArray[np.float64]], float]] = {}

    def add(self, node_id: int, adapter: Adapter, weight: float) -> None:
        """Keep a holder's adapter.

        Raises:
            WireError: If names or shapes are others than the request's, the weight is not positive,
                or a number is not finite.
        """
        shapes = {name: array.shape for name, array in self._base.items()}
        if {name: array.shape for name, array in adapter.items()} != shapes:
            raise WireError("it has arrays of other names or shapes than it was asked for")
        if not weight > 0:
            raise WireError("its weight is not positive")
        if not all(np.isfinite(array).all() for array in adapter.values()):
            raise WireError("it has numbers that are not finite", reason="not-finite")
        factors = self._quarantine.shortened(self._base, adapter, weight)
        change = {
            name: (adapter[name].astype(np.float64) - start) * factors[name] / self._unit(name)
            for name, start in self._base.items()
        }
        self._kept[node_id] = (change, weight)

    def value(self, set_aside: int = 0) -> Adapter:
        """The adapter after the round.

        Args:
            set_aside: How many of the liars that the contract allows for were found already.
        """
        liars = max(0, self._training.byzantine - set_aside)
        strategy = _strategy(self._training, len(self._kept), liars)
        kept = [_message(node, *self._kept[node]) for node in sorted(self._kept)]
        found, _ = strategy.aggregate_train(0, kept)
        assert found is not None  # there are answers, and they are all of one form
        return {
            name: (start + found[name].numpy() * self._unit(name)).astype(np.float32)
            for name, start in self._base.items()
        }

    def _unit(self, name: str) -> float:
        return float(getattr(self._training.learning_rate, name.split(".")[0], 1.0))


def _strategy(training: Training, holders: int, liars: int) -> FedAvg:
    if training.aggregation == "trimmed_mean":
        # It cuts int(beta n) at each end: a quarter more keeps rounding from making it one less,
        # and beta below a half for n = 2 f + 1.
        return FedTrimmedAvg(beta=(liars + 0.25) / holders, weighted_by_key=WEIGHT)
    if training.aggregation == "median":
        return FedMedian(weighted_by_key=WEIGHT)
    return MultiKrum(
        num_malicious_nodes=liars, num_nodes_to_select=holders - liars, weighted_by_key=WEIGHT
    )


def _message(node_id: int, change: Mapping[str, NDArray[np.float64]], weight: float) -> Message:
    arrays = ArrayRecord({name: Array(change[name]) for name in sorted(change)})
    content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({WEIGHT: weight})})
    return Message(content, dst_node_id=node_id, message_type="train")
