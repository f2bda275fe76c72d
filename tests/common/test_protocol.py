import dataclasses
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

import credit_common
from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_common import federation_pb2 as pb
from credit_common import protocol, wire
from credit_common.errors import LinkError, WireError
from credit_common.heads import Head
from credit_common.privacy import mechanism_plan
from credit_common.statistics import edge_arrays, statistics_shapes
from credit_common.upload import decode, encode

SCHEMA = {"head.bias": (1,), "wide.weight": (1, 4)}
ADAPTER = {
    "head.bias": np.array([0.25], np.float32),
    "wide.weight": np.array([[1.0, -0.0, 1e-40, 3e38]], np.float32),
}
COUNTS = np.array([[1.5, -2.25, 1e-300], [0.1, 7.0, 1e15]])
SHAPE = (2, 3)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 3), min_size=1, max_size=3)
words = st.integers(0, 2**32 - 1)  # of any bits: nan with a payload, -0, infinity, subnormal


@st.composite
def adapters(draw):
    made = {}
    for name in draw(st.sets(names.filter(lambda n: n != "__metadata__"), max_size=4)):
        shape = draw(shapes)
        size = int(np.prod(shape))
        bits = draw(st.lists(words, min_size=size, max_size=size))
        made[name] = np.array(bits, np.uint32).view(np.float32).reshape(shape)
    return made


@pytest.fixture(autouse=True)
def coordinator():
    wire.set_identity(7, wire.SERVER_NODE)


def message(arrays=None, kind="train", round_=1, message_id="m1"):
    records = {
        wire.ARRAYS: wire.array_record(ADAPTER if arrays is None else arrays),
        wire.CONFIG: ConfigRecord({wire.ROUND: round_}),
    }
    made = Message(RecordDict(records), dst_node_id=5, message_type=kind)
    wire.set_message_id(made, message_id)
    return made


def sent(what):
    """A protobuf message after the way over the wire."""
    return type(what).FromString(what.SerializeToString())


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@settings(max_examples=60, deadline=None)
@given(
    arrays=adapters(),
    kind=st.sampled_from(["train", "evaluate"]),
    round_=st.integers(1, 2**32 - 1),
    message_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=200),
    node_id=st.integers(2, 2**63 - 1),
)
def test_a_request_comes_back_as_it_was(arrays, kind, round_, message_id, node_id):
    wire.set_identity(7, wire.SERVER_NODE)
    made = message(arrays, kind, round_, message_id)
    back = protocol.from_request(sent(protocol.to_request(made)), node_id)
    assert back.metadata.message_id == message_id
    assert back.metadata.message_type == kind
    assert back.metadata.dst_node_id == node_id
    assert back.metadata.src_node_id == wire.SERVER_NODE
    assert wire.request_round(back) == round_
    assert same_bits(wire.request_arrays(back), arrays)
    # What a holder's ledger knows a request by is the same at both ends.
    assert wire.request_digest(back, "contract") == wire.request_digest(made, "contract")


@settings(max_examples=60, deadline=None)
@given(arrays=adapters())
def test_an_adapters_payload_is_on_the_wire_byte_for_byte(arrays):
    wire.set_identity(7, wire.SERVER_NODE)
    asked = message()
    payload = wire.pack(arrays)
    reply = sent(protocol.to_reply(wire.adapter_reply(asked, payload, 30.0)))
    assert reply.adapter == payload
    back = protocol.from_reply(asked, reply, 30.0, SHAPE)
    got = {name: array.numpy() for name, array in back.content[wire.ARRAYS].items()}
    assert same_bits(got, arrays)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda bins: st.lists(
            st.floats(allow_nan=False, allow_infinity=False), min_size=2 * bins, max_size=2 * bins
        )
    )
)
def test_a_histograms_payload_is_on_the_wire_byte_for_byte(counts):
    wire.set_identity(7, wire.SERVER_NODE)
    asked = message(kind="evaluate")
    table = np.array(counts).reshape(2, -1)
    payload = wire.pack({wire.HISTOGRAM: table})
    reply = sent(protocol.to_reply(wire.histogram_reply(asked, payload, 30.0)))
    assert reply.histogram == payload
    back = protocol.from_reply(asked, reply, 30.0, table.shape)
    assert np.array(back.content[wire.METRICS][wire.HISTOGRAM]).tobytes() == table.tobytes()


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_what_leaves_is_what_the_ledger_keeps_and_the_same_at_every_repetition(contract, kind):
    plan = mechanism_plan(contract, "small")
    draws = iter(range(1, 9))
    with Ledger.in_memory() as ledger:
        gate = Gate(contract, plan, ledger, SCHEMA)

        def answer(asked):
            if kind == "train":
                return gate.send_adapter(
                    asked, lambda: {n: a / next(draws) for n, a in ADAPTER.items()}
                )
            return gate.send_histogram(
                asked, lambda: np.full((2, contract.evaluation.bins), next(draws) / 3)
            )

        asked = message(kind=kind)
        first = sent(protocol.to_reply(answer(asked)))
        again = sent(protocol.to_reply(answer(asked)))
        kept = ledger.lookup("m1", wire.request_digest(asked, contract.digest))
    assert first == again
    assert kept
    assert (first.adapter if kind == "train" else first.histogram) == kept
    assert {field.name for field, _ in first.ListFields()} == {
        "message_id",
        "adapter" if kind == "train" else "histogram",
    }


@pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
def test_the_ledger_keeps_the_very_bytes_of_an_upload_and_so_gets_smaller(contract, upload):
    training = dataclasses.replace(contract.training, upload=upload)
    contract = dataclasses.replace(contract, training=training)
    base = {"w": np.zeros((8, 400), np.float32)}
    draw, asked = np.random.default_rng(0), message(base)

    def trained():
        after = {"w": draw.standard_normal((8, 400)).astype(np.float32)}
        return encode(upload, after, base, draw.random)

    with Ledger.in_memory() as ledger:
        gate = Gate(contract, mechanism_plan(contract, "small"), ledger, {"w": (8, 400)})
        first, again = (sent(protocol.to_reply(gate.send_adapter(asked, trained))) for _ in "ab")
        kept = ledger.lookup("m1", wire.request_digest(asked, contract.digest))
        ledger.confirm("m1", first.adapter)
    assert first == again
    assert first.adapter == kept
    assert len(kept) <= 200 + 3200 * {"float32": 4, "bfloat16": 2, "int8": 1}[upload]
    back = protocol.from_reply(asked, first, 1.0, SHAPE)
    arrays = wire.uploaded(back.content[wire.ARRAYS])
    assert wire.pack(arrays) == kept
    after = decode(upload, arrays, base)["w"]
    assert 0.9 < after.std() < 1.1


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_refusal_is_its_id_and_nothing_else(kind):
    asked = message(kind=kind)
    reply = protocol.to_reply(wire.refusal(asked))
    bare = pb.Reply(message_id="m1", refused=pb.Refused())
    assert reply.SerializeToString() == bare.SerializeToString()
    back = protocol.from_reply(asked, sent(reply), 30.0, SHAPE)
    assert (back.error.code, back.error.reason) == (wire.REFUSED, "refused")
    assert back.metadata.reply_to_message_id == "m1"


def test_the_weight_is_the_coordinators_own_whatever_the_holder_made_it():
    asked = message()
    theirs = wire.adapter_reply(asked, wire.pack(ADAPTER), 1e9)
    back = protocol.from_reply(asked, sent(protocol.to_reply(theirs)), 30.0, SHAPE)
    assert dict(back.content[wire.METRICS]) == {wire.WEIGHT: 30.0}
    asked = message(kind="evaluate")
    theirs = wire.histogram_reply(asked, wire.pack({wire.HISTOGRAM: COUNTS}), 1e9)
    back = protocol.from_reply(asked, sent(protocol.to_reply(theirs)), 30.0, SHAPE)
    assert back.content[wire.METRICS][wire.WEIGHT] == 30.0


