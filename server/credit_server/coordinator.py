"""A run of the coordinator: from its folder to the release."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from credit_common import federation_pb2 as pb
from credit_common.backbone import resolve_backbone
from credit_common.bundle import Bundle
from credit_common.claim import Facts, schedule_epsilon
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.errors import CreditError, LinkError, PrivacyError
from credit_common.evaluation import figures_to_json, read_psi, read_released, rows_of
from credit_common.groups import groups_to_json, read_groups
from credit_common.heads import Head
from credit_common.model import CreditModel, check_adapter
from credit_common.privacy import NO_PRIVACY, check_plan, mechanism_plan
from credit_common.protocol import largest_arrays, to_head
from credit_common.release import new_release_folder, write_release
from credit_common.stability import psi_band
from credit_common.statistics import edge_arrays
from credit_common.upload import blank_upload
from credit_common.wire import HISTOGRAM, pack
from credit_server.aggregate import RoundReport
from credit_server.app import coordinator_app
from credit_server.authority import open_authority
from credit_server.checkpoint import Checkpoint, Closing, Keeper, new_run
from credit_server.enrol import Registry
from credit_server.grid import GrpcGrid
from credit_server.heads import Heads
from credit_server.service import Service

Tell = Callable[..., None]
"""Called with an event's name and its facts (see `credit_server.report`)."""


def run(
    home: Path,
    bundle: Bundle,
    begun: Checkpoint | None = None,
    *,
    listen: str,
    device: str = "auto",
    allow_no_privacy: bool = False,
    tell: Tell,
) -> Path:
    """Serve the federation of a folder until its rounds are done.

    Each step is kept in the folder, so that another process can go on with it.

    Args:
        home: The coordinator's folder, made by `flower-server init`, and locked (see `lock`).
        bundle: What its holders accepted.
        begun: The run that the folder keeps, to go on with (see `checkpoint.unfinished`); None
            begins one.
        listen: HOST:PORT; port 0 takes a free one.
        device: Where the model is built; the coordinator trains nothing.
        allow_no_privacy: Whether a contract without a budget is run at all.
        tell: Told what happens.

    Returns:
        The folder of the release.

    Raises:
        CreditError: Whatever the contract, the backbone, the address or too few holders refuse.
    """
    start = time.monotonic()
    contract = bundle.contract
    if not contract.privacy.private and not allow_no_privacy:
        raise PrivacyError(NO_PRIVACY)
    check_plan(mechanism_plan(contract, contract.privacy.size_classes[0][0]))
    keeper = Keeper(home, begun or new_run(contract))
    authority, registry, heads = open_authority(home), Registry(home), Heads(home)

    def enrolled() -> dict[str, int]:
        return {h.name: h.node_id for h in registry.holders().values() if not h.revoked}

    backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
    model = CreditModel(contract, backbone, device_of(device), "float32")
    initial = model.initial_adapter()
    if begun is not None:
        check_adapter(model.schema(), begun.state.adapter)
    array_bytes = largest_arrays(contract, initial)
    grid = GrpcGrid(contract, model.schema(), enrolled, keeper.kept.run)
    history = _History(contract, tell, keeper.kept.reports)
    trained = len(keeper.kept.reports) == contract.training.rounds  # all that is left is to tell
    with Service(
        contract,
        registry,
        grid,
        heads,
        authority=authority,
        server_name=bundle.server_name,
        listen=listen,
        array_bytes=array_bytes,
    ) as service:
        host = listen.rpartition(":")[0]
        tell(
            "listening",
            federation=contract.federation.name,
            contract_digest=contract.digest,
            address=f"{host}:{service.port}",
            enrolled=len(enrolled()),
        )
        if begun is not None:
            tell("resumed", round=len(begun.reports), rounds=contract.training.rounds)
        try:
            if not trained:
                grid.wait_for_start(
                    lambda here, missing: tell(
                        "waiting",
                        connected=len(here),
                        enrolled=len(here) + len(missing),
                        minimum=contract.federation.min_holders,
                        missing=missing,
                    )
                )
                history.begin()
                server = coordinator_app(
                    contract,
                    initial,
                    history.add,
                    allow_no_privacy=allow_no_privacy,
                    start=None if begun is None else begun.state,
                    keep=keeper.settle,
                    quarantine=grid.quarantine,
                )
                server(grid, grid.context)
            folder, facts = _released(home, bundle, keeper, history, heads, model)
        except CreditError as error:
            tell("failed", reason=str(error))
            raise
        last = history.last
        histogram = last.histogram
        grid.finish(
            pb.Finished(
                rounds=facts.rounds,
                holders=facts.holders,
                adapter=pack(last.adapter),
                edges=pack(edge_arrays(last.edges)) if last.edges else b"",
                created=facts.created,
                histogram=b"" if histogram is None else pack({HISTOGRAM: histogram}),
                evaluated=facts.evaluated,
                heads=[to_head(head) for head in facts.heads],
            ),
            again=trained,
        )
        keeper.over()
    tell(
        "done",
        release=folder,
        rounds=facts.rounds,
        holders=facts.holders,
        **history.figures(last),
        seconds=time.monotonic() - start,
        bytes_up=len(pack(blank_upload(contract.training.upload, model.schema()))),
    )
    return folder


