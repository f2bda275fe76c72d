import dataclasses
import json

import pytest

from credit_common import federation_pb2 as pb
from credit_common import protocol
from credit_common.certificates import new_key
from credit_common.errors import TrustError
from credit_common.heads import check_head, head_from_json, head_to_json, sign_head


def signed(key=None, **changes):
    fields = {
        "node_id": 2,
        "contract_digest": "c" * 64,
        "counter": 7,
        "blinded_hash": "b" * 64,
        "overrides": 0,
        "delta": 1e-5,
        "epsilon": 1.25,
        "epsilon_replace_one": None,
    }
    return sign_head(key or new_key(), **{**fields, **changes})


def test_a_head_says_the_same_after_json_and_after_the_wire():
    for head in (signed(), signed(epsilon=None), signed(epsilon=0.0, epsilon_replace_one=3.5)):
        assert head_from_json(json.loads(json.dumps(head_to_json(head)))) == head
        reply = pb.Reply.FromString(pb.Reply(head=protocol.to_head(head)).SerializeToString())
        assert protocol.from_head(reply) == head
    assert protocol.from_head(pb.Reply()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": 3},
        {"contract_digest": "d" * 64},
        {"counter": 6},
        {"blinded_hash": "d" * 64},
        {"overrides": 1},
        {"delta": 1e-6},
        {"epsilon": 1.0},
        {"epsilon": None},
        {"epsilon_replace_one": 1.0},
        {"public_key": signed().public_key},
        {"signature": ""},
        {"signature": "00"},
        {"signature": signed().signature},
    ],
)
def test_no_field_can_be_changed_after_signing(change):
    head = signed()
    check_head(head)
    with pytest.raises(TrustError, match="not signed"):
        check_head(dataclasses.replace(head, **change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"node_id": 1}, "node_id"),
        ({"counter": -1}, "counter"),
        ({"counter": True}, "counter"),
        ({"counter": 1.0}, "counter"),
        ({"overrides": -1}, "overrides"),
        ({"delta": 0.0}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"epsilon_replace_one": float("nan")}, "epsilon_replace_one"),
        ({"blinded_hash": "x" * 64}, "blinded_hash"),
        ({"contract_digest": ""}, "contract_digest"),
    ],
)
def test_a_head_out_of_bounds_cannot_be_made(change, named):
    with pytest.raises(TrustError, match=f"head.{named}"):
        signed(**change)


@pytest.mark.parametrize("plain", [None, [], {}, {"node_id": 2}, "x"])
def test_what_is_no_head_is_refused(plain):
    with pytest.raises(TrustError, match="table"):
        head_from_json(plain)


def test_a_head_of_other_types_is_refused():
    plain = head_to_json(signed())
    for name in plain:
        with pytest.raises(TrustError):
            head_from_json({**plain, name: ["x"]})
    with pytest.raises(TrustError):
        head_from_json({**plain, "more": 1})
