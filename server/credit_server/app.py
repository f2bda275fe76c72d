"""The coordinator as a Flower ServerApp."""

import logging
from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.model import Arrays
from credit_common.privacy import NO_PRIVACY
from credit_common.wire import array_record
from credit_server.aggregate import CreditFedAvg, RoundReport
from credit_server.quarantine import Quarantine
from credit_server.statistics import federated_edges

logging.getLogger("flwr").setLevel(logging.ERROR)  # its round banners; errors still show


def coordinator_app(
    contract: Contract,
    initial: Arrays,
    on_round: Callable[[RoundReport], None],
    *,
    allow_no_privacy: bool = False,
    quarantine: Quarantine | None = None,
) -> ServerApp:
    """The ServerApp that runs a contract's statistics, where it asks for any, and its rounds.

    Args:
        contract: Sets rounds, schedule and minimum of holders.
        initial: The public adapter that the federation starts from.
        on_round: Called after each round.
        allow_no_privacy: Whether a contract without a budget is run at all.
        quarantine: The grid's, where it has one: rounds tell what either set aside.

    Raises:
        PrivacyError: If the contract has no budget and that is not allowed.
    """
    if not contract.privacy.private and not allow_no_privacy:
        raise PrivacyError(NO_PRIVACY)
    shapes = {name: array.shape for name, array in initial.items()}
    quarantine = quarantine or Quarantine(contract, shapes)
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        edges = federated_edges(contract, grid, quarantine)
        strategy = CreditFedAvg(contract, on_round, edges, quarantine)
        strategy.start(
            grid=grid,
            initial_arrays=array_record(initial),
            num_rounds=contract.training.rounds,
            timeout=contract.federation.answer_seconds,
        )

    return app
