"""A client is killed (SIGKILL) between charge and acknowledgement, and started again.

The clients run the real ledger, witness, gate, manifest and link against a real coordinator's
service over mutual TLS; only the training is a draw of noise, so that two answers are never equal
by chance.
"""

import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client import identity as own
from credit_client.ledger import Ledger
from credit_client.manifest import listed
from credit_common.bundle import Bundle
from credit_common.contract import parse_contract
from credit_common.wire import ARRAYS, CONFIG, ROUND, array_record
from credit_server.authority import create_authority
from credit_server.enrol import Registry, enrol
from credit_server.grid import GrpcGrid
from credit_server.heads import Heads
from credit_server.service import Service

SCHEMA = {"w": (3,)}
POINTS = 24
ENOUGH = 60.0


ZYGOTE = """
import itertools, mmap, os, signal, struct, sys
from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp

from credit_client import identity as own
from credit_client.gate import Exit, Gate
from credit_client.heads import OwnHeads
from credit_client.ledger import Ledger
from credit_client.link import Link
from credit_common.accountant import epsilon
from credit_common.events import SampledGaussian
from credit_common.privacy import mechanism_plan

OURS = ("credit_client", "credit_common")


def take_part(home, address, kill_at, counter):
    identity = own.open_identity(Path(home))
    contract = identity.bundle.contract
    calls = itertools.count()

    def watch(frame, event, argument):
        if frame.f_globals.get("__name__", "").startswith(OURS):
            number = next(calls)
            counter[:8] = struct.pack("q", number)
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        plan = mechanism_plan(contract, identity.subject.size_class)
        gate = Gate(contract, plan, ledger, {"w": (3,)})
        app = ClientApp()

        @app.train()
        def _train(message, context):
            sys.setprofile(watch)
            fresh = np.frombuffer(os.urandom(12), np.uint32).astype(np.float32)
            return gate.send_adapter(message, lambda: {"w": fresh})

        exit_, heads = Exit(identity.manifest, ledger), OwnHeads(identity, ledger)
        with Link(identity, address, 1000, exit_=exit_, heads=heads) as link:
            link.work(app, on_answered=lambda request, reply: sys.setprofile(None))


# What all clients need is made once, before they are forked: accounting, and its one-step losses.
epsilon([SampledGaussian(sampling_rate=0.1, noise_multiplier=4.0, steps=2)], 1e-5)
with open(sys.argv[1], "r+b") as file:
    counter = mmap.mmap(file.fileno(), 8)
for line in sys.stdin:
    command, *arguments = line.rstrip("\\n").split("\\t")
    if command == "start":
        pid = os.fork()
        if pid == 0:
            home, address, kill_at = arguments
            take_part(home, address, int(kill_at), counter)
            os._exit(0)
        print(pid, flush=True)
    else:
        print(os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1]), flush=True)
"""


class Clients:
    """Clients that are forked from one process that has imported everything."""

    def __init__(self, folder):
        self._counter = folder / "calls"
        self._counter.write_bytes(bytes(8))
        self._zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE, str(self._counter)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )

    def start(self, home, address, kill_at=-1):
        return int(self._tell("start", home, address, kill_at))

    def exit_code(self, pid):
        return int(self._tell("wait", pid))

    @property
    def calls(self):
        """Calls of the last client from the request to the receipt, or to its death."""
        return struct.unpack("q", self._counter.read_bytes())[0]

    def end(self):
        self._zygote.stdin.close()
        self._zygote.wait(ENOUGH)
        self._zygote.stdout.close()

    def _tell(self, *words):
        self._zygote.stdin.write("\t".join(map(str, words)) + "\n")
        self._zygote.stdin.flush()
        return self._zygote.stdout.readline()


