import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from credit_common import wire
from credit_common.errors import WireError

ADAPTER = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), np.float32)}


@pytest.fixture(autouse=True)
def coordinator():
    wire.set_identity(7, wire.SERVER_NODE)


def request(arrays=None, kind="train", round_=1, config=None):
    record = arrays if isinstance(arrays, ArrayRecord) else wire.array_record(arrays or ADAPTER)
    records = {wire.ARRAYS: record, wire.CONFIG: ConfigRecord(config or {wire.ROUND: round_})}
    message = Message(RecordDict(records), dst_node_id=2, message_type=kind)
    wire.set_message_id(message, "m1")
    return message


def test_flower_still_has_the_names_that_are_not_public():
    message = request()
    assert message.metadata.run_id == 7
    assert message.metadata.src_node_id == wire.SERVER_NODE
    assert message.metadata.message_id == "m1"
    reply = wire.refusal(message)
    assert reply.metadata.reply_to_message_id == "m1"
    assert reply.metadata.dst_node_id == wire.SERVER_NODE
    assert reply.metadata.message_type == "train"
    assert wire.empty_run(7).run_id == 7
    context = wire.empty_context(7, 3)
    assert (context.run_id, context.node_id, len(context.state)) == (7, 3, 0)


def test_arrays_come_back_as_they_were_packed():
    packed = wire.pack(ADAPTER)
    back = wire.unpack(packed)
    assert set(back) == set(ADAPTER)
    for name, array in ADAPTER.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)


def test_the_same_arrays_make_the_same_bytes():
    turned = {"a": np.asfortranarray(ADAPTER["a"]), "b": ADAPTER["b"][::-1][::-1]}
    assert wire.pack(turned) == wire.pack(ADAPTER)
    assert wire.pack({**ADAPTER, "a": ADAPTER["a"] * 2}) != wire.pack(ADAPTER)


class Opened:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def broken_payloads(tmp_path):
    whole = wire.pack(ADAPTER)
    return {
        "pickle": pickle.dumps(Opened(tmp_path / "trace")),
        "empty": b"",
        "text": b"not tensors at all",
        "cut": whole[:-1],
        "longer": whole + b"x",
        "huge header": (2**62).to_bytes(8, "little") + whole[8:],
    }


@pytest.mark.parametrize("kind", ["pickle", "empty", "text", "cut", "longer", "huge header"])
def test_a_payload_that_is_not_safetensors_is_refused_unopened(tmp_path, kind):
    with pytest.raises(WireError, match="not in safetensors format"):
        wire.unpack(broken_payloads(tmp_path)[kind])
    assert not (tmp_path / "trace").exists()


def test_a_requests_arrays_come_back():
    back = wire.request_arrays(request())
    assert all(np.array_equal(back[name], ADAPTER[name]) for name in ADAPTER)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64", "bool"])
def test_only_float32_is_taken_from_a_request(dtype):
    with pytest.raises(WireError, match="array a: must be float32"):
        wire.request_arrays(request({"a": np.ones(3, dtype)}))


def test_an_array_that_lies_about_its_type_is_refused():
    data = Array(np.ones(3, np.float64)).data
    lying = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)
    with pytest.raises(WireError, match="must be float32"):
        wire.request_arrays(request(ArrayRecord({"a": lying})))


@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle", "torch"])
def test_a_pickled_array_is_refused_unopened(tmp_path, stype):
    trace = tmp_path / "trace"
    for data in (pickle.dumps(Opened(trace)), object_array(Opened(trace)), b""):
        array = Array(dtype="float32", shape=(1,), stype=stype, data=data)
        with pytest.raises(WireError, match="array a"):
            wire.request_arrays(request(ArrayRecord({"a": array})))
    assert not trace.exists()


def object_array(value):
    file = io.BytesIO()
    np.save(file, np.array([value], object), allow_pickle=True)
    return file.getvalue()


def test_a_request_has_exactly_one_record_of_arrays():
    none = Message(RecordDict({}), dst_node_id=2, message_type="train")
    two = request()
    two.content.array_records["more"] = wire.array_record(ADAPTER)
    for message in (none, two):
        with pytest.raises(WireError, match="one record of arrays"):
            wire.request_arrays(message)


@pytest.mark.parametrize("round_", [0, -1, 1.0, True, "1", [1]])
def test_a_round_is_a_positive_integer(round_):
    with pytest.raises(WireError, match="server-round"):
        wire.request_round(request(config={wire.ROUND: round_}))


def test_a_request_without_a_round_is_refused():
    with pytest.raises(WireError, match="server-round"):
        wire.request_round(request(config={"other": 1}))
    assert wire.request_round(request(round_=12)) == 12


def test_a_requests_digest_is_of_all_that_it_asks():
    changed = {**ADAPTER, "a": np.full((2, 2), np.nextafter(np.float32(1), np.float32(2)))}
    reshaped = {**ADAPTER, "a": np.ones((4, 1), np.float32)}
    renamed = {"b": ADAPTER["b"], "c": ADAPTER["a"]}
    digests = [
        wire.request_digest(request(), "contract one"),
        wire.request_digest(request(), "contract two"),
        wire.request_digest(request(round_=2), "contract one"),
        wire.request_digest(request(kind="evaluate"), "contract one"),
        wire.request_digest(request(kind="train.default"), "contract one"),
        wire.request_digest(request(changed), "contract one"),
        wire.request_digest(request(reshaped), "contract one"),
        wire.request_digest(request(renamed), "contract one"),
    ]
    assert len(set(digests)) == len(digests)
    again = request()
    wire.set_message_id(again, "another id")
    assert wire.request_digest(again, "contract one") == digests[0]


def test_replies_carry_what_they_are_named_for_and_nothing_else():
    adapter = wire.adapter_reply(request(), wire.pack(ADAPTER), 30.0).content
    assert set(adapter) == {wire.ARRAYS, wire.METRICS}
    assert dict(adapter[wire.METRICS]) == {wire.WEIGHT: 30.0}
    assert np.array_equal(adapter[wire.ARRAYS]["b"].numpy(), ADAPTER["b"])
    counts = np.array([[1.5, -2.0], [0.0, 7.25]])
    payload = wire.pack({wire.HISTOGRAM: counts})
    histogram = wire.histogram_reply(request(kind="evaluate"), payload, 30.0).content
    assert set(histogram) == {wire.METRICS}
    assert dict(histogram[wire.METRICS]) == {
        wire.WEIGHT: 30.0,
        wire.HISTOGRAM: [1.5, -2.0, 0.0, 7.25],
    }


def test_a_refusal_never_says_why():
    reply = wire.refusal(request())
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (wire.REFUSED, "refused")


def test_metrics_are_not_arrays():
    message = request()
    message.content["metrics"] = MetricRecord({"x": 1.0})
    assert set(wire.request_arrays(message)) == set(ADAPTER)
