"""A federation in one process: holders from shards, and the live apps over a LoopGrid."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from numpy.typing import NDArray

from credit_client.app import Holder, holder_app, open_holder
from credit_client.ledger import Ledger
from credit_client.mapping import ShardMapping
from credit_client.shard import Shard, read_shard
from credit_client.training.examples import Examples
from credit_client.training.loop import score
from credit_client.training.randomness import SeededRandom
from credit_common.contract import Contract
from credit_common.errors import ShardError
from credit_common.evaluation import Figure, read_released
from credit_common.groups import GroupGaps, read_groups
from credit_common.model import Arrays, CreditModel
from credit_common.privacy import mechanism_plan
from credit_common.statistics import Edges
from credit_common.upload import upload_bytes
from credit_common.wire import SERVER_NODE
from credit_server.aggregate import RoundReport
from credit_server.app import coordinator_app
from credit_server.quarantine import Quarantine
from credit_simulations.loop import run_in_process

Wrap = Callable[[Holder, ClientApp], ClientApp]
Serve = Callable[[Contract, Arrays, Callable[[RoundReport], None]], ServerApp]


@dataclass(frozen=True, kw_only=True)
class Party:
    """One holder of a simulation.

    Attributes:
        size_class: What its person would declare.
        train, holdout: Its encoded users.
    """

    name: str
    size_class: str
    train: Examples
    holdout: Examples


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A line of the live table.

    Attributes:
        figures: From the released DP histograms (see `read_released`); empty where none was due.
        epsilon: The largest spend of any holder so far, by its ledger.
        intervals: Ends of each figure's .95 interval, by the figure's name.
        groups: How groups fare, after the last round of a contract that counts by them.
        set_aside: Holder -> reason -> answers that did not count (see `credit_server.quarantine`).
    """

    round: int
    holders: int
    figures: Mapping[str, float]
    epsilon: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    groups: tuple[GroupGaps, ...] = ()
    set_aside: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulated federation ends with.

    Attributes:
        adapter: The released adapter.
        epsilon: The largest spend of any holder, by its ledger.
        history: One line a round.
        bytes_up: Bytes that one holder sends in a training round.
        seconds: Wall time of the rounds.
        edges: Of the fields whose edges are federated.
    """

    adapter: Arrays
    epsilon: float
    history: tuple[Progress, ...]
    bytes_up: int
    seconds: float
    edges: Edges = field(default_factory=dict)


def nearest_size_class(contract: Contract, users: int) -> str:
    """The class nearest in ratio, as the person who declares it might choose it.

    Only simulations call this: a live holder's class is declared, never computed.
    """
    classes = dict(contract.privacy.size_classes)
    return min(classes, key=lambda name: abs(math.log(classes[name] / max(users, 1))))


def read_shards(
    contract: Contract, paths: Mapping[str, Path], mapping: ShardMapping | None = None
) -> dict[str, Shard]:
    """Read one shard a holder, by holder name in order.

    Raises:
        ShardError: If a file cannot be used, or has no training or no hold-out user.
    """
    shards = {}
    for name in sorted(paths):
        shard = read_shard(paths[name], contract, mapping=mapping)
        if not shard.train or not shard.holdout:
            raise ShardError(
                f"{paths[name]}: {len(shard.train)} training and {len(shard.holdout)} hold-out "
                f"users of {shard.rows} rows, {len(shard.rejects)} rejected; both must be positive"
            )
        shards[name] = shard
    return shards


def make_parties(
    contract: Contract,
    shards: Mapping[str, Shard],
    model: CreditModel,
    on_holder: Callable[[str], None] = lambda name: None,
) -> list[Party]:
    """Encode every shard with the resident model, which runs the frozen layers once."""
    parties = []
    for name, shard in shards.items():
        parties.append(
            Party(
                name=name,
                size_class=nearest_size_class(contract, len(shard.train)),
                train=Examples(model, contract, [e.record for e in shard.train]),
                holdout=Examples(model, contract, [e.record for e in shard.holdout]),
            )
        )
        on_holder(name)
    return parties


def simulate(
    contract: Contract,
    parties: Sequence[Party],
    model: CreditModel,
    *,
    ledgers: Path,
    allow_no_privacy: bool = False,
    seed: int = 0,
    on_round: Callable[[Progress], None] = lambda progress: None,
    wrap: Wrap | None = None,
    serve: Serve | None = None,
) -> Outcome:
    """Train a global adapter with the live apps over a LoopGrid.

    Args:
        ledgers: Folder of the holders' ledgers; one file a holder, made where missing.
        seed: Of sampling, at epsilon = infinity only; a private run cannot be seeded.
        on_round: Called after each round.
        wrap: Gives the app that answers for a holder instead of its own one.
        serve: Makes another ServerApp than the coordinator's.

    Raises:
        PrivacyError: If the contract has no budget and `allow_no_privacy` is not set, or a ledger
            refuses.
    """
    start = time.perf_counter()
    private, delta = contract.privacy.private, contract.privacy.delta
    books: dict[str, Ledger] = {}
    history: list[Progress] = []
    adapter: dict[str, NDArray[np.float32]] = {}
    edges: dict[str, tuple[float, ...]] = {}
    names = sorted(party.name for party in parties)  # as LoopGrid numbers them

    def report(done: RoundReport) -> None:
        adapter.update(done.adapter)
        edges.update(done.edges)
        spent = max(book.epsilon_overall(delta) for book in books.values())
        found: Mapping[str, Figure] = {}
        groups: tuple[GroupGaps, ...] = ()
        if done.histogram is not None:
            found = read_released(contract, done.histogram, done.evaluated)
            groups = read_groups(contract, done.histogram, done.evaluated)
        line = Progress(
            round=done.round,
            holders=done.holders,
            figures={name: figure.value for name, figure in found.items()},
            epsilon=spent,
            intervals={name: (figure.low, figure.high) for name, figure in found.items()},
            groups=groups,
            set_aside=done.set_aside,
        )
        history.append(line)
        on_round(line)

    try:
        apps = {}
        for index, party in enumerate(parties):
            books[party.name] = (
                _ledger(ledgers / f"{party.name}.ledger") if private else (Ledger.in_memory())
            )
            plan = mechanism_plan(contract, party.size_class)
            holder = open_holder(
                party.name,
                contract,
                size_class=party.size_class,
                ledger=books[party.name],
                model=model,
                train_records=party.train,
                holdout_records=party.holdout,
                allow_no_privacy=allow_no_privacy,
                source=None if private else SeededRandom(1000 * seed + index, plan),
            )
            own = holder_app(holder)
            apps[party.name] = own if wrap is None else wrap(holder, own)
        initial = model.initial_adapter()
        if serve is not None:
            server = serve(contract, initial, report)
        else:
            shapes = {name: array.shape for name, array in initial.items()}
            server = coordinator_app(
                contract,
                initial,
                report,
                allow_no_privacy=allow_no_privacy,
                quarantine=Quarantine(contract, shapes, lambda node: names[node - SERVER_NODE - 1]),
            )
        run_in_process(server, apps)
    finally:
        for book in books.values():
            book.close()
    return Outcome(
        adapter=adapter,
        epsilon=history[-1].epsilon,
        history=tuple(history),
        bytes_up=upload_bytes(contract.training.upload, model.schema()),
        seconds=time.perf_counter() - start,
        edges=edges,
    )


def under_edges(contract: Contract, parties: Sequence[Party], edges: Edges) -> list[Party]:
    """The parties with the wide features of a federation's edges; the same ones if it has none."""
    resolved = contract.with_edges(edges)
    return [
        replace(p, train=p.train.under(resolved), holdout=p.holdout.under(resolved))
        for p in parties
    ]


def holdout_scores(
    model: CreditModel, parties: Sequence[Party], adapter: Arrays
) -> dict[str, NDArray[np.float32]]:
    """Raw scores (n, outputs) of the hold-out users, which only a simulation sees together."""
    return {party.name: score(model, party.holdout, adapter) for party in parties}


def _ledger(path: Path) -> Ledger:
    return Ledger.open(path) if path.exists() else Ledger.create(path)