OUTCOMES = {
    "adapter": {"adapter": wire.pack(ADAPTER)},
    "histogram": {"histogram": wire.pack({wire.HISTOGRAM: COUNTS})},
    "nothing": {},
}


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("train", "histogram"),
        ("train", "nothing"),
        ("evaluate", "adapter"),
        ("evaluate", "nothing"),
    ],
)
def test_a_reply_is_what_the_request_asked_for(kind, outcome):
    asked = {"train": "adapter", "evaluate": "histogram"}[kind]
    with pytest.raises(WireError, match=f"reply has {outcome}, the request asked for {asked}"):
        protocol.from_reply(
            message(kind=kind), pb.Reply(message_id="m1", **OUTCOMES[outcome]), 1.0, SHAPE
        )


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({wire.HISTOGRAM: COUNTS[:, :2]}, r"shape \(2, 2\), must have \(2, 3\)"),
        ({wire.HISTOGRAM: COUNTS.T}, "must be"),
        ({wire.HISTOGRAM: COUNTS.ravel()}, "must be"),
        ({wire.HISTOGRAM: COUNTS[None]}, "must be"),
        ({wire.HISTOGRAM: COUNTS.astype(np.float32)}, "float64"),
        ({wire.HISTOGRAM: COUNTS.astype(np.int64)}, "float64"),
        ({wire.HISTOGRAM: np.where(COUNTS > 7, np.nan, COUNTS)}, "finite"),
        ({wire.HISTOGRAM: np.where(COUNTS > 7, -np.inf, COUNTS)}, "finite"),
        ({"counts": COUNTS}, "named"),
        ({wire.HISTOGRAM: COUNTS, "more": COUNTS}, "named"),
        ({}, "named"),
    ],
)
def test_a_histogram_has_one_name_type_and_shape(arrays, says):
    reply = pb.Reply(message_id="m1", histogram=wire.pack(arrays))
    with pytest.raises(WireError, match=says):
        protocol.from_reply(message(kind="evaluate"), reply, 1.0, SHAPE)


ASKED = {"statistics.age": (3,), "statistics.a b": (2,)}
TOLD = {"statistics.age": np.array([1.5, -2.25, 1e15]), "statistics.a b": np.array([0.1, -0.0])}


def test_statistics_are_on_the_wire_byte_for_byte_and_as_the_ledger_keeps_them(federated):
    draws = iter(range(1, 9))
    with Ledger.in_memory() as ledger:
        gate = Gate(federated, mechanism_plan(federated, "small"), ledger, SCHEMA)
        shapes = statistics_shapes(federated)

        def counts():
            return {name: np.full(shape, next(draws) / 3) for name, shape in shapes.items()}

        asked = message({}, "query")
        first, again = (
            sent(protocol.to_reply(gate.send_statistics(asked, counts))) for _ in range(2)
        )
        kept = ledger.lookup("m1", wire.request_digest(asked, federated.digest))
    assert first == again
    assert first.statistics == kept
    assert {field.name for field, _ in first.ListFields()} == {"message_id", "statistics"}
    back = protocol.from_reply(asked, first, 30.0, SHAPE, shapes)
    assert set(back.content) == {wire.METRICS}
    assert wire.pack(wire.reply_statistics(back)) == kept


def test_a_request_for_statistics_comes_back_as_it_was():
    made = message({}, "query")
    back = protocol.from_request(sent(protocol.to_request(made)), 5)
    assert back.metadata.message_type == "query"
    assert wire.request_arrays(back) == {}
    assert wire.request_digest(back, "contract") == wire.request_digest(made, "contract")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({**TOLD, "statistics.age": np.ones(2)}, r"must be float64 \(3,\)"),
        ({**TOLD, "statistics.age": np.ones((3, 1))}, "one row"),
        ({**TOLD, "statistics.age": np.ones(3, np.float32)}, "one row of float64"),
        ({**TOLD, "statistics.age": np.ones(3, np.int64)}, "one row of float64"),
        ({**TOLD, "statistics.age": np.full(3, np.nan)}, "finite"),
        ({**TOLD, "statistics.age": np.full(3, -np.inf)}, "finite"),
        ({**TOLD, "users": np.ones(1)}, "users"),
        ({"statistics.age": np.ones(3)}, "missing"),
        ({}, "missing"),
    ],
)
def test_statistics_have_the_contracts_names_types_and_shapes(arrays, says):
    asked = message({}, "query")
    right = pb.Reply(message_id="m1", statistics=wire.pack(TOLD))
    assert not protocol.from_reply(asked, right, 1.0, SHAPE, ASKED).has_error()
    reply = pb.Reply(message_id="m1", statistics=wire.pack(arrays))
    with pytest.raises(WireError, match=says):
        protocol.from_reply(asked, reply, 1.0, SHAPE, ASKED)


