"""Holders and coordinator over real mutual TLS on loopback, with trivial apps."""

import contextlib
import dataclasses
import hashlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from credit_client import identity as own
from credit_client import link as link_module
from credit_client.gate import Exit
from credit_client.heads import OwnHeads
from credit_client.identity import Identity
from credit_client.ledger import Ledger
from credit_client.link import CLOSE_SECONDS, Link
from credit_client.participate import Terms, participate
from credit_common import federation_pb2 as pb
from credit_common.bundle import Bundle
from credit_common.certificates import Subject, load_certificate, load_request
from credit_common.contract import parse_contract
from credit_common.errors import CreditError, LinkError, PrivacyError, TrustError
from credit_common.events import Histogram
from credit_common.protocol import SERVICE, to_head
from credit_common.release import open_release
from credit_common.text import wide_width
from credit_common.wire import SET_ASIDE, adapter_reply, array_record, pack, request_arrays
from credit_server.authority import create_authority, issue_holder
from credit_server.enrol import Registry, enrol, revoke
from credit_server.grid import GrpcGrid
from credit_server.heads import Heads
from credit_server.service import Service

SCHEMA = {"w": (3,)}
ENOUGH = 20.0  # seconds that nothing here takes unless it hangs


class Net:
    """A coordinator's folder, its holders, and services on it."""

    def __init__(self, folder: Path, contract_text: str, names: tuple[str, ...] = ("a", "b", "c")):
        self.folder, self.text = folder, contract_text
        self.contract = parse_contract(contract_text)
        self.home = folder / "coordinator"
        self.home.mkdir(parents=True)
        self.authority = create_authority(self.home, self.contract.federation.name)
        self.registry = Registry(self.home)
        self.bundle = self.bundle_of(contract_text)
        self.holders = {name: self.enrol(name) for name in names}

    def bundle_of(self, text: str, address: str = "localhost:9440") -> Bundle:
        return Bundle(
            federation=self.contract.federation.name,
            address=address,
            ca_pem=self.authority.ca_pem.decode(),
            contract_text=text,
        )

    def enrol(self, name: str) -> Identity:
        home = self.folder / name
        csr = own.request(home, self.bundle, name, "small")
        _, pem = enrol(self.home, self.authority, self.contract, csr.read_bytes(), where=name)
        csr.with_suffix(".pem").write_bytes(pem)
        return own.open_identity(home)

    def grid(self) -> GrpcGrid:
        return GrpcGrid(
            self.contract,
            SCHEMA,
            lambda: {h.name: h.node_id for h in self.registry.holders().values() if not h.revoked},
        )

    @contextlib.contextmanager
    def serve(self, grid: GrpcGrid, listen: str = "127.0.0.1:0") -> Iterator[str]:
        with Service(
            self.contract,
            self.registry,
            grid,
            Heads(self.home),
            authority=self.authority,
            server_name=self.bundle.server_name,
            listen=listen,
            array_bytes=1000,
        ) as service:
            yield f"127.0.0.1:{service.port}"


class Free:
    """Takes the place of a ledger where trivial apps answer: all is charged."""

    def confirm(self, message_id: str, payload: bytes) -> SimpleNamespace:
        return SimpleNamespace(reply_digest=hashlib.sha256(payload).hexdigest())


def link_of(identity: Identity, address: str) -> Link:
    return Link(identity, address, 1000, exit_=Exit(identity.manifest, Free()))


class Holder:
    """A holder in a thread of its own."""

    def __init__(
        self,
        identity: Identity,
        address: str,
        app: ClientApp,
        link: Link | None = None,
        **watchers: Callable,
    ):
        self.finished: pb.Finished | None = None
        self.error: BaseException | None = None
        self._link = link or link_of(identity, address)
        self._thread = threading.Thread(target=self._run, args=(app, watchers), daemon=True)
        self._thread.start()

    def _run(self, app: ClientApp, watchers: dict[str, Callable]) -> None:
        try:
            with self._link as link:
                self.finished = link.work(app, **watchers)
        except BaseException as error:  # kept for the test to look at
            self.error = error

    def join(self) -> "Holder":
        self._thread.join(ENOUGH)
        assert not self._thread.is_alive(), "the holder hangs"
        return self


