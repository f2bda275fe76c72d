"""Hosts that lose one another: a holder cut off from the coordinator, and a coordinator from all.

Holders are processes with trivial apps over real mutual TLS. Where the machine allows it each is in
a network namespace of its own, and a cut is a link that is down: packets vanish, and neither end is
told. Elsewhere the same cuts are made by the proxy of `credit-sim chaos`, on loopback.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client import identity as own
from credit_common import protocol
from credit_common.bundle import Bundle
from credit_common.contract import parse_contract
from credit_common.errors import LinkError
from credit_common.wire import ARRAYS, CONFIG, ROUND, array_record
from credit_server import service as service_module
from credit_server.authority import create_authority
from credit_server.enrol import Registry, enrol
from credit_server.grid import GrpcGrid
from credit_server.heads import Heads
from credit_server.service import Service
from credit_simulations.chaos.proxy import Proxy

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c")
GRACE = 2.0
PING = 1
ENOUGH = 60.0  # seconds that nothing here takes unless it hangs

CHILD = """
import hashlib, sys
from pathlib import Path
from types import SimpleNamespace
from credit_common import protocol
protocol.PING_SECONDS = protocol.PING_TIMEOUT_SECONDS = int(sys.argv[3])
import numpy as np
from flwr.clientapp import ClientApp
from credit_client.gate import Exit
from credit_client.identity import open_identity
from credit_client.link import Link
from credit_common.wire import adapter_reply, pack
app = ClientApp()

@app.train()
def _train(message, context):
    return adapter_reply(message, pack({"w": np.full(3, 7, np.float32)}), 1.0)

class Free:
    def confirm(self, message_id, payload):
        return SimpleNamespace(reply_digest=hashlib.sha256(payload).hexdigest())

own = open_identity(Path(sys.argv[1]))
with Link(own, sys.argv[2], 1000, exit_=Exit(own.manifest, Free())) as link:
    link.work(app, on_answered=lambda request, reply: print(request.round, flush=True))
