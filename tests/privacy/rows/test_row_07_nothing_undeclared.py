"""Row 7: no count, loss or other number leaves that is not declared, noised and charged.

The check canonicalises an outgoing message into its leaves and holds each against the allow-list.
The broken variant is what Flower's examples send: num-examples and a loss beside the arrays.
"""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_common import federation_pb2 as pb
from credit_common import wire
from credit_common.privacy import mechanism_plan
from credit_common.protocol import hello, to_reply

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