def adding(amount: float, seen: list[str] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def _train(message, context):
        if seen is not None:
            seen.append(message.metadata.message_id)
        return adapter_reply(
            message, pack({"w": request_arrays(message)["w"] + np.float32(amount)}), 1.0
        )

    return app


def requests(grid: GrpcGrid, round_: int = 1) -> list[Message]:
    content = RecordDict(
        {
            "arrays": array_record({"w": np.zeros(3, np.float32)}),
            "config": ConfigRecord({"server-round": round_}),
        }
    )
    return [
        Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()
    ]


def values(replies) -> list[float]:
    return sorted(float(r.content["arrays"]["w"].numpy()[0]) for r in replies if not r.has_error())


FINISHED = pb.Finished(rounds=1, holders=3, adapter=pack({"w": np.ones(3, np.float32)}))


@pytest.fixture
def net(tmp_path, contract_text):
    text = contract_text.replace(
        'name = "shop-credit"', 'name = "shop-credit"\nanswer_seconds = 20\ngrace_seconds = 3'
    )
    return Net(tmp_path, text)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(link_module, "FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(link_module, "LONGEST_WAIT_SECONDS", 0.4)


def test_a_trivial_round_of_three_holders_takes_a_tenth_of_a_second_at_most(net):
    grid = net.grid()
    with net.serve(grid) as address:
        holders = [
            Holder(identity, address, adding(1.0 + i))
            for i, identity in enumerate(net.holders.values())
        ]
        grid.wait_for_start(lambda here, missing: None)
        seconds = []
        for round_ in range(1, 31):
            start = time.perf_counter()
            replies = list(grid.send_and_receive(requests(grid, round_), timeout=ENOUGH))
            seconds.append(time.perf_counter() - start)
            assert values(replies) == [1.0, 2.0, 3.0]
        grid.finish(FINISHED)
        assert [holder.join().finished for holder in holders] == [FINISHED] * 3
    assert median(seconds) <= 0.1


LIES = {
    "schema": {"w": np.ones(4, np.float32)},
    "not-finite": {"w": np.full(3, np.nan, np.float32)},
    "size": {"w": np.ones(5000, np.float32)},
}


def lying(payload: dict) -> ClientApp:
    app = ClientApp()

    @app.train()
    def _train(message, context):
        return adapter_reply(message, pack(payload), 1.0)

    return app


@pytest.mark.parametrize("reason", LIES)
def test_lies_over_the_wire_are_set_aside_and_the_rounds_go_on(net, reason):
    grid = net.grid()
    with net.serve(grid) as address:
        apps = [adding(1.0), adding(2.0), lying(LIES[reason])]
        pairs = zip(net.holders.values(), apps, strict=True)
        holders = [Holder(identity, address, app) for identity, app in pairs]
        grid.wait_for_start(lambda here, missing: None)
        for round_ in (1, 2):
            replies = list(grid.send_and_receive(requests(grid, round_), timeout=ENOUGH))
            assert values(replies) == [1.0, 2.0]
            (error,) = (reply.error for reply in replies if reply.has_error())
            assert (error.code, error.reason) == (SET_ASIDE, reason)
        grid.finish(FINISHED)
        assert [holder.join().finished for holder in holders] == [FINISHED] * 3


def certificate(net: Net, identity: Identity, authority=None, days: int = 30, **subject) -> bytes:
    """A certificate for a holder's key, signed without entering it anywhere."""
    request = load_request(
        (identity.home / f"{identity.subject.name}.csr").read_bytes(), "the request"
    )
    named = dataclasses.replace(identity.subject, **subject)
    return issue_holder(authority or net.authority, request, named, days)


def rewritten(identity: Identity, pem: bytes) -> Identity:
    """The holder with another certificate, as if it had put it in its folder."""
    (identity.home / f"{identity.subject.name}.pem").write_bytes(pem)
    return dataclasses.replace(identity, certificate_pem=pem)


def unenrolled(net):
    identity = own.request(net.folder / "d", net.bundle, "d", "small")
    subject = Subject(
        federation=net.contract.federation.name, name="d", node_id=9, size_class="small"
    )
    pem = issue_holder(net.authority, load_request(identity.read_bytes(), "d"), subject, 30)
    identity.with_suffix(".pem").write_bytes(pem)
    return own.open_identity(net.folder / "d"), "holder 'd' is not enrolled"


def replaced(net):
    identity = net.holders["a"]
    return rewritten(identity, certificate(net, identity)), "replaced by a newer one"


def another_node(net):
    identity = net.holders["a"]
    pem = certificate(net, identity, node_id=net.holders["b"].subject.node_id)
    return rewritten(identity, pem), "certificate of holder 'a' was replaced"


def another_name(net):
    identity = net.holders["a"]
    return rewritten(identity, certificate(net, identity, name="b")), "holder 'b' was replaced"


def expired(net):
    identity = net.holders["a"]
    return rewritten(
        identity, certificate(net, identity, days=-1)
    ), "does not take this holder's certificate: it expired on 20"


def foreign(net):
    other = create_authority(_made(net.folder / "other"), net.contract.federation.name)
    identity = net.holders["a"]
    pem = certificate(net, identity, authority=other)
    return rewritten(identity, pem), "does not take this holder's certificate"


def signed_by_a_holder(net):
    a, b = net.holders["a"], net.holders["b"]
    from credit_common.certificates import load_key

    other = dataclasses.replace(net.authority, key=load_key(b.key_pem, "b"))
    return rewritten(a, certificate(net, a, authority=other)), "does not take this holder's"


def another_server(net):
    other = create_authority(_made(net.folder / "other"), net.contract.federation.name)
    bundle = dataclasses.replace(net.bundle, ca_pem=other.ca_pem.decode())
    identity = dataclasses.replace(net.holders["a"], bundle=bundle)
    return identity, "is not this federation's coordinator"


def another_server_name(net):
    bundle = net.bundle_of(net.text, "elsewhere.example:9440")
    return dataclasses.replace(net.holders["a"], bundle=bundle), "is not this federation's"


def another_contract(net):
    bundle = net.bundle_of(net.text.replace("epsilon = 4.0", "epsilon = 5.0"))
    return dataclasses.replace(net.holders["a"], bundle=bundle), "contract digest: the coordinator"


def revoked(net):
    revoke(net.home, "a")
    return net.holders["a"], "revoked"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "wrong",
    [
        unenrolled,
        replaced,
        another_node,
        another_name,
        expired,
        foreign,
        signed_by_a_holder,
        another_server,
        another_server_name,
        another_contract,
        revoked,
    ],
)
def test_who_does_not_belong_is_told_so_in_one_line_and_the_server_goes_on(net, wrong):
    grid = net.grid()
    good = net.holders["c"]
    with net.serve(grid) as address:
        refused, why = wrong(net)
        with Link(refused, address, 1000) as link, pytest.raises(CreditError, match=why) as told:
            link.join()
        assert isinstance(told.value, TrustError) or told.value.final
        assert "\n" not in str(told.value)
        with Link(refused, address, 1000) as link, pytest.raises(CreditError, match=why):
            link.work(adding(1.0))
        assert list(grid._seats) == []
        with Link(good, address, 1000) as link:
            assert link.join().federation == net.contract.federation.name


def test_plaintext_is_refused_and_the_server_goes_on(net):
    with net.serve(net.grid()) as address:
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/Join", pb.Hello.SerializeToString, pb.Welcome.FromString
            )
            with pytest.raises(grpc.RpcError) as error:
                call(pb.Hello(wire_versions=[1]), timeout=5)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        with Link(net.holders["a"], address, 1000) as link:
            link.join()


