"""Flower's FedAvg as it comes, for comparison: no quarantine, no momentum, no running average."""

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from credit_common.contract import Contract
from credit_common.model import Arrays
from credit_common.wire import WEIGHT, array_record, decoded
from credit_server.aggregate import RoundReport


def stock_app(
    contract: Contract, initial: Arrays, on_round: Callable[[RoundReport], None]
) -> ServerApp:
    """A ServerApp that runs a contract's rounds by Flower's FedAvg; takes float32 uploads alone."""
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        holders = len(list(grid.get_node_ids()))

        def told(round_: int, arrays: ArrayRecord) -> MetricRecord | None:
            if round_:  # 0 is before the first
                adapter = decoded(arrays)
                on_round(
                    RoundReport(round=round_, holders=holders, adapter=adapter, histogram=None)
                )
            return None

        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=holders,
            min_available_nodes=holders,
            weighted_by_key=WEIGHT,
        )
        strategy.start(
            grid=grid,
            initial_arrays=array_record(initial),
            num_rounds=contract.training.rounds,
            evaluate_fn=told,
        )

    return app
