"""A holder's part in a federation: from its shard to the release in its own folder."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from credit_client.cache import Cache, remove_left_over
from credit_client.gate import Exit
from credit_client.heads import OwnHeads
from credit_client.identity import Identity
from credit_client.ledger import Ledger
from credit_client.link import Link
from credit_client.mapping import ShardMapping
from credit_client.preflight import check_floors
from credit_client.shard import Shard, read_shard, write_rejects
from credit_common import federation_pb2 as pb
from credit_common.claim import Facts, schedule_epsilon
from credit_common.contract import Contract
from credit_common.errors import LinkError, PrivacyError, ShardError
from credit_common.evaluation import rows_of
from credit_common.privacy import NO_PRIVACY, check_plan, mechanism_plan
from credit_common.protocol import head_of, largest_arrays
from credit_common.release import new_release_folder, write_release
from credit_common.statistics import take_edges
from credit_common.wire import unpack_adapter, unpack_histogram

log = logging.getLogger(__name__)

Tell = Callable[..., None]
"""Called with an event's name and its facts: ready, connected, waiting, answered, done."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the holder's person decides at the start.

    Attributes:
        mapping: Columns and codes of the shard in the contract's terms.
        max_epsilon, max_delta: The most that a contract may ask for; None allows anything.
        allow_no_privacy: Whether a contract without a budget is accepted at all.
        seed: Of sampling, without privacy only.
        device: Where the model runs: auto, cpu, cuda or mps.
        threads: CPU threads of torch; None leaves it to torch.
        cache: Where the frozen layers' output of the shard's texts is kept, and how much of it.
    """

    mapping: ShardMapping | None = None
    max_epsilon: float | None = None
    max_delta: float | None = None
    allow_no_privacy: bool = False
    seed: int | None = None
    device: str = "auto"
    threads: int | None = None
    cache: Cache = field(default_factory=Cache)


def participate(
    identity: Identity, shard_path: Path, address: str, *, terms: Terms, tell: Tell
) -> Path:
    """Train and answer until the federation is done.

    All that can be wrong at this holder is looked at before anything is sent, and whether the
    coordinator would let it in before the long work of encoding begins.

    Args:
        identity: The holder's own folder, opened.
        shard_path: Its data.
        address: HOST:PORT of the coordinator.
        terms: What its person decided.
        tell: Told what happens.

    Returns:
        The folder of the release, in the holder's own folder.

    Raises:
        CreditError: Whatever contract, shard, ledger, certificate or coordinator refuse.
    """
    contract = identity.bundle.contract
    check_floors(contract, terms.max_epsilon, terms.max_delta)
    if not contract.privacy.private and not terms.allow_no_privacy:
        raise PrivacyError(NO_PRIVACY)
    if contract.privacy.private and terms.seed is not None:
        raise PrivacyError("--seed is for a contract without privacy alone: noise has no seed")
    shard = read_shard(shard_path, contract, mapping=terms.mapping)
    log.info("%s: %s", shard_path.name, shard.summary())
    _keep_rejects(identity, shard)
    if not shard.train:
        raise ShardError(f"{shard_path}: the shard has no usable training user")
    check_plan(mechanism_plan(contract, identity.subject.size_class))
    private = contract.privacy.private
    # Opened before anything is sent: a ledger that is not whole releases nothing.
    ledger = Ledger.open(identity.ledger_path, identity.witness) if private else Ledger.in_memory()
    with contextlib.ExitStack() as closing:
        closing.callback(ledger.close)
        files, size = remove_left_over(identity.home)
        if files:
            log.info(
                "removed the caches that killed clients left: %d, of %s bytes", files, f"{size:,}"
            )
        heads = OwnHeads(identity, ledger) if private else None
        was_in = _knock(identity, address, heads)
        return _take_part(
            identity,
            shard,
            address,
            ledger,
            heads,
            was_in=was_in,
            terms=terms,
            tell=tell,
            closing=closing,
        )


def _take_part(
    identity: Identity,
    shard: Shard,
    address: str,
    ledger: Ledger,
    heads: OwnHeads | None,
    *,
    was_in: bool,
    terms: Terms,
    tell: Tell,
    closing: contextlib.ExitStack,
) -> Path:
    contract, name = identity.bundle.contract, identity.subject.name
    private = contract.privacy.private

    # torch takes seconds to import: what can be wrong before is looked at before.
    from credit_client.app import holder_app, open_holder
    from credit_client.training.hidden import Store
    from credit_client.training.randomness import SeededRandom
    from credit_common.backbone import resolve_backbone
    from credit_common.device import device_of
    from credit_common.model import CreditModel

    if terms.threads is not None:
        import torch

        torch.set_num_threads(terms.threads)
    backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
    model = CreditModel(contract, backbone, device_of(terms.device))
    source = None
    if terms.seed is not None:
        source = SeededRandom(terms.seed, mechanism_plan(contract, identity.subject.size_class))
    store = closing.enter_context(Store(terms.cache))
    holder = open_holder(
        name,
        contract,
        size_class=identity.subject.size_class,
        ledger=ledger,
        model=model,
        train_records=[example.record for example in shard.train],
        holdout_records=[example.record for example in shard.holdout],
        user_column=(terms.mapping or ShardMapping()).column(contract.record.user),
        allow_no_privacy=terms.allow_no_privacy,
        source=source,
        store=store,
    )
    tell("ready", train=len(shard.train), holdout=len(shard.holdout))

    def answered(request: pb.Request, reply: pb.Reply) -> None:
        tell(
            "answered",
            round=request.round,
            kind=pb.Kind.Name(request.kind).lower(),
            refused=reply.WhichOneof("outcome") == "refused",
            epsilon=_told(ledger, contract) if private else None,
        )
        store.check()  # a damaged cache ends the client; started again, it builds another

    array_bytes = largest_arrays(contract, model.initial_adapter())
    if not private:  # what leaves without noise is remembered for ever
        with Ledger.open(identity.ledger_path, identity.witness) as durable:
            durable.note_open_run(contract.digest)
    exit_ = Exit(identity.manifest, ledger)
    with Link(identity, address, array_bytes, exit_=exit_, heads=heads) as link:
        finished = link.work(
            holder_app(holder),
            was_in=was_in,
            on_connected=lambda: tell("connected", address=address),
            on_waiting=lambda reason, seconds: tell("waiting", reason=reason, seconds=seconds),
            on_answered=answered,
        )
    _check_whole(contract, finished)
    spent = _told(ledger, contract) if private else None
    schedule = schedule_epsilon(contract, finished.rounds)
    edges = unpack_adapter(finished.edges) if contract.federated_fields else {}
    histogram = unpack_histogram(finished.histogram) if finished.histogram else None
    folder = new_release_folder(identity.home)
    write_release(
        folder,
        identity.bundle.contract_text,
        model,
        unpack_adapter(finished.adapter),
        Facts(
            rounds=finished.rounds,
            holders=finished.holders,
            histogram=rows_of(histogram),
            evaluated=finished.evaluated,
            epsilon=schedule and schedule[0],
            holdout_epsilon=schedule and schedule[1],
            created=finished.created,
            heads=tuple(head_of(head) for head in finished.heads),
        ),
        take_edges(contract, edges)[1],
    )
    tell("done", release=folder, epsilon=spent, delta=contract.privacy.delta)
    return folder


def _check_whole(contract: Contract, finished: pb.Finished) -> None:
    """Refuse the end of a run before its last round: its release would tell too little ε.

    A coordinator ends a run with all rounds or with an error; what it says of them is its word.
    """
    rounds = contract.training.rounds
    if finished.rounds != rounds:
        raise LinkError(
            f"the coordinator ended the run with rounds = {finished.rounds}: must be the "
            f"contract's {rounds}; no release was written"
        )


def _told(ledger: Ledger, contract: Contract) -> float | None:
    """ε spent so far; None where entries were lost, since nobody knows then."""
    unknown = bool(ledger.balance.overrides)
    return None if unknown else ledger.epsilon_overall(contract.privacy.delta)


def _keep_rejects(identity: Identity, shard: Shard) -> None:
    path = identity.home / f"{identity.subject.name}.rejects.csv"
    if shard.rejects:
        write_rejects(path, shard.rejects)
        log.info("%d rejected rows are listed in %s", len(shard.rejects), path)


def _knock(identity: Identity, address: str, heads: OwnHeads | None) -> bool:
    """Stop at once where the coordinator would never let this holder in; returns whether it did."""
    with Link(identity, address, 0, heads=heads) as link:
        try:
            link.join()
        except LinkError as error:
            if error.final:
                raise
            log.info("%s; encoding meanwhile", error)
            return False
    return True