def test_an_interrupt_while_a_call_is_opened_ends_the_link(net, monkeypatch):
    def interrupted(state):
        raise KeyboardInterrupt

    with net.serve(net.grid()) as address:
        link = link_of(net.holders["a"], address)
        with monkeypatch.context() as patch:
            patch.setattr("grpc._channel._run_channel_spin_thread", interrupted)
            with pytest.raises(KeyboardInterrupt):
                link._work(link._greeting())  # the call is open; nobody will ever serve it
        start = time.monotonic()
        link.__exit__()
        assert CLOSE_SECONDS <= time.monotonic() - start < CLOSE_SECONDS + 5  # close() hangs


@pytest.mark.parametrize(
    ("version", "spoken"), [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)]
)
def test_tls_1_3_alone_is_spoken(net, version, spoken):
    identity = net.holders["a"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=net.bundle.ca_pem)
    context.load_cert_chain(identity.home / "a.pem", identity.home / "a.key")
    context.set_alpn_protocols(["h2"])
    with net.serve(net.grid()) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), 5) as connection:
            if not spoken:
                with pytest.raises(ssl.SSLError):
                    context.wrap_socket(connection, server_hostname="localhost")
            else:
                with context.wrap_socket(connection, server_hostname="localhost") as tls:
                    assert tls.version() == "TLSv1.3"