def test_statistics_that_no_contract_asks_for_are_refused():
    reply = pb.Reply(message_id="m1", statistics=wire.pack(TOLD))
    for shapes in ({}, None):
        with pytest.raises(WireError, match="does not ask"):
            protocol.from_reply(message({}, "query"), reply, 1.0, SHAPE, shapes)
    for kind, asked in (("train", "adapter"), ("evaluate", "histogram")):
        with pytest.raises(WireError, match=f"reply has statistics, the request asked for {asked}"):
            protocol.from_reply(message(kind=kind), reply, 1.0, SHAPE, ASKED)
    for outcome in ("adapter", "histogram"):
        other = pb.Reply(message_id="m1", **OUTCOMES[outcome])
        with pytest.raises(WireError, match=f"reply has {outcome}, the request asked for stat"):
            protocol.from_reply(message({}, "query"), other, 1.0, SHAPE, ASKED)


def test_the_largest_arrays_are_those_of_an_adapter_with_edges_or_of_statistics(
    contract, federated
):
    small, large = {"w": np.zeros(3, np.float32)}, {"w": np.zeros(9000, np.float32)}
    edges = edge_arrays({f.name: f.grid.inner[: f.bins - 1] for f in federated.federated_fields})
    counts = {name: np.zeros(shape) for name, shape in statistics_shapes(federated).items()}
    assert protocol.largest_arrays(contract, small) == 2 * contract.evaluation.bins * 8
    assert protocol.largest_arrays(contract, large) == len(wire.pack(large))
    assert protocol.largest_arrays(federated, small) == len(wire.pack(counts)) > 241 * 8
    assert protocol.largest_arrays(federated, large) == len(wire.pack({**large, **edges}))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool"])
def test_an_adapter_that_is_asked_to_be_trained_is_float32(dtype):
    payload = wire.pack({"a": np.ones(3, dtype)})
    request = pb.Request(message_id="m1", kind=pb.TRAIN, round=1, arrays=payload)
    with pytest.raises(WireError, match="array a: must be float32"):
        protocol.from_request(request, 5)


@pytest.mark.parametrize("kind", [0, 4, -1, 2**31 - 1])
def test_a_request_of_another_kind_is_refused_by_number(kind):
    request = pb.Request(message_id="m1", round=1, arrays=wire.pack(ADAPTER))
    request.kind = kind
    with pytest.raises(WireError, match=f"kind {kind}: must be one of 1 .train., 2 .evalu"):
        protocol.from_request(sent(request), 5)


@pytest.mark.parametrize("kind", ["query.default", "train.default", "evaluate.extra", "system"])
def test_a_message_of_another_kind_does_not_go_out(kind):
    with pytest.raises(WireError, match="must be one of train, evaluate"):
        protocol.to_request(message(kind=kind))


@pytest.mark.parametrize("message_id", ["", "x" * 201])
def test_a_message_id_has_1_to_200_characters(message_id):
    request = protocol.to_request(message())
    request.message_id = message_id
    with pytest.raises(WireError, match="1 to 200 characters"):
        protocol.from_request(request, 5)
    request.message_id = "x" * 200
    assert protocol.from_request(request, 5).metadata.message_id == "x" * 200


class Opened:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_pickles_are_refused_unopened(tmp_path):
    trace = tmp_path / "trace"
    file = io.BytesIO()
    np.save(file, np.array([Opened(trace)], object), allow_pickle=True)
    for payload in (pickle.dumps(Opened(trace)), file.getvalue()):
        replies = (
            ("train", pb.Reply(message_id="m1", adapter=payload)),
            ("evaluate", pb.Reply(message_id="m1", histogram=payload)),
            ("query", pb.Reply(message_id="m1", statistics=payload)),
        )
        for kind, reply in replies:
            with pytest.raises(WireError, match="not in safetensors format"):
                protocol.from_reply(message(kind=kind), reply, 1.0, SHAPE)
        request = pb.Request(message_id="m1", kind=pb.TRAIN, round=1, arrays=payload)
        with pytest.raises(WireError, match="not in safetensors format"):
            protocol.from_request(request, 5)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Opened(trace)))
    assert trace.exists()  # opened, it would have left its trace


