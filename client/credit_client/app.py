"""A holder as a Flower ClientApp: trains and counts on messages, answers through the gate."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_client.training.examples import Examples
from credit_client.training.hidden import Store
from credit_client.training.loop import score, train
from credit_client.training.randomness import (
    RandomSource,
    SecureRandom,
    SeededRandom,
    add_noise,
)
from credit_common.contract import Contract
from credit_common.errors import PrivacyError, ShardError, WireError
from credit_common.groups import count_all
from credit_common.model import Arrays, CreditModel
from credit_common.privacy import MechanismPlan, check_plan, mechanism_plan
from credit_common.record import Record
from credit_common.statistics import Counts, count_cells, take_edges
from credit_common.upload import Encoded, encode
from credit_common.wire import request_arrays, request_round

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One data holder, ready to answer.

    Attributes:
        train, holdout: Encoded users of each side of the split.
        sampling, noise, rounding: Where Poisson batches, noise, and the stochastic rounding of what
            is sent come from.

    Raises:
        PrivacyError: If the plan is private and a source is not a SecureRandom.
    """

    name: str
    contract: Contract
    plan: MechanismPlan
    model: CreditModel
    gate: Gate
    train: Examples
    holdout: Examples
    sampling: RandomSource = field(default_factory=SecureRandom)
    noise: RandomSource = field(default_factory=SecureRandom)
    rounding: RandomSource = field(default_factory=SecureRandom)

    def __post_init__(self) -> None:
        sources = (self.sampling, self.noise, self.rounding)
        if self.plan.private and not all(isinstance(own, SecureRandom) for own in sources):
            raise PrivacyError("a private holder draws from SecureRandom alone")


def open_holder(
    name: str,
    contract: Contract,
    *,
    size_class: str,
    ledger: Ledger,
    model: CreditModel,
    train_records: Sequence[Record] | Examples,
    holdout_records: Sequence[Record] | Examples,
    user_column: str | None = None,
    allow_no_privacy: bool = False,
    source: SeededRandom | None = None,
    store: Store | None = None,
) -> Holder:
    """Check the plan, encode the records and make a holder.

    Args:
        size_class: Declared by a person; sets the public denominator and weight.
        train_records, holdout_records: Records, or examples that are already encoded by a model
            with the same frozen layers.
        user_column: Column of the shard that users are known by; None for the contract's name.
        source: Randomness of a simulation without privacy; private holders take none.
        store: Where the frozen layers' output is kept; memory without a limit if left out.

    Raises:
        CacheError: If the store's file cannot be made or has no room.
        PrivacyError: If the schedule passes the budget, there is no budget, or a private holder is
            given a source.
        ShardError: If there is no training user.
    """
    plan = mechanism_plan(contract, size_class)
    check_plan(plan)
    gate = Gate(
        contract,
        plan,
        ledger,
        model.schema(),
        user_column=user_column,
        allow_no_privacy=allow_no_privacy,
    )

    def encoded(records: Sequence[Record] | Examples) -> Examples:
        if isinstance(records, Examples):
            return records
        return Examples(model, contract, records, store)

    train_examples = encoded(train_records)
    if len(train_examples) == 0:
        raise ShardError(f"holder {name}: the shard has no usable training user")
    sources = {}
    if source is not None:  # rounding apart: the batches are the same however answers are sent
        sources = {"sampling": source, "noise": source, "rounding": source.beside()}
    holdout_examples = encoded(holdout_records)
    if store is not None and contract.model.reads_text:
        log.info("%s", store.summary())
    return Holder(
        name=name,
        contract=contract,
        plan=plan,
        model=model,
        gate=gate,
        train=train_examples,
        holdout=holdout_examples,
        **sources,
    )


def holder_app(holder: Holder) -> ClientApp:
    """The ClientApp that answers for a holder."""
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        def compute() -> Encoded:
            adapter, resolved = asked(holder, message)
            trained = train(
                holder.model,
                holder.train.under(resolved),
                holder.plan,
                adapter,
                sampling=_fresh(holder.sampling),
                noise=_fresh(holder.noise),
            )
            kind = holder.contract.training.upload
            return encode(kind, trained, adapter, _fresh(holder.rounding).uniform)

        return holder.gate.send_adapter(message, compute)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return holder.gate.send_histogram(message, lambda: noised_histogram(holder, message))

    if holder.contract.federated_fields:

        @app.query()
        def _query(message: Message, context: Context) -> Message:
            return holder.gate.send_statistics(message, lambda: noised_statistics(holder, message))

    return app


def asked(holder: Holder, message: Message) -> tuple[Arrays, Contract]:
    """The adapter of a request, and the contract with the federated edges that came beside it.

    Raises:
        WireError: If arrays are missing.
        ContractError: If edges are not as many as the contract says, rising, and inside the range.
    """
    adapter, edges = take_edges(holder.contract, request_arrays(message))
    return adapter, holder.contract.with_edges(edges)


def noised_histogram(holder: Holder, message: Message) -> NDArray[np.float64]:
    """Counts of the hold-out users by cell (see `count_all`), noised: (2, columns) float64."""
    adapter, resolved = asked(holder, message)
    scores = score(holder.model, holder.holdout.under(resolved), adapter)
    round_, own = request_round(message), holder.holdout
    counts = count_all(holder.contract, scores, own.labels, own.groups, round_)
    return add_noise(
        counts.astype(np.float64), holder.plan.evaluation_noise_multiplier, _fresh(holder.noise)
    )


def noised_statistics(holder: Holder, message: Message) -> Counts:
    """Counts of the training users by cell of each federated field (see `count_cells`), noised.

    Raises:
        WireError: If the request carries arrays: nothing in it has a say in what is counted.
    """
    if request_arrays(message):
        raise WireError("a request for statistics carries no arrays")
    counts = count_cells(holder.contract, holder.train.records)
    sigma = holder.plan.statistics_noise_multiplier
    noise = _fresh(holder.noise)
    return {name: add_noise(cells, sigma, noise) for name, cells in counts.items()}


def _fresh(source: RandomSource) -> RandomSource:
    """A secure source with a new key, for each answer.

    A machine that is resumed twice from one snapshot, taken while the client waits, must not draw
    the same noise for two requests.
    """
    return SecureRandom() if type(source) is SecureRandom else source
