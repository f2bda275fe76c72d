"""Row 7: no count, loss or other number leaves that is not declared, noised and charged.

The check canonicalises an outgoing message into its leaves and holds each against the allow-list.
The broken variants are what Flower's examples send, num-examples and a loss beside the arrays, and
a signed head that has the number of users where its counter should be.
"""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from credit_client.gate import Exit, Gate
from credit_client.heads import OwnHeads
from credit_client.ledger import Ledger
from credit_common import federation_pb2 as pb
from credit_common import wire
from credit_common.certificates import load_key
from credit_common.heads import Head, sign_head
from credit_common.privacy import mechanism_plan
from credit_common.protocol import from_head, hello, to_head, to_reply

SCHEMA = {"head.bias": (1,), "wide.weight": (1, 4)}
ALLOWED = {
    "Reply": {
        "message_id",
        *(f"adapter/{name}" for name in SCHEMA),
        f"histogram/{wire.HISTOGRAM}",
        "refused",
    },
    "Hello": {"wire_versions", "contract_digest"},
}


def leaves(message):
    """Names of all that a message carries, arrays by their names in it, unknown fields too."""
    found = set()
    for field, value in message.ListFields():
        if field.name in ("adapter", "histogram", "statistics"):
            found |= {f"{field.name}/{name}" for name in wire.unpack(value)}
        elif field.message_type is not None and not field.message_type.fields:
            found.add(field.name)
        else:
            found.add(field.name)
    known = type(message).FromString(message.SerializeToString())
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():
        found.add("an unknown field")
    return found


def flower_leaves(reply):
    """The same for a Flower message, before it is put on the wire."""
    found = set()
    for name, record in reply.content.items():
        found |= {f"{name}/{key}" for key in record}
    return found


FLOWER_ALLOWED = {"arrays/head.bias", "arrays/wide.weight", "metrics/weight", "metrics/histogram"}


def check_nothing_undeclared(message):
    name = type(message).DESCRIPTOR.name
    assert leaves(message) <= ALLOWED[name]


def check_flower_message(reply, public_weights):
    assert flower_leaves(reply) <= FLOWER_ALLOWED
    assert reply.content["metrics"]["weight"] in public_weights


def request(kind="train"):
    wire.set_identity(7, wire.SERVER_NODE)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SCHEMA.items()}
    content = RecordDict(
        {
            wire.ARRAYS: wire.array_record(arrays),
            wire.CONFIG: ConfigRecord({wire.ROUND: 1}),
        }
    )
    message = Message(content, dst_node_id=2, message_type=kind)
    wire.set_message_id(message, f"m-{kind}")
    return message


def adapter():
    return {name: np.ones(shape, np.float32) for name, shape in SCHEMA.items()}


@pytest.fixture
def replies(contract):
    plan = mechanism_plan(contract, "small")
    with Ledger.in_memory() as ledger:
        gate = Gate(contract, plan, ledger, SCHEMA)
        counts = np.full((2, contract.evaluation.bins), 1.5)
        yield [
            gate.send_adapter(request(), adapter),
            gate.send_histogram(request("evaluate"), lambda: counts),
        ]


def test_row_07_only_declared_fields_leave(contract, replies):
    public = {mechanism_plan(contract, name).expected_batch_size for name in ("small", "large")}
    for reply in replies:
        check_flower_message(reply, public)
        check_nothing_undeclared(to_reply(reply))
    check_nothing_undeclared(to_reply(wire.refusal(request())))
    check_nothing_undeclared(hello(contract.digest))


def test_row_07_the_schema_has_no_field_for_more():
    """What ALLOWED and the signed head list is all that the messages of a holder can carry."""
    declared = {field.name for field in pb.Reply.DESCRIPTOR.fields}
    assert declared <= {"message_id", "adapter", "histogram", "statistics", "refused", "head"}
    assert {field.name for field in pb.Hello.DESCRIPTOR.fields} == ALLOWED["Hello"] | {"head"}


def stock_reply(metrics):
    """What a Flower client app sends by the framework's examples."""
    arrays = wire.array_record(adapter())
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=request())


@pytest.mark.parametrize(
    "metrics",
    [
        {"weight": 30.0, "num-examples": 37},
        {"weight": 30.0, "train_loss": 0.31},
        {"weight": 30.0, "auc": 0.7},
        {"weight": 37.0},  # a count in the place of the public weight
    ],
)
def test_row_07_catches_what_flower_clients_send(metrics):
    with pytest.raises(AssertionError):
        check_flower_message(stock_reply(metrics), {30.0, 300.0})


