"""The witness at the coordinator's door, and the end at a chosen call."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_common import federation_pb2 as pb
from credit_common.contract import Contract
from credit_common.wire import ARRAYS, CONFIG, ROUND, array_record, pack
from credit_server.grid import GrpcGrid
from credit_simulations.chaos.door import Calls, record
from credit_simulations.chaos.run import door_lines

ASKED = {"w": np.full(3, 0.5, np.float32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("push_messages", "answer"):  # as they are, so that they are put back
        monkeypatch.setattr(GrpcGrid, name, getattr(GrpcGrid, name))
    record(tmp_path)
    return tmp_path


def test_what_goes_out_and_comes_in_is_written_with_its_arrays(
    folder: Path, contract: Contract
) -> None:
    grid = GrpcGrid(contract, {"w": (3,)}, lambda: {"a": 2})
    grid.attach("a", 2, "small", lambda task: None)
    content = RecordDict({ARRAYS: array_record(ASKED), CONFIG: ConfigRecord({ROUND: 7})})
    message = Message(content, dst_node_id=2, message_type="train")
    (id_,) = grid.push_messages([message])
    payload = pack({"w": np.ones(3, np.float32)})
    assert grid.answer(2, pb.Reply(message_id=id_, adapter=payload))
    assert not grid.answer(2, pb.Reply(message_id=id_, adapter=payload))
    assert not grid.answer(9, pb.Reply(message_id="other", refused=pb.Refused()))
    lines = door_lines(folder)
    assert [line["what"] for line in lines] == ["asked", "came", "counted", "came", "came"]
    asked, came, counted, again, other = lines
    assert (asked["id"], asked["node"], asked["kind"], asked["round"]) == (id_, 2, "train", 7)
    assert (folder / "asked" / asked["arrays"]).read_bytes() == pack(ASKED)
    assert came["payload"] == counted["payload"] == hashlib.sha256(payload).hexdigest()
    assert (folder / "came" / came["payload"]).read_bytes() == payload
    assert again == came
    assert (other["id"], other["node"], other["outcome"]) == ("other", 9, "refused")
    assert sorted(p.name for p in folder.glob("came/*")) == sorted(
        {came["payload"], other["payload"]}
    )


COUNTED = """
import sys
from pathlib import Path
from credit_client.chain import digest
from credit_client.link import Link
from credit_simulations.chaos.door import count_calls

Link.work = lambda self: [digest(b"") for _ in range(50)]
count_calls(Path(sys.argv[1]), "credit-client")
for _ in range(10):
    digest(b"")
Link.work(None)
print("survived")
"""


def test_a_command_ends_itself_at_the_chosen_call_after_it_is_connected(tmp_path: Path) -> None:
    calls = Calls(tmp_path / "calls")

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", COUNTED, str(tmp_path / "calls")],
            capture_output=True,
            text=True,
            check=False,
        )

    assert run().stdout == "survived\n"
    assert calls.count == 50  # those before it was connected are not among them
    calls.anew(end_at=20)
    killed = run()
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    assert calls.count == 20
    assert "ends itself at call 20: credit_client.chain.digest" in killed.stderr