def test_an_unknown_wire_version_is_refused_by_name(net, monkeypatch):
    monkeypatch.setattr(
        link_module,
        "hello",
        lambda digest, head: pb.Hello(wire_versions=[7, 9], contract_digest=digest),
    )
    with net.serve(net.grid()) as address, Link(net.holders["a"], address, 1000) as link:
        with pytest.raises(LinkError, match="coordinator speaks 1, the holder 7, 9") as error:
            link.join()
        assert error.value.final


def spend(identity: Identity, *numbers: int) -> None:
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        for number in numbers:
            ledger.charge(
                "holdout",
                Histogram(noise_multiplier=20.0),
                contract_digest="c",
                message_id=f"m{number}",
                request_digest="r",
                reply=b"reply",
                budget_epsilon=8.0,
                delta=1e-5,
            )


def test_the_coordinator_keeps_heads_and_a_machine_that_went_back_in_time_is_refused(net):
    """Ledger and witness are both restored from before: only the coordinator remembers."""
    identity = net.holders["a"]
    spend(identity, 0)
    kept = {path: path.read_bytes() for path in (identity.ledger_path, identity.witness.path)}
    spend(identity, 1)

    def link(ledger: Ledger, address: str) -> Link:
        heads = OwnHeads(identity, ledger)
        exit_ = Exit(identity.manifest, Free())
        return Link(identity, address, 1000, exit_=exit_, heads=heads)

    grid = net.grid()
    with net.serve(grid) as address:
        with Ledger.open(identity.ledger_path, identity.witness) as ledger:
            holder = Holder(identity, address, adding(1.0), link=link(ledger, address))
            grid_start(grid, 1)
            asked = [requests_to(identity.subject.node_id)]
            assert values(grid.send_and_receive(asked, timeout=ENOUGH)) == [1.0]
            grid.finish(FINISHED)
            holder.join()
        shown = Heads(net.home).newest(identity.subject.node_id)
        assert shown.counter == 2
        assert shown.epsilon is None  # told in the last round alone
        for path, content in kept.items():
            path.write_bytes(content)
        with (
            Ledger.open(identity.ledger_path, identity.witness) as ledger,
            link(ledger, address) as back,
        ):
            with pytest.raises(PrivacyError, match=r"ends at entry 1.*head with 2 entries"):
                back.join()
            # One that would not look at it is turned away.
            back._heads.check = lambda shown: None
            with pytest.raises(TrustError, match="signed 2 entries before, and 1 now"):
                back.work(adding(1.0))


def test_answers_that_nobody_asked_for_bring_no_head(net, monkeypatch):
    identity = net.holders["a"]
    node = identity.subject.node_id
    written: list[int] = []
    take = Heads.take

    def counted(heads, head, *rest):
        written.append(head.counter)
        assert threading.current_thread().name != "grpc"  # where all streams are served
        take(heads, head, *rest)

    monkeypatch.setattr(Heads, "take", counted)
    grid = net.grid()
    spend(identity, 0)
    with (
        net.serve(grid) as address,
        Ledger.open(identity.ledger_path, identity.witness) as ledger,
        Link(identity, address, 1000) as stream,
    ):
        heads = OwnHeads(identity, ledger)
        tasks = stream._work(stream._greeting())
        grid_start(grid, 1)
        message = requests_to(node)
        grid.push_messages([message])
        asked = next(tasks).request.message_id

        def answer(message_id: str) -> bool:
            reply = pb.Reply(message_id=message_id, adapter=pack({"w": np.ones(3, np.float32)}))
            reply.head.CopyFrom(to_head(heads.head()))
            return stream._answer(reply.SerializeToString(), timeout=5).counted

        for made_up in ("", "x", f"{asked}x", "the end of the run"):
            assert not answer(made_up)
        assert written == []
        grid._take_back([asked])  # an answer that is late has a head all the same
        assert not answer(asked)
        assert written == [1]
        assert not answer(asked)
        message = requests_to(node)
        grid.push_messages([message])
        assert answer(next(tasks).request.message_id)
        assert written == [1, 1]
        tasks.cancel()