class Bench:
    """A coordinator in this process, one enrolled holder, and its clients one after the other."""

    def __init__(self, folder, contract_text):
        text = contract_text.replace('name = "shop-credit"', 'name = "kills"\nmin_holders = 1')
        text = text.replace("epsilon = 4.0", "epsilon = 50.0").replace(
            "noise_multiplier = 1.0", "noise_multiplier = 4.0"
        )
        self.contract = parse_contract(text)
        self.home = folder / "shop"
        self.coordinator = folder / "coordinator"
        self.coordinator.mkdir()
        authority = create_authority(self.coordinator, "kills")
        bundle = Bundle(
            federation="kills",
            address="localhost:9440",
            ca_pem=authority.ca_pem.decode(),
            contract_text=text,
        )
        csr = own.request(self.home, bundle, "shop", "small")
        _, pem = enrol(self.coordinator, authority, self.contract, csr.read_bytes(), where="shop")
        csr.with_suffix(".pem").write_bytes(pem)
        self.identity = own.open_identity(self.home)
        registry = Registry(self.coordinator)
        self.grid = GrpcGrid(
            self.contract,
            SCHEMA,
            lambda: {h.name: h.node_id for h in registry.holders().values()},
        )
        self.asked = 0
        self.received: dict[str, set[str]] = {}
        answer = self.grid.answer

        def seen(node_id, reply):
            digest = hashlib.sha256(reply.adapter).hexdigest()
            self.received.setdefault(reply.message_id, set()).add(digest)
            assert reply.WhichOneof("outcome") == "adapter", reply
            return answer(node_id, reply)

        self.grid.answer = seen
        self.heads = Heads(self.coordinator)
        self.service = Service(
            self.contract,
            registry,
            self.grid,
            self.heads,
            authority=authority,
            server_name=bundle.server_name,
            listen="127.0.0.1:0",
            array_bytes=1000,
        )
        self.clients = Clients(folder)

    def client(self, kill_at=-1):
        """Start a client, and wait until it is connected."""
        pid = self.clients.start(self.home, self.address, kill_at)
        until = time.monotonic() + ENOUGH
        while not self.grid._here():
            assert time.monotonic() < until, "the client does not come"
            time.sleep(0.005)
        return pid

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        return self.gone(pid)

    def gone(self, pid):
        """Wait for a client's end, and until the coordinator has noticed."""
        code = self.clients.exit_code(pid)
        until = time.monotonic() + ENOUGH
        while self.grid._here():
            assert time.monotonic() < until, "the end is not noticed"
            time.sleep(0.005)
        return code

    @property
    def address(self):
        return f"127.0.0.1:{self.service.port}"

    def ask(self):
        """Ask what was not asked before, in another thread; returns it and where replies will be.

        The same question again would be the same message.
        """
        replies = []
        self.asked += 1
        arrays = array_record({"w": np.full(3, self.asked, np.float32)})
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({ROUND: 1})})
        message = Message(content, dst_node_id=self.identity.subject.node_id, message_type="train")
        thread = threading.Thread(
            target=lambda: replies.extend(self.grid.send_and_receive([message], timeout=ENOUGH))
        )
        thread.start()
        return thread, replies

    def ledger(self):
        with Ledger.open(self.identity.ledger_path, self.identity.witness) as ledger:
            charged = [e.message_id for e in ledger.entries() if e.message_id]
            list(listed(self.identity.manifest.lines(), ledger.entries()))
            return ledger.epsilon_overall(1e-5), charged


@pytest.fixture
def bench(tmp_path, contract_text):
    made = Bench(tmp_path, contract_text)
    with made.service:
        yield made
    made.clients.end()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL, and no fork, elsewhere")
def test_a_kill_between_charge_and_acknowledgement_loses_and_repeats_nothing(bench):
    spared = bench.client()
    thread, replies = bench.ask()
    thread.join(ENOUGH)
    assert len(replies) == 1
    calls = bench.clients.calls
    bench.kill(spared)
    assert calls > 100  # steps of one answer, from the request to the receipt
    draw = random.Random()
    epsilon, charged = bench.ledger()
    outcomes = set()
    for point in range(POINTS):  # one random point in each equal part of the way
        kill_at = int(draw.uniform(point, point + 1) * calls / POINTS)
        victim = bench.client(kill_at)
        thread, replies = bench.ask()
        assert bench.gone(victim) == -signal.SIGKILL, f"kill point {kill_at} of {calls}"
        spent, now = bench.ledger()
        outcomes.add((len(now) - len(charged), bool(replies)))
        assert spent >= epsilon
        assert len(set(now)) == len(now)
        if thread.is_alive():
            second = bench.client()
            thread.join(ENOUGH)
            assert len(replies) == 1, f"kill point {kill_at} of {calls}"
            bench.kill(second)
        epsilon, charged = bench.ledger()
        assert epsilon >= spent
        assert len(set(charged)) == len(charged) == point + 2
    assert len(bench.received) == POINTS + 1
    assert {len(distinct) for distinct in bench.received.values()} == {1}
    assert {0, 1} <= {n for n, _ in outcomes}  # both sides of the charge were hit