def with_header(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


TYPES = "BOOL F4 F6_E2M3 F8_E5M2 F8_E4M3 F8_E8M0 U8 I8 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*TYPES.split(), "object", "O", "f4", ""]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, 4, 2**31, 2**63]), max_size=3),
        "data_offsets": st.lists(
            st.sampled_from([0, 1, 2, 4, 8, 16, 24, 48, 2**40]), min_size=2, max_size=2
        ),
    }
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", wire.HISTOGRAM, "__metadata__", ""]), entries, max_size=2
)
whole = wire.pack(ADAPTER), wire.pack({wire.HISTOGRAM: COUNTS})
payloads = st.one_of(
    st.binary(max_size=200),
    st.builds(with_header, headers, st.sampled_from([0, 1, 4, 16, 48]).map(bytes)),
    st.builds(with_header, st.binary(max_size=60), st.binary(max_size=20)),
    st.builds(
        lambda good, where, what: (
            good[: where % len(good)] + bytes([what]) + good[where % len(good) + 1 :]
        ),
        st.sampled_from(whole),
        st.integers(0, 2**16),
        st.integers(0, 255),
    ),
)


@settings(max_examples=400, deadline=None)
@given(payload=payloads)
def test_no_payload_raises_anything_but_a_wire_error(payload):
    wire.set_identity(7, wire.SERVER_NODE)

    def tried(call, *arguments):
        try:
            return call(*arguments)
        except WireError as error:
            return error

    request = pb.Request(message_id="m1", kind=pb.TRAIN, round=1, arrays=payload)
    tried(protocol.from_request, request, 5)
    adapter = pb.Reply(message_id="m1", adapter=payload)
    tried(protocol.from_reply, message(), adapter, 1.0, SHAPE)
    histogram = pb.Reply(message_id="m1", histogram=payload)
    found = tried(protocol.from_reply, message(kind="evaluate"), histogram, 1.0, SHAPE)
    if isinstance(found, Message):
        assert np.isfinite(found.content[wire.METRICS][wire.HISTOGRAM]).all()
    counted = pb.Reply(message_id="m1", statistics=payload)
    tried(protocol.from_reply, message({}, "query"), counted, 1.0, SHAPE, ASKED)


def test_both_sides_agree_on_the_highest_common_version(monkeypatch):
    assert protocol.common_version(protocol.hello("d").wire_versions) in protocol.WIRE_VERSIONS
    monkeypatch.setattr(protocol, "WIRE_VERSIONS", (2, 3, 4))
    assert protocol.common_version([1, 2, 3]) == 3
    assert protocol.common_version([9, 4, 2]) == 4
    assert protocol.common_version([2]) == 2
    assert list(protocol.hello("d").wire_versions) == [2, 3, 4]


@pytest.mark.parametrize(("offered", "said"), [([8, 7], "7, 8"), ([], "none"), ([2**32 - 1], "42")])
def test_no_common_version_is_refused_by_both_sides_versions(offered, said):
    with pytest.raises(LinkError, match=f"the coordinator speaks 1, the holder {said}") as found:
        protocol.common_version(offered)
    assert found.value.final


def test_an_endless_list_of_versions_makes_no_endless_line():
    with pytest.raises(LinkError) as found:
        protocol.common_version(range(10**9, 10**9 + 50_000))
    assert len(str(found.value)) < 400


def test_hello_and_welcome_say_what_they_must():
    opened = sent(protocol.hello("ab12"))
    assert (list(opened.wire_versions), opened.contract_digest) == ([1], "ab12")
    answered = sent(protocol.welcome("shop-credit", 1))
    assert (answered.wire_version, answered.federation) == (1, "shop-credit")
    assert answered.server_time > 1.7e9


def test_the_generated_module_is_the_schemas(tmp_path):
    folder = Path(credit_common.__file__).parent
    out = tmp_path / "schema"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}"]
    command += [f"--descriptor_set_out={out}", "federation.proto"]
    subprocess.run(command, check=True, capture_output=True)
    (fresh,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    for described in fresh.message_type:
        for part in (described, *described.nested_type):
            for field in part.field:
                field.ClearField("json_name")  # set in a descriptor set alone
    assert fresh == descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)