def test_nobody_answers_in_anothers_name(net):
    """A message has no sender; the certificate of the connection says who it is."""
    grid = net.grid()
    asked: list[str] = []
    gate = threading.Event()

    slow = ClientApp()

    @slow.train()
    def _train(message, context):
        asked.append(message.metadata.message_id)
        gate.wait(ENOUGH)
        return adapter_reply(message, pack({"w": np.full(3, 1.0, np.float32)}), 1.0)

    with net.serve(grid) as address:
        honest = Holder(net.holders["a"], address, slow)
        grid_start(grid, 1)
        content = requests_to(net.holders["a"].subject.node_id)
        replies: list = []
        round_ = threading.Thread(
            target=lambda: replies.extend(grid.send_and_receive([content], timeout=ENOUGH))
        )
        round_.start()
        until(lambda: asked)
        forged = pb.Reply(message_id=asked[0], adapter=pack({"w": np.full(3, 666, np.float32)}))
        with Link(net.holders["b"], address, 1000) as link:
            assert link._answer(forged.SerializeToString(), timeout=5).counted is False
        gate.set()
        round_.join(ENOUGH)
        assert values(replies) == [1.0]
        grid.finish(FINISHED)
        honest.join()


def requests_to(node: int) -> Message:
    content = RecordDict(
        {
            "arrays": array_record({"w": np.zeros(3, np.float32)}),
            "config": ConfigRecord({"server-round": 1}),
        }
    )
    return Message(content, dst_node_id=node, message_type="train")


def grid_start(grid: GrpcGrid, holders: int) -> None:
    until(lambda: len(grid._here()) == holders)


def until(true: Callable[[], object], seconds: float = ENOUGH) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_a_revocation_reaches_an_open_stream(net):
    grid = net.grid()
    with net.serve(grid) as address:
        holder = Holder(net.holders["a"], address, adding(1.0))
        grid_start(grid, 1)
        revoke(net.home, "a")
        assert isinstance(holder.join().error, TrustError)
        assert "revoked" in str(holder.error)
        until(lambda: grid._here() == [])


def test_an_enrolment_reaches_a_running_server(net):
    with net.serve(net.grid()) as address, Link(net.enrol("late"), address, 1000) as link:
        link.join()


def test_a_second_connection_of_a_holder_takes_over_and_the_first_one_ends(net):
    grid = net.grid()
    with net.serve(grid) as address:
        first = Holder(net.holders["a"], address, adding(1.0))
        grid_start(grid, 1)
        second = Holder(net.holders["a"], address, adding(2.0))
        assert "another connection of this holder took over" in str(first.join().error)
        grid_start(grid, 1)
        message = requests_to(net.holders["a"].subject.node_id)
        assert values(grid.send_and_receive([message], timeout=ENOUGH)) == [2.0]
        grid.finish(FINISHED)
        assert second.join().finished == FINISHED


def test_a_port_that_is_taken_is_named(net):
    with net.serve(net.grid()) as address:
        second = net.serve(net.grid(), address)
        with pytest.raises(LinkError, match=f"cannot listen on {re.escape(address)}"), second:
            pass


def test_holders_come_back_by_themselves_when_the_server_does(net):
    waits: list[str] = []
    grid = net.grid()
    with net.serve(grid) as address:
        holder = Holder(
            net.holders["a"], address, adding(3.0), on_waiting=lambda why, s: waits.append(why)
        )
        grid_start(grid, 1)
    until(lambda: any("nothing listens" in why for why in waits))
    again = net.grid()
    with net.serve(again, address):
        grid_start(again, 1)
        message = requests_to(net.holders["a"].subject.node_id)
        assert values(again.send_and_receive([message], timeout=ENOUGH)) == [3.0]
        again.finish(FINISHED)
        assert holder.join().finished == FINISHED


def test_what_else_answers_at_the_address_ends_no_holder_that_was_let_in(net):
    """A captive portal or a forwarder's error page: plain text where TLS is spoken."""
    waits: list[str] = []
    grid = net.grid()
    with net.serve(grid) as address:
        holder = Holder(
            net.holders["a"], address, adding(3.0), on_waiting=lambda why, s: waits.append(why)
        )
        grid_start(grid, 1)
    host, port = address.split(":")
    with socket.create_server((host, int(port))) as portal:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = portal.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        until(lambda: any("does not speak TLS 1.3" in why for why in waits))
        portal.shutdown(socket.SHUT_RDWR)
    again = net.grid()
    with net.serve(again, address):
        grid_start(again, 1)
        again.finish(FINISHED)
        assert holder.join().finished == FINISHED