def test_row_07_catches_an_array_or_a_field_that_is_smuggled_in():
    more = {**adapter(), "users": np.ones(1, np.float32)}
    with pytest.raises(AssertionError):
        check_nothing_undeclared(pb.Reply(message_id="m", adapter=wire.pack(more)))
    grown = pb.Reply(message_id="m").SerializeToString() + bytes([15 << 3, 37])
    with pytest.raises(AssertionError):
        check_nothing_undeclared(pb.Reply.FromString(grown))


@pytest.fixture
def holder(enrolled, contract):
    """An enrolled holder and its open ledger, with two charged answers, "m0" and "m1"."""
    identity = enrolled
    plan = mechanism_plan(contract, "small")
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        for number in range(2):
            ledger.charge(
                "train",
                plan.round_event(),
                contract_digest=contract.digest,
                message_id=f"m{number}",
                request_digest="r",
                reply=wire.pack(adapter()),
                budget_epsilon=plan.epsilon,
                delta=plan.delta,
            )
        yield identity, ledger


def check_the_head_is_the_ledgers(identity, ledger, head):
    """The bytes of an answer with this head, sent as `Link` sends them."""
    reply = pb.Reply(message_id="m1", adapter=wire.pack(adapter()))
    reply.head.CopyFrom(to_head(head))
    sent = pb.Reply.FromString(Exit(identity.manifest, ledger).answer(reply, 2))
    assert leaves(sent) == {"message_id", "head", *(f"adapter/{name}" for name in SCHEMA)}
    assert leaves(sent.head) <= set(Head.__dataclass_fields__)
    told, delta = from_head(sent), identity.bundle.contract.privacy.delta
    spent = {
        "epsilon": ledger.epsilon_overall(delta),
        "epsilon_replace_one": ledger.epsilon_replace_one(delta),
    }
    public = {
        "node_id": identity.subject.node_id,
        "contract_digest": identity.bundle.contract.digest,
        "counter": ledger.balance.counter,
        "overrides": 0,
        "delta": delta,
    }
    found = {name: value for name, value in vars(told).items() if name in {*public, *spent}}
    assert found in (public | dict.fromkeys(spent), public | spent)
    honest = OwnHeads(identity, ledger).head()  # what is left is a hash, a key and a signature
    assert (told.blinded_hash, told.public_key) == (honest.blinded_hash, honest.public_key)
    own_fields = {"blinded_hash", "public_key", "signature"}
    assert set(vars(told)) == {*public, *spent, *own_fields}


@pytest.mark.parametrize("spend", [False, True])
def test_row_07_a_signed_head_says_what_the_ledger_says_and_no_more(holder, spend):
    identity, ledger = holder
    head = OwnHeads(identity, ledger).head(spend=spend)
    assert (head.epsilon is not None) is spend
    check_the_head_is_the_ledgers(identity, ledger, head)
    opening = hello(identity.bundle.contract.digest, head)
    assert leaves(opening) == {*ALLOWED["Hello"], "head"}


@pytest.mark.parametrize(
    "lie", [{"counter": 37}, {"overrides": 37}, {"epsilon": 0.37, "epsilon_replace_one": 0.5}]
)
def test_row_07_catches_a_number_of_users_in_a_head(holder, lie):
    identity, ledger = holder
    fields = vars(OwnHeads(identity, ledger).head()) | lie
    del fields["public_key"], fields["signature"]
    key = load_key(identity.key_pem, str(identity.key_path))
    with pytest.raises(AssertionError):
        check_the_head_is_the_ledgers(identity, ledger, sign_head(key, **fields))


def test_row_07_a_field_that_a_head_grows_does_not_leave(holder):
    identity, ledger = holder
    head = to_head(OwnHeads(identity, ledger).head())
    reply = pb.Reply(message_id="m1", adapter=wire.pack(adapter()))
    reply.head.ParseFromString(head.SerializeToString() + bytes([15 << 3, 37]))
    assert "an unknown field" in leaves(reply.head)
    sent = pb.Reply.FromString(Exit(identity.manifest, ledger).answer(reply, 2))
    assert leaves(sent.head) == leaves(head)