def _released(
    home: Path,
    bundle: Bundle,
    keeper: Keeper,
    history: "_History",
    heads: Heads,
    model: CreditModel,
) -> tuple[Path, Facts]:
    """Write the release, or find the one from before a crash: all are told of the same one."""
    closing = keeper.kept.closing
    if closing is None:
        closing = Closing(
            release=new_release_folder(home).name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            heads=heads.under(bundle.contract.digest),
        )
        keeper.close(closing)
    facts = history.facts(closing.heads, closing.created)
    folder = new_release_folder(home).with_name(closing.release)
    if not folder.exists():  # it is written whole or not at all
        last = history.last
        write_release(folder, bundle.contract_text, model, last.adapter, facts, last.edges)
    return folder, facts


class _History:
    """The rounds so far.

    Args:
        past: Reports of those before a crash.
    """

    def __init__(self, contract: Contract, tell: Tell, past: Iterable[RoundReport] = ()) -> None:
        self._contract, self._tell = contract, tell
        self._since = 0.0
        self._rounds = list(past)

    def begin(self) -> None:
        self._since = time.monotonic()

    def add(self, done: RoundReport) -> None:
        self._rounds.append(done)
        now = time.monotonic()
        spent = schedule_epsilon(self._contract, done.round)
        self._tell(
            "round",
            round=done.round,
            rounds=self._contract.training.rounds,
            holders=done.holders,
            **self.figures(done),
            psi=self._psi(done),
            set_aside=done.set_aside,
            epsilon=spent and max(spent),  # of any user: training or hold-out
            seconds=now - self._since,
        )
        self._since = now

    @property
    def last(self) -> RoundReport:
        if not self._rounds:
            raise LinkError("no round was completed")
        return self._rounds[-1]

    def figures(self, done: RoundReport) -> dict[str, Any]:
        """What an event says of a round's counts: `figures`, `intervals`, and what groups give."""
        if done.histogram is None:
            return figures_to_json({})
        told = figures_to_json(read_released(self._contract, done.histogram, done.evaluated))
        gaps = read_groups(self._contract, done.histogram, done.evaluated)
        return {**told, "fairness": groups_to_json(gaps)} if gaps else told

    def facts(self, heads: tuple[Head, ...], created: str) -> Facts:
        done = self.last
        spent = schedule_epsilon(self._contract, done.round)
        return Facts(
            rounds=done.round,
            holders=min(each.holders for each in self._rounds),
            histogram=rows_of(done.histogram),
            evaluated=done.evaluated,
            epsilon=spent and spent[0],
            holdout_epsilon=spent and spent[1],
            created=created,
            heads=heads,
        )

    def _psi(self, done: RoundReport) -> dict[str, Any] | None:
        """How far the scores have moved since the first evaluation; None where none came before."""
        first = next(each for each in self._rounds if each.histogram is not None or each is done)
        if first is done or first.histogram is None or done.histogram is None:
            return None
        found = read_psi(
            self._contract, (first.histogram, first.evaluated), (done.histogram, done.evaluated)
        )
        low, high = psi_band(found.low), psi_band(found.high)
        told = {name: round(value, 6) for name, value in vars(found).items()}
        return {**told, "band": low if low == high else "unclear"}