def renewed(net: Net, name: str) -> bytes:
    """What `flower-server enrol --renew` makes for a holder's old request."""
    csr = net.folder / name / f"{name}.csr"
    return enrol(net.home, net.authority, net.contract, csr.read_bytes(), where=name, renew=True)[1]


def test_a_renewed_certificate_is_taken_up_by_a_running_holder(net):
    grid, identity = net.grid(), net.holders["a"]
    node, waits = identity.subject.node_id, []
    shown: list[bytes] = []
    admit = net.registry.admit
    net.registry.admit = lambda pem: (shown.append(pem), admit(pem))[1]
    with net.serve(grid) as address:
        holder = Holder(
            identity, address, adding(2.0), on_waiting=lambda why, seconds: waits.append(why)
        )
        grid_start(grid, 1)
        assert values(grid.send_and_receive([requests_to(node)], timeout=ENOUGH)) == [2.0]
        pem = renewed(net, "a")  # the old one is turned away from now on
        until(lambda: any("replaced by a newer one" in why for why in waits))
        until(lambda: not grid._here())
        message = requests_to(node)
        grid.push_messages([message])  # asked of a holder that is gone
        identity.certificate_path.write_bytes(pem[:200])  # half copied
        before = len(waits)
        until(lambda: len(waits) > before + 1)
        identity.certificate_path.write_bytes(pem)
        grid_start(grid, 1)
        until(lambda: grid._replies)
        assert load_certificate(shown[-1], "shown") == load_certificate(pem, "renewed")
        grid.finish(FINISHED)
        assert holder.join().finished == FINISHED


def test_a_certificate_renewed_in_time_is_taken_up_at_the_next_reconnection(net):
    identity = net.holders["a"]
    node, waits = identity.subject.node_id, []
    first, second = net.grid(), net.grid()
    with net.serve(first) as address:
        holder = Holder(
            identity, address, adding(2.0), on_waiting=lambda why, seconds: waits.append(why)
        )
        grid_start(first, 1)
    # The coordinator is down, both certificates change: its own is made anew at each start.
    identity.certificate_path.write_bytes(renewed(net, "a"))
    with net.serve(second, address):
        grid_start(second, 1)
        assert values(second.send_and_receive([requests_to(node)], timeout=ENOUGH)) == [2.0]
        second.finish(FINISHED)
        assert holder.join().finished == FINISHED
    assert not any("replaced" in why for why in waits)


def test_a_certificate_of_another_key_or_a_revocation_is_not_waited_out(net):
    grid, identity = net.grid(), net.holders["a"]
    with net.serve(grid) as address:
        holder = Holder(identity, address, adding(2.0))
        grid_start(grid, 1)
        other = net.holders["b"]
        identity.certificate_path.write_bytes(other.certificate_pem)
        revoke(net.home, "a")
        assert "revoked" in str(holder.join().error)


def test_a_holder_asks_at_least_twice_while_a_round_waits_for_it(net, monkeypatch):
    monkeypatch.setattr(link_module, "LONGEST_WAIT_SECONDS", 30.0)
    waits: list[float] = []
    grid = net.grid()
    with net.serve(grid) as address:
        holder = Holder(
            net.holders["a"], address, adding(3.0), on_waiting=lambda why, s: waits.append(s)
        )
        grid_start(grid, 1)
    until(lambda: max(waits, default=0.0) > 1.0)
    assert max(waits) <= 1.2 * net.contract.federation.grace_seconds / 2
    again = net.grid()
    with net.serve(again, address):
        came = time.monotonic()
        grid_start(again, 1)
        assert time.monotonic() - came < net.contract.federation.grace_seconds
        again.finish(FINISHED)
        holder.join()


