"""The coordinator as a Flower ServerApp."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from credit_common.contract import Contract
from credit_common.errors import PrivacyError
from credit_common.model import Arrays
from credit_common.privacy import NO_PRIVACY
from credit_common.wire import array_record
from credit_server.aggregate import CreditFedAvg, RoundReport, State
from credit_server.answers import TooFewError
from credit_server.own_grid import OwnGrid
from credit_server.quarantine import Quarantine
from credit_server.statistics import federated_edges
from credit_server.waits import ATTEMPTS

T = TypeVar("T")

log = logging.getLogger(__name__)
logging.getLogger("flwr").setLevel(logging.ERROR)  # its round banners; errors still show

Keep = Callable[[State, RoundReport | None], None]
"""Told how far the run has come, before anything is asked that depends on it, and of the round that
is done by that, if one is."""


def coordinator_app(
    contract: Contract,
    initial: Arrays,
    on_round: Callable[[RoundReport], None],
    *,
    allow_no_privacy: bool = False,
    start: State | None = None,
    keep: Keep = lambda state, done: None,
    quarantine: Quarantine | None = None,
) -> ServerApp:
    """The ServerApp that runs a contract's statistics, where it asks for any, and its rounds.

    Args:
        contract: Sets rounds, schedule and minimum of holders.
        initial: The public adapter that the federation starts from.
        on_round: Called after each round, once it is kept.
        allow_no_privacy: Whether a contract without a budget is run at all.
        start: Where a run goes on; None begins one.
        keep: Keeps the state.
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
        at = start or State(adapter=initial)
        if at.edges is None:
            keep(at, None)
            edges = _answered(grid, partial(federated_edges, contract, grid, quarantine))
            at = dataclasses.replace(at, edges=edges)
        _run_rounds(contract, at, grid, on_round, keep, quarantine)

    return app


def _run_rounds(
    contract: Contract,
    at: State,
    grid: Grid,
    on_round: Callable[[RoundReport], None],
    keep: Keep,
    quarantine: Quarantine,
) -> None:
    """What `Strategy.start` of Flower does, from any point of a run on."""
    done: list[RoundReport] = []
    strategy = CreditFedAvg(contract, done.append, start=at, quarantine=quarantine)
    longest = contract.federation.answer_seconds

    def settle() -> None:
        report = done.pop() if done else None
        keep(strategy.state(), report)
        if report is not None:
            on_round(report)

    def train(number: int, arrays: ArrayRecord) -> ArrayRecord:
        asked = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        trained, _ = strategy.aggregate_train(number, grid.send_and_receive(asked, timeout=longest))
        assert trained is not None  # too few answers are an error
        return trained

    def evaluate(number: int, arrays: ArrayRecord) -> ArrayRecord:
        asked = strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
        strategy.aggregate_evaluate(number, grid.send_and_receive(asked, timeout=longest))
        return arrays

    settle()
    arrays = array_record(at.adapter)
    first = at.round if at.pending else at.round + 1
    for number in range(first, contract.training.rounds + 1):
        if number > at.round:
            arrays = _answered(grid, partial(train, number, arrays))
            settle()
        if contract.evaluation.due(number, contract.training.rounds):
            _answered(grid, partial(evaluate, number, arrays))
            settle()


def _answered(grid: Grid, ask: Callable[[], T]) -> T:
    """Ask; where too few answer, ask again once somebody is back who had not answered.

    It is the same question under the same ids: who has answered it repeats the bytes that its
    ledger keeps, and is not charged again.
    """
    for _ in range(1, ATTEMPTS):
        try:
            return ask()
        except TooFewError as error:
            if not (isinstance(grid, OwnGrid) and grid.wait_for_others(error.heard)):
                raise
            log.warning("%s; others are back: asked again", error)
    return ask()