"""


class ByNamespaces:
    """A namespace for each holder, joined to the coordinator's by a pair of virtual devices."""

    listen = "0.0.0.0:0"

    def __init__(self) -> None:
        # Workers may have namespaces at the same time, and a device may outlive its namespace for
        # a moment: names and networks are new each time.
        own = 2 * os.getpid() + next(_made)
        self._names = {name: f"cf{own % 10**8}{name}" for name in NAMES}
        self._nets = {n: f"198.{18 + i // 256}.{i % 256}" for n, i in _numbers(own)}

    def __enter__(self) -> "ByNamespaces":
        if os.name != "posix" or not shutil.which("ip") or os.geteuid() != 0:
            pytest.skip("network namespaces need root and the command ip")
        for name, space in self._names.items():
            made = self._ip("netns", "add", space)
            if made.returncode != 0:
                self.__exit__()
                pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
            inside = ("-n", space)
            net = self._nets[name]
            steps = (
                ("link", "add", space, "type", "veth", "peer", "name", "up0", "netns", space),
                ("addr", "add", f"{net}.1/30", "dev", space),
                ("link", "set", space, "up"),
                (*inside, "addr", "add", f"{net}.2/30", "dev", "up0"),
                (*inside, "link", "set", "up0", "up"),
            )
            for step in steps:
                done = self._ip(*step)
                if done.returncode != 0:
                    self.__exit__()
                    pytest.skip(f"ip {' '.join(step)} is not allowed here: {done.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        for space in self._names.values():
            self._ip("netns", "del", space)  # its devices go with it

    @classmethod
    def allowed(cls) -> bool:
        with contextlib.suppress(pytest.skip.Exception), cls():
            return True
        return False

    def start(self, port: int) -> None:
        self._port = port

    def address(self, name: str) -> str:
        return f"{self._nets[name]}.1:{self._port}"

    def command(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self._names[name]]

    def cut(self, name: str) -> None:
        assert self._ip("link", "set", self._names[name], "down").returncode == 0

    def heal(self, name: str) -> None:
        assert self._ip("link", "set", self._names[name], "up").returncode == 0

    @staticmethod
    def _ip(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


_made = itertools.count()


def _numbers(own: int) -> Iterator[tuple[str, int]]:
    """A number below 512 for each holder: 198.18.0.0/15 is for tests (RFC 2544)."""
    for place, name in enumerate(NAMES):
        yield name, (own * len(NAMES) + place) % 512


class ByProxy:
    """All on loopback, with a proxy in between, where hosts of their own are not allowed."""

    listen = "127.0.0.1:0"

    def __enter__(self) -> "ByProxy":
        if ByNamespaces.allowed():
            pytest.skip("network namespaces are allowed here, which show the same and more")
        self._open = contextlib.ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def start(self, port: int) -> None:
        self._proxy = self._open.enter_context(Proxy(f"127.0.0.1:{port}", NAMES))

    def address(self, name: str) -> str:
        return self._proxy.addresses[name]

    def command(self, name: str) -> list[str]:
        return []

    def cut(self, name: str) -> None:
        self._proxy.cut(name)

    def heal(self, name: str) -> None:
        self._proxy.heal(name)


class Hosts:
    """A coordinator in this process, its holders, and what can be cut between them."""

    def __init__(self, folder: Path, contract_text: str, between: "ByNamespaces | ByProxy") -> None:
        limits = f"min_holders = 2\ngrace_seconds = {GRACE}\nanswer_seconds = {ENOUGH}"
        text = contract_text.replace('name = "shop-credit"', f'name = "apart"\n{limits}')
        contract = parse_contract(text)
        home = folder / "coordinator"
        home.mkdir()
        authority = create_authority(home, "apart")
        bundle = Bundle(
            federation="apart",
            address="localhost:9440",
            ca_pem=authority.ca_pem.decode(),
            contract_text=text,
        )
        self.homes = {name: folder / name for name in NAMES}
        self.nodes = {}
        for name, own_home in self.homes.items():
            csr = own.request(own_home, bundle, name, "small")
            enrolled, pem = enrol(home, authority, contract, csr.read_bytes(), where=name)
            csr.with_suffix(".pem").write_bytes(pem)
            self.nodes[name] = enrolled.node_id
        registry = Registry(home)
        self.grid = GrpcGrid(
            contract, {"w": (3,)}, lambda: {h.name: h.node_id for h in registry.holders().values()}
        )
        self.service = Service(
            contract,
            registry,
            self.grid,
            Heads(home),
            authority=authority,
            server_name=bundle.server_name,
            listen=between.listen,
            array_bytes=1000,
        )
        self._between = between
        self.cut, self.heal = between.cut, between.heal
        self.round = 0
        self.answered: dict[str, list[int]] = {name: [] for name in NAMES}

    @contextlib.contextmanager
    def holders(self) -> Iterator[None]:
        self._between.start(self.service.port)
        children, threads = [], []
        for name, home in self.homes.items():
            words = [sys.executable, "-c", CHILD, str(home), self._between.address(name), str(PING)]
            child = subprocess.Popen(
                [*self._between.command(name), *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            )
            children.append(child)
            threads.append(threading.Thread(target=self._listen, args=(name, child)))
            threads[-1].start()
        try:
            yield
        finally:
            for child in children:
                child.kill()
                child.wait()
            for thread in threads:
                thread.join()

    def _listen(self, name: str, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None
        with child.stdout as lines:
            self.answered[name] += map(int, lines)

    def ask(self, names: tuple[str, ...]) -> set[str]:
        """A round of these holders; returns who answered."""
        self.round += 1
        arrays = array_record({"w": np.zeros(3, np.float32)})
        messages = [
            Message(
                RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({ROUND: self.round})}),
                dst_node_id=self.nodes[name],
                message_type="train",
            )
            for name in names
        ]
        replies = list(self.grid.send_and_receive(messages, timeout=ENOUGH))
        assert not any(reply.has_error() for reply in replies)
        by_node = {node: name for name, node in self.nodes.items()}
        return {by_node[reply.metadata.src_node_id] for reply in replies}

    def here(self) -> set[str]:
        """Who would be asked now."""
        nodes = set(self.grid.get_node_ids())
        return {name for name, node in self.nodes.items() if node in nodes}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENOUGH
    while not holds():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.05)


@pytest.fixture(scope="module", params=[ByNamespaces, ByProxy], ids=["namespaces", "proxy"])
def hosts(request, tmp_path_factory, contract_text) -> Iterator[Hosts]:
    with pytest.MonkeyPatch.context() as patch, request.param() as between:
        for module in (protocol, service_module):
            patch.setattr(module, "PING_SECONDS", PING)
        patch.setattr(protocol, "PING_TIMEOUT_SECONDS", PING)
        made = Hosts(tmp_path_factory.mktemp("hosts"), contract_text, between)
        with made.service, made.holders():
            until(lambda: len(made.grid._here()) == len(NAMES))
            yield made


def test_a_holder_cut_off_for_longer_than_the_grace_time_is_left_out_and_comes_back(
    hosts: Hosts,
) -> None:
    assert hosts.ask(NAMES) == set(NAMES)
    hosts.cut("c")
    start = time.monotonic()
    assert hosts.ask(NAMES) == {"a", "b"}
    assert time.monotonic() - start >= GRACE  # it was waited for
    assert hosts.here() == {"a", "b"}
    missed = hosts.round
    hosts.heal("c")
    until(lambda: hosts.here() == set(NAMES))
    assert hosts.ask(NAMES) == set(NAMES)
    until(lambda: hosts.round in hosts.answered["c"])
    assert missed not in hosts.answered["c"]  # nothing is done for a round that is over


def test_a_coordinator_that_is_cut_off_from_all_goes_on_when_they_return(hosts: Hosts) -> None:
    until(lambda: hosts.here() == set(NAMES))
    for name in NAMES:
        hosts.cut(name)
    healing = threading.Timer(GRACE / 2, lambda: [hosts.heal(name) for name in NAMES])
    healing.start()
    try:
        assert hosts.ask(NAMES) >= {"a", "b"}
    finally:
        healing.join()
    until(lambda: hosts.here() == set(NAMES))


def test_a_coordinator_that_stays_cut_off_from_all_ends_with_their_names(hosts: Hosts) -> None:
    until(lambda: hosts.here() == set(NAMES))
    for name in NAMES:
        hosts.cut(name)
    try:
        assert hosts.ask(NAMES) == set()
        with pytest.raises(LinkError, match=r"0 holders are connected, the contract needs 2") as e:
            hosts.here()
        assert "gone for 2 s: a, b, c" in str(e.value)
    finally:
        for name in NAMES:
            hosts.heal(name)
    until(lambda: len(hosts.grid._here()) == len(NAMES))