def test_a_run_that_ends_with_other_rounds_than_the_contracts_leaves_no_release(tmp_path, net):
    """Whatever was answered: the release would tell the epsilon of the rounds that are told."""
    text = net.text.replace("[model]", '[model]\ntrain = ["wide"]')
    net = Net(tmp_path / "wide", text, ("a",))
    width = wide_width(net.contract)
    end = pb.Finished(
        holders=3,
        adapter=pack({"wide.weight": np.zeros((1, width), np.float32)}),
        created="2026-01-02T03:04:05+00:00",
    )
    shard = tmp_path / "shard.csv"
    shard.write_text(
        "user,age,income,tenure,home,job,note,at,orders,sex,defaulted\n"
        + "".join(f"u{i},30,20,3,P,clerk,late,2024-01-05,[],f,{i % 2}\n" for i in range(20))
    )
    for rounds in (1, 4, 0, 3):
        grid = net.grid()
        end.rounds = rounds
        with net.serve(grid) as address, ThreadPoolExecutor(1) as pool:
            done = pool.submit(
                participate,
                net.holders["a"],
                shard,
                address,
                terms=Terms(),
                tell=lambda event, **facts: None,
            )
            until(lambda: grid._here() or done.done(), ENOUGH)  # noqa: B023
            grid.finish(end)
            if rounds == 3:
                assert open_release(done.result(ENOUGH)).facts.rounds == 3
            else:
                with pytest.raises(
                    LinkError, match=rf"rounds = {rounds}: must be the contract's 3"
                ):
                    done.result(ENOUGH)
                assert not (net.holders["a"].home / "releases").exists()


def test_a_slow_holder_is_left_out_and_takes_part_again(net):
    grid = net.grid()
    gate, asked = threading.Event(), []
    slow = ClientApp()

    @slow.train()
    def _train(message, context):
        asked.append(message.metadata.message_id)
        if len(asked) == 1:
            gate.wait(ENOUGH)
        return adapter_reply(message, pack({"w": np.full(3, 9.0, np.float32)}), 1.0)

    with net.serve(grid) as address:
        holders = [
            Holder(net.holders["a"], address, slow),
            Holder(net.holders["b"], address, adding(1.0)),
            Holder(net.holders["c"], address, adding(2.0)),
        ]
        grid_start(grid, 3)
        assert values(grid.send_and_receive(requests(grid, 1), timeout=2.0)) == [1.0, 2.0]
        for round_ in (2, 3):  # without it, and without waiting for it
            start = time.monotonic()
            replies = grid.send_and_receive(requests(grid, round_), timeout=ENOUGH)
            assert values(replies) == [1.0, 2.0]
            assert time.monotonic() - start < 2.0
        gate.set()
        grid_start(grid, 3)
        replies = grid.send_and_receive(requests(grid, 4), timeout=ENOUGH)
        assert values(replies) == [1.0, 2.0, 9.0]
        assert len(asked) == 2  # it never saw the rounds that went on without it
        grid.finish(FINISHED)
        assert [holder.join().finished for holder in holders] == [FINISHED] * 3


def test_a_holder_that_dies_in_a_round_and_comes_back_answers_once(net):
    grid = net.grid()
    seen: list[str] = []
    dying = ClientApp()

    @dying.train()
    def _train(message, context):
        seen.append(message.metadata.message_id)
        raise SystemExit  # nothing in the package catches it: the thread is gone

    with net.serve(grid) as address:
        gone = Holder(net.holders["a"], address, dying)
        steady = Holder(net.holders["b"], address, adding(1.0))
        grid_start(grid, 2)
        replies: list = []
        round_ = threading.Thread(
            target=lambda: replies.extend(grid.send_and_receive(requests(grid), timeout=ENOUGH))
        )
        round_.start()
        assert isinstance(gone.join().error, SystemExit)
        back = Holder(net.holders["a"], address, adding(5.0, seen))
        round_.join(ENOUGH)
        assert values(replies) == [1.0, 5.0]
        assert len(seen) == 2
        assert len(set(seen)) == 1  # the very message that it had not answered
        grid.finish(FINISHED)
        back.join()
        steady.join()


def test_a_holder_that_stays_away_costs_the_grace_time(net):
    grid = net.grid()
    dying = ClientApp()

    @dying.train()
    def _train(message, context):
        raise SystemExit

    with net.serve(grid) as address:
        gone = Holder(net.holders["a"], address, dying)
        steady = Holder(net.holders["b"], address, adding(1.0))
        grid_start(grid, 2)
        start = time.monotonic()
        assert values(grid.send_and_receive(requests(grid), timeout=ENOUGH)) == [1.0]
        grace = net.contract.federation.grace_seconds
        assert grace <= time.monotonic() - start <= grace + 2
        gone.join()
        grid.finish(FINISHED)
        steady.join()


