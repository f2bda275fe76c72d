"""A federation of processes on this machine: homes, enrolment, and the commands that run it.

    HOME/coordinator/   authority, contract, list of holders, releases; flower-server.log
    HOME/SHOP/          key, certificate, ledger, shard; credit-client.log
    HOME/state/         witnesses of the shops' ledgers

Enrolment calls what the commands call, in one process, since one person plays all parts here.
"""

import atexit
import math
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from credit_client.identity import request
from credit_common.bundle import Bundle, read_bundle, write_bundle
from credit_common.contract import load_contract
from credit_common.release import open_release
from credit_server.authority import create_authority
from credit_server.enrol import enrol
from credit_simulations.federation import Outcome, Progress, nearest_size_class, read_shards
from credit_simulations.processes import Children, Event
from credit_simulations.runs import Watcher

HOST = "127.0.0.1"
SERVER = "flower-server"
COORDINATOR = "coordinator"


@dataclass(frozen=True, kw_only=True)
class Live:
    """What the processes leave behind.

    Attributes:
        outcome: As of a simulated federation; epsilon is the largest of the holders' own words,
            bytes_up the arrays of one answer, seconds those of the rounds.
        release: Folder of the released model, in the coordinator's.
        seconds: Wall time by part.
    """

    outcome: Outcome
    release: Path
    seconds: Mapping[str, float]


def found(home: Path, contract: Path, shards: Mapping[str, Path]) -> dict[str, Path]:
    """Make a coordinator's home and one for each holder, all enrolled.

    Args:
        home: A folder that is there.
        contract: The federation file; the coordinator gets a copy.
        shards: File of each holder by name; its home gets a copy.

    Returns:
        The copies of the shards by name.

    Raises:
        CreditError: If a shard cannot be used, or a name is no holder's.
    """
    coordinator = home / COORDINATOR
    coordinator.mkdir(mode=0o700)
    shutil.copy(contract, coordinator / "federation.toml")
    agreed = load_contract(contract)
    authority = create_authority(coordinator, agreed.federation.name)
    bundle = Bundle(
        federation=agreed.federation.name,
        address=f"{HOST}:{_free_port()}",
        ca_pem=authority.ca_pem.decode(),
        contract_text=contract.read_text(encoding="utf-8"),
    )
    write_bundle(coordinator / f"{bundle.federation}.bundle", bundle)
    copies = {}
    for name, shard in read_shards(agreed, shards).items():
        size_class = nearest_size_class(agreed, len(shard.train))
        signing_request = request(home / name, bundle, name, size_class)
        _, certificate = enrol(
            coordinator,
            authority,
            agreed,
            signing_request.read_bytes(),
            where=str(signing_request),
        )
        (home / name / f"{name}.pem").write_bytes(certificate)
        copies[name] = home / name / f"{name}{shards[name].suffix}"
        shutil.copy(shards[name], copies[name])
    return copies


def federate(home: Path, shards: Mapping[str, Path], watcher: Watcher) -> Live:
    """Run coordinator and holders as processes until each of them is done.

    Args:
        home: What `found` made.
        shards: What `found` returned.
        watcher: Told of each round as soon as the coordinator tells it.

    Raises:
        CreditError: If one of them does not end well. However this ends, no process is left.
    """
    watch = _Watch(list(shards), watcher)
    # Witnesses of ledgers that go with this folder do not belong into the user's state folder.
    with Children({"XDG_STATE_HOME": str((home / "state").absolute())}) as children:
        start_coordinator(children, home)
        for name, shard in shards.items():
            start_holder(children, home, name, shard)
        for event in children.events():
            watch.hear(event)
    return watch.end()


def start_coordinator(children: Children, home: Path, *more: str) -> None:
    """Start `flower-server` over what `found` made, as the child `SERVER`.

    Args:
        more: Options beside the usual ones, "--resume" for example.
    """
    own = home / COORDINATOR
    address = read_bundle(next(own.glob("*.bundle"))).address
    command = _command("credit_server", own, "--listen", address, *more)
    children.start(SERVER, command, own / f"{SERVER}.log")