def test_a_holder_can_send_these_fields_and_no_others():
    # Above all none that says who sends: that is in the certificate.
    fields = {
        name: [field.name for field in described.fields]
        for name, described in pb.DESCRIPTOR.message_types_by_name.items()
    }
    service = pb.DESCRIPTOR.services_by_name["Federation"]
    assert {method.input_type.name for method in service.methods} == {"Hello", "Reply"}
    assert fields["Hello"] == ["wire_versions", "contract_digest", "head"]
    outcomes = ["adapter", "histogram", "refused", "statistics"]
    assert fields["Reply"] == ["message_id", *outcomes, "head"]
    assert set(fields["Head"]) == set(Head.__dataclass_fields__)  # each is told in its docstring
    assert fields["Refused"] == []


def test_a_coordinator_can_ask_with_these_fields_and_no_others():
    request = pb.DESCRIPTOR.message_types_by_name["Request"]
    assert [field.name for field in request.fields] == ["message_id", "kind", "round", "arrays"]
    kinds = pb.DESCRIPTOR.enum_types_by_name["Kind"]
    known = ["UNSPECIFIED", "TRAIN", "EVALUATE", "STATISTICS"]
    assert [value.name for value in kinds.values] == known
    said = {
        word
        for name, described in pb.DESCRIPTOR.message_types_by_name.items()
        if name != "Head"  # its signature says whose it is, and is held against the connection
        for field in described.fields
        for word in field.name.split("_")
    }
    assert not said & {"node", "name", "sender", "holder", "from", "weight", "count", "loss"}


def test_the_service_is_the_one_that_both_sides_name():
    service = pb.DESCRIPTOR.services_by_name["Federation"]
    assert service.full_name == protocol.SERVICE
    streams = {m.name: (m.client_streaming, m.server_streaming) for m in service.methods}
    assert streams == {"Join": (False, False), "Work": (False, True), "Answer": (False, False)}


def test_the_end_of_a_run_carries_counts_and_no_figure_that_has_a_name():
    end = pb.DESCRIPTOR.message_types_by_name["Finished"]
    names = ["rounds", "holders", "adapter", "created", "histogram", "evaluated", "edges", "heads"]
    assert [field.name for field in end.fields] == names
    assert end.fields_by_name["histogram"].type == end.fields_by_name["adapter"].type  # bytes


def test_the_largest_message_of_a_schema_fits_the_channel(contract):
    adapter = wire.pack({"w": np.zeros((300, 1000), np.float32)})
    most = Head(
        node_id=2**62,
        contract_digest="a" * 64,
        counter=2**62,
        blinded_hash="b" * 64,
        overrides=2**31,
        delta=1e-5,
        epsilon=8.0,
        epsilon_replace_one=16.0,
        public_key="c" * 182,
        signature="d" * 144,
    )
    finished = pb.Finished(
        rounds=10_000,
        holders=10_000,
        adapter=adapter,
        created="2026-01-01T00:00:00+00:00",
        histogram=wire.pack({wire.HISTOGRAM: np.zeros((2, 1000))}),
        evaluated=2**32 - 1,
        heads=[protocol.to_head(most)] * protocol.MOST_HEADS,
    )
    request = pb.Request(message_id="x" * 200, kind=pb.EVALUATE, round=2**32 - 1, arrays=adapter)
    reply = pb.Reply(message_id="x" * 200, adapter=adapter, head=protocol.to_head(most))
    down = max(pb.Task(request=request).ByteSize(), pb.Task(finished=finished).ByteSize())
    holder = dict(protocol.channel_options(len(adapter), "holder"))
    coordinator = dict(protocol.channel_options(len(adapter), "coordinator"))
    for ours, theirs, largest, spare in (
        (holder, coordinator, reply.ByteSize(), 2**17),
        (coordinator, holder, down, 2**21),
    ):
        limit = ours["grpc.max_send_message_length"]
        assert limit == theirs["grpc.max_receive_message_length"]
        assert largest <= limit < largest + spare