def test_the_way_through_a_proxy(net, monkeypatch):
    """A name that only the proxy knows; TLS goes through it untouched."""
    grid = net.grid()
    with net.serve(grid) as address, connect_proxy(address) as (proxy, asked):
        for name in ("grpc_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", f"http://{proxy}")
        with Link(net.holders["a"], "coordinator.invalid:9440", 1000) as link:
            assert link.join().federation == net.contract.federation.name
        assert asked == ["CONNECT coordinator.invalid:9440 HTTP/1.1"]


@pytest.mark.parametrize("wrong", [foreign, expired, another_server, unenrolled])
def test_a_proxy_hides_no_reason(net, monkeypatch, wrong):
    with net.serve(net.grid()) as address, connect_proxy(address) as (proxy, _):
        for name in ("grpc_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("https_proxy", f"http://{proxy}")
        refused, why = wrong(net)
        link = Link(refused, "coordinator.invalid:9440", 1000)
        with link, pytest.raises(TrustError, match=why):
            link.join()


def test_a_proxy_that_says_no_is_named(net, monkeypatch):
    for name in ("grpc_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=say_no, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        with Link(net.holders["a"], "coordinator.invalid:9440", 1000) as link:
            with pytest.raises(LinkError, match="proxy that https_proxy names") as error:
                link.join()
            assert not error.value.final


def say_no(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")


@contextlib.contextmanager
def connect_proxy(target: str) -> Iterator[tuple[str, list[str]]]:
    """A forward proxy that connects whatever is asked for to `target`."""
    host, port = target.split(":")
    asked: list[str] = []
    opened: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                asked.append(head.split(b"\r\n")[0].decode())
                server = socket.create_connection((host, int(port)))
                opened.extend((client, server))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        for one in (listener, *opened):
            one.close()


CHILD = """
import ctypes, hashlib, sys, time
from pathlib import Path
from types import SimpleNamespace
from credit_common import protocol
protocol.PING_SECONDS = protocol.PING_TIMEOUT_SECONDS = 1
import numpy as np
from flwr.clientapp import ClientApp
from credit_client.gate import Exit
from credit_client.identity import open_identity
from credit_client.link import Link
from credit_common.wire import adapter_reply, pack
app = ClientApp()

@app.train()
def _train(message, context):
    print("busy", flush=True)
    # A foreign call that keeps the interpreter's lock: no other Python thread runs meanwhile.
    ctypes.PyDLL(None).usleep(int(float(sys.argv[3]) * 1e6))
    return adapter_reply(message, pack({"w": np.full(3, 7, np.float32)}), 1.0)

class Free:
    def confirm(self, message_id, payload):
        return SimpleNamespace(reply_digest=hashlib.sha256(payload).hexdigest())

own = open_identity(Path(sys.argv[1]))
with Link(own, sys.argv[2], 1000, exit_=Exit(own.manifest, Free())) as link:
    link.work(app)
"""


@pytest.fixture
def quick_pings(monkeypatch):
    from credit_common import protocol

    monkeypatch.setattr(protocol, "PING_SECONDS", 1)
    monkeypatch.setattr(protocol, "PING_TIMEOUT_SECONDS", 1)


@contextlib.contextmanager
def child(net: Net, address: str, seconds: float) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(net.holders["a"].home), address, str(seconds)],
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_heartbeats_go_on_while_training_keeps_python_busy(net, quick_pings):
    grid = net.grid()
    left: list[int] = []
    detach = grid.detach
    grid.detach = lambda node, deliver: (left.append(node), detach(node, deliver))
    with net.serve(grid) as address, child(net, address, 6.0):
        grid_start(grid, 1)
        message = requests_to(net.holders["a"].subject.node_id)
        assert values(grid.send_and_receive([message], timeout=ENOUGH)) == [7.0]
        assert left == []  # six seconds of a second's heartbeats


def test_a_holder_that_is_frozen_is_noticed_though_its_connection_stays(net, quick_pings):
    grid = net.grid()
    with net.serve(grid) as address, child(net, address, 60.0) as process:
        grid_start(grid, 1)
        message = requests_to(net.holders["a"].subject.node_id)
        grid.push_messages([message])
        assert process.stdout.readline() == b"busy\n"
        process.send_signal(signal.SIGSTOP)
        until(lambda: not grid._here(), 10)