def start_holder(children: Children, home: Path, name: str, shard: Path, *more: str) -> None:
    """Start a holder's `credit-client` on the coordinator of `home`, as the child `name`.

    Args:
        shard: What `found` returned for it.
        more: Options beside the usual ones.
    """
    own = home / name
    address = read_bundle(next((home / COORDINATOR).glob("*.bundle"))).address
    command = _command("credit_client", own, "--shard", str(shard), "--server", address, *more)
    children.start(name, command, own / "credit-client.log")


def _command(package: str, home: Path, *more: str) -> list[str]:
    # Without -P a folder of the same name, where the demo is started, would be run instead.
    start = [sys.executable, "-P", "-m", f"{package}.cli", "--home", str(home), *more]
    return [*start, "--threads", "1", "--format", "json", "--until-stdin-closes"]


def _free_port() -> int:
    """A port for the bundle: fixed before the start, so that all processes start at once.

    On Linux a socket that never listens keeps it from whoever asks for any port; the coordinator,
    which sets SO_REUSEADDR as this does, can listen beside it. Elsewhere it could not.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    port: int = held.getsockname()[1]
    if sys.platform == "linux":
        atexit.register(held.close)
    else:
        held.close()
    return port


class _Watch:
    """Follows the events: tells the watcher, and keeps what the outcome is made of."""

    def __init__(self, holders: list[str], watcher: Watcher) -> None:
        self._holders, self._watcher = holders, watcher
        self._ready: set[str] = set()
        self._connected: set[str] = set()
        self._spent: dict[str, float] = {}
        self._history: list[Progress] = []
        self._done: Mapping[str, object] = {}
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()
        watcher.stage(f"starting {SERVER} and {len(holders)} credit-clients")

    def hear(self, event: Event) -> None:
        line, all_of_them = event.line, len(self._holders)
        if "epsilon" in line and event.who != SERVER:
            self._spent[event.who] = _number(line["epsilon"], math.inf)
        if event.what == "listening":
            self._watcher.note(f"{SERVER} listens on {line['address']}")
        elif event.what == "ready":
            self._ready.add(event.who)
            self._watcher.stage(
                f"{len(self._ready)} of {all_of_them} shops have read and encoded their users"
            )
        elif event.what == "connected":
            self._connected.add(event.who)
            if len(self._connected) == all_of_them and not self._history:
                self._ended("shops encode and connect")
                self._watcher.stage(f"{all_of_them} shops train, over mutual TLS")
        elif event.what == "round":
            figures = {n: _number(value, math.nan) for n, value in line["figures"].items()}
            spent = max(self._spent.values(), default=_number(line["epsilon"], math.inf))
            progress = Progress(
                round=line["round"],
                holders=line["holders"],
                figures=figures,
                epsilon=spent,
                intervals={n: tuple(ends) for n, ends in line["intervals"].items()},
            )
            self._history.append(progress)
            self._watcher.round("federated", 1, progress)
        elif event.what == "done" and event.who == SERVER:
            self._done = line
            self._ended("rounds")

    def end(self) -> Live:
        release = Path(str(self._done["release"]))
        opened = open_release(release)
        outcome = Outcome(
            adapter=opened.adapter,
            edges=opened.edges,
            epsilon=max(self._spent.values()),
            history=tuple(self._history),
            bytes_up=int(str(self._done["bytes_up"])),
            seconds=self._seconds["rounds"],
        )
        return Live(outcome=outcome, release=release, seconds=self._seconds)

    def _ended(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] = now - self._since
        self._since = now


def _number(value: float | None, absent: float) -> float:
    """A figure of an event; JSON has neither nan nor infinity."""
    return absent if value is None else float(value)
