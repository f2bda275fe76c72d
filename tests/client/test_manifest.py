import hashlib
import json
import os
import re
from pathlib import Path

import pytest

import credit_client
from credit_client.gate import Exit
from credit_client.ledger import Ledger
from credit_client.manifest import CHARGED, Manifest, listed
from credit_common import federation_pb2 as pb
from credit_common.errors import PrivacyError
from credit_common.events import Histogram
from credit_common.protocol import hello

PAYLOAD = b"bytes of an adapter"


@pytest.fixture
def manifest(tmp_path):
    return Manifest(tmp_path / "own.manifest.jsonl")


@pytest.fixture
def ledger():
    with Ledger.in_memory() as made:
        made.charge(
            "train",
            Histogram(noise_multiplier=2.0),
            contract_digest="c",
            message_id="m1",
            request_digest="r",
            reply=PAYLOAD,
            budget_epsilon=50.0,
            delta=1e-5,
        )
        yield made


def test_each_message_is_listed_with_the_size_that_leaves(manifest, ledger):
    door = Exit(manifest, ledger)
    sizes = [
        len(door.greeting(hello("d" * 64))),
        len(door.answer(pb.Reply(message_id="m1", adapter=PAYLOAD), 3)),
        len(door.answer(pb.Reply(message_id="m2", refused=pb.Refused()), 4)),
    ]
    lines = manifest.lines()
    assert [line.bytes for line in lines] == sizes
    assert [line.message for line in lines] == ["greeting", "adapter", "refusal"]
    assert [(line.message_id, line.round) for line in lines] == [(None, None), ("m1", 3), ("m2", 4)]
    assert lines[1].payload_sha256 == hashlib.sha256(PAYLOAD).hexdigest()
    if os.name == "posix":
        assert manifest.path.stat().st_mode & 0o077 == 0


def test_what_leaves_is_the_message_itself(manifest, ledger):
    reply = pb.Reply(message_id="m1", adapter=PAYLOAD)
    assert pb.Reply.FromString(Exit(manifest, ledger).answer(reply, 1)) == reply


@pytest.mark.parametrize(
    "reply",
    [
        pb.Reply(message_id="m1", adapter=PAYLOAD + b"x"),
        pb.Reply(message_id="m2", adapter=PAYLOAD),
        pb.Reply(message_id="m2", histogram=b"counts"),
        pb.Reply(message_id="m1"),
        pb.Reply(),
    ],
)
def test_nothing_leaves_that_the_ledger_did_not_charge(manifest, ledger, reply):
    with pytest.raises(PrivacyError, match="charge"):
        Exit(manifest, ledger).answer(reply, 1)
    assert manifest.lines() == []


def test_before_a_ledger_is_open_no_answer_leaves(manifest):
    with pytest.raises(PrivacyError, match="no charge"):
        Exit(manifest).answer(pb.Reply(message_id="m1", adapter=PAYLOAD), 1)


def test_a_field_that_is_not_declared_does_not_leave(manifest, ledger):
    smuggled = pb.Reply(message_id="m1", adapter=PAYLOAD).SerializeToString()
    smuggled += bytes([15 << 3 | 2, 5]) + b"users"
    content = Exit(manifest, ledger).answer(pb.Reply.FromString(smuggled), 1)
    assert b"users" not in content


def test_nothing_leaves_unlisted(manifest, ledger):
    manifest.path.mkdir()
    with pytest.raises(PrivacyError, match="cannot write"):
        Exit(manifest, ledger).greeting(hello("d" * 64))


def test_every_kind_of_answer_with_arrays_is_one_that_must_be_charged():
    outcome = {field.name for field in pb.Reply.DESCRIPTOR.oneofs_by_name["outcome"].fields}
    assert outcome == {*CHARGED, "refused"}


def test_the_gate_alone_makes_bytes_of_messages():
    """No other module of a holder serialises a message; what is not made cannot be sent."""
    package = Path(credit_client.__file__).parent
    made = re.compile(r"SerializeToString|SerializePartial|\.dumps\(.*pb\.")
    found = {p.name for p in package.rglob("*.py") if made.search(p.read_text(encoding="utf-8"))}
    assert found == {"gate.py"}
    link = (package / "link.py").read_text(encoding="utf-8")
    calls = re.findall(r"self\._(?:join|work|answer)\((.*?)[,)]", link)
    assert set(calls) == {"self._greeting(", "content"}


def test_the_manifest_is_held_against_the_ledger(manifest, ledger):
    door = Exit(manifest, ledger)
    door.greeting(hello("d" * 64))
    for _ in range(2):  # an answer that was sent again is listed again, and charged once
        door.answer(pb.Reply(message_id="m1", adapter=PAYLOAD), 3)
    found = list(listed(manifest.lines(), ledger.entries()))
    assert [item.entry and item.entry.sequence for item in found] == [None, 1, 1]
    with pytest.raises(PrivacyError, match=r"'m1'.*no charge"):
        list(listed(manifest.lines(), []))


def test_half_a_line_that_a_crash_left_is_no_message(manifest, ledger):
    Exit(manifest, ledger).greeting(hello("d" * 64))
    whole = manifest.lines()
    with manifest.path.open("a") as file:
        file.write('{"time": "2026')
    assert manifest.lines() == whole


@pytest.mark.parametrize("left", ['{"time": "2026', "{", "\0" * 40, '{"a": 1}'])
@pytest.mark.parametrize("before", [0, 2])
def test_after_half_a_line_the_next_message_has_a_line_of_its_own(manifest, before, left):
    for number in range(before):
        manifest.add("greeting", number)
    with manifest.path.open("a") as file:
        file.write(left)
    manifest.add("refusal", 7, message_id="m", round=1)
    manifest.add("greeting", 8)
    assert [line.bytes for line in manifest.lines()] == [*range(before), 7, 8]


@pytest.mark.parametrize("line", ["x", "{}", "[]", '{"time": 1}', "null"])
def test_a_damaged_line_is_named(manifest, line):
    manifest.path.write_text(line + "\n")
    with pytest.raises(PrivacyError, match="line 1 is damaged"):
        manifest.lines()


def test_no_manifest_is_an_empty_one(manifest):
    assert manifest.lines() == []
    json.dumps([vars(line) for line in manifest.lines()])
