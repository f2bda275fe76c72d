"""Each lie is false in its own way, and the coordinator's own checks say so."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from credit_common import federation_pb2 as pb
from credit_common.contract import Contract, parse_contract
from credit_common.errors import TrustError
from credit_common.protocol import from_head, to_request
from credit_common.wire import ARRAYS, CONFIG, ROUND, array_record, unpack
from credit_server.aggregate import CreditFedAvg
from credit_server.grid import GrpcGrid
from credit_simulations.chaos.campaign import LIES as TOLD
from credit_simulations.chaos.liar import LIES

SCHEMA = {"w": (3,)}
LIAR, HONEST = 2, 3
COUNTS = {"echo", "enlarged"}
"""Lies that have the form of an answer."""


@pytest.fixture(scope="module")
def contract(contract_text: str) -> Contract:
    return parse_contract(contract_text)


class Round:
    """A round of the liar and one honest holder at a real grid."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.grid = GrpcGrid(contract, SCHEMA, lambda: {"liar": LIAR, "honest": HONEST})
        self.handed: dict[int, list[pb.Task | None]] = {LIAR: [], HONEST: []}
        for node, name in ((LIAR, "liar"), (HONEST, "honest")):
            self.grid.attach(name, node, "small", self.handed[node].append)
        self.messages = [self.message(node) for node in (LIAR, HONEST)]
        self.ids = list(self.grid.push_messages(self.messages))

    @staticmethod
    def message(node: int) -> Message:
        arrays = array_record({"w": np.full(3, 0.5, np.float32)})
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({ROUND: 1})})
        return Message(content, dst_node_id=node, message_type="train")

    def lie(self, kind: str) -> list[pb.Reply]:
        (task,) = self.handed[LIAR]
        assert task is not None
        return LIES[kind](self.contract, task.request, LIAR)

    def taken(self, replies: list[pb.Reply]) -> list[Message]:
        for reply in replies:
            self.grid.answer(LIAR, pb.Reply.FromString(reply.SerializeToString()))
        return list(self.grid.pull_messages(self.ids))


def counted(contract: Contract, replies: list[Message]) -> int:
    """How many of the replies FedAvg takes, beside those of two honest holders."""
    nodes = {"honest": HONEST, "other": HONEST + 1}
    grid = GrpcGrid(contract, SCHEMA, lambda: nodes)
    ids = []
    for name, node in nodes.items():
        grid.attach(name, node, "small", lambda task: None)
        message = Round.message(node)
        ids += grid.push_messages([message])
        asked = to_request(message)
        asked.message_id = ids[-1]
        grid.answer(node, LIES["echo"](contract, asked, node)[0])
    strategy = CreditFedAvg(contract, lambda report: None)
    arrays = array_record({"w": np.full(3, 0.5, np.float32)})
    strategy.configure_train(1, arrays, ConfigRecord(), grid)
    strategy.aggregate_train(1, [*replies, *grid.pull_messages(ids)])
    return strategy.state().holders - len(nodes)


@pytest.mark.parametrize("kind", sorted(LIES))
def test_a_lie_counts_only_if_it_has_the_form_of_an_answer(contract: Contract, kind: str) -> None:
    made = Round(contract)
    lies = made.lie(kind)
    if kind == "forged-head":  # the service does not let it come to the grid
        with pytest.raises(TrustError, match="not this holder's"):
            _take_head(lies[0])
        return
    replies = made.taken(lies)
    assert counted(contract, replies) == (kind in COUNTS)
    assert not made.handed[HONEST][1:]  # whoever was lied about is asked as before
    assert made.ids[1] in made.grid._open


def _take_head(reply: pb.Reply) -> None:
    from pathlib import Path

    from credit_server.heads import Heads

    head = from_head(reply)  # signed, by a key that is nobody's
    assert head is not None
    Heads(Path("/nonexistent")).take(head, LIAR, "00" * 91)


def test_a_lie_is_of_what_was_asked_and_not_its_arrays(contract: Contract) -> None:
    made = Round(contract)
    (reply,) = made.lie("enlarged")
    assert np.allclose(unpack(reply.adapter)["w"], 1000.5)


def test_what_a_mean_would_take_is_not_told_by_itself() -> None:
    assert set(LIES) - set(TOLD) == {"enlarged"}
