import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from credit_common.wire import ARRAYS, METRICS, WEIGHT
from credit_simulations.loop import LoopGrid, run_in_process


def adding_app(amount: float, seen: list[str]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        seen.append(message.metadata.message_id)
        array = message.content[ARRAYS]["w"].numpy() + np.float32(amount)
        content = RecordDict(
            {ARRAYS: ArrayRecord({"w": Array(array)}), METRICS: MetricRecord({WEIGHT: 1.0})}
        )
        return Message(content, reply_to=message)

    return app


def request(node: int, value: float = 0.0) -> Message:
    arrays = ArrayRecord({"w": Array(np.asarray([value], np.float32))})
    content = RecordDict({ARRAYS: arrays, "config": ConfigRecord({"server-round": 1})})
    return Message(content, dst_node_id=node, message_type="train")


def test_replies_come_from_the_node_that_was_asked() -> None:
    seen: list[str] = []
    grid = LoopGrid({"b": adding_app(2.0, seen), "a": adding_app(1.0, seen)})
    nodes = list(grid.get_node_ids())
    replies = list(grid.send_and_receive([request(node) for node in nodes]))
    assert [r.metadata.src_node_id for r in replies] == nodes
    assert [float(r.content[ARRAYS]["w"].numpy()[0]) for r in replies] == [1.0, 2.0]  # by name


def test_message_ids_are_unique_over_grids_and_named_by_the_reply() -> None:
    seen: list[str] = []
    for _ in range(3):
        grid = LoopGrid({"a": adding_app(1.0, seen)})
        (node,) = grid.get_node_ids()
        for _ in range(3):
            (reply,) = grid.send_and_receive([request(node)])
            assert reply.metadata.reply_to_message_id == seen[-1]
    assert len(set(seen)) == 9


def test_a_reply_is_pulled_once() -> None:
    grid = LoopGrid({"a": adding_app(1.0, [])})
    (node,) = grid.get_node_ids()
    ids = list(grid.push_messages([request(node)]))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_a_holder_answers_when_its_reply_is_pulled() -> None:
    seen: list[str] = []
    grid = LoopGrid({name: adding_app(1.0, seen) for name in "abc"})
    replies = iter(grid.send_and_receive([request(node) for node in grid.get_node_ids()]))
    for asked in range(3):
        assert len(seen) == asked
        next(replies)
    assert list(replies) == []


def test_the_server_app_runs_over_the_grid() -> None:
    values: list[float] = []
    server = ServerApp()

    @server.main()
    def _main(grid: Grid, context: Context) -> None:
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([request(node, 40.0)])
        values.append(float(reply.content[ARRAYS]["w"].numpy()[0]))

    run_in_process(server, {"a": adding_app(2.0, [])})
    assert values == [42.0]


def test_only_the_wire_module_reaches_into_flwr() -> None:
    """The contract test of the public surface: imports of flwr outside wire.py are public ones."""
    root = Path(__file__).parents[2]
    public = tuple(f"from flwr.{own}" for own in ("app ", "clientapp ", "serverapp", "simulation "))
    for folder in ("common", "client", "server", "simulations"):
        for module in (root / folder).rglob("*.py"):
            if module.name == "wire.py":
                continue
            for line in module.read_text("utf-8").splitlines():
                if line.lstrip().startswith(("from flwr", "import flwr")):
                    assert line.lstrip().startswith(public), f"{module}: {line}"


@pytest.mark.parametrize(
    "first",
    [
        "credit_common.wire",
        "credit_client.app",
        "credit_client.gate",
        "credit_server.app",
        "credit_server.aggregate",
        "credit_simulations.loop",
        "credit_simulations.cli",
    ],
)
def test_telemetry_is_off_whatever_is_imported_first(first: str) -> None:
    code = (
        f"import {first}, os\n"
        "from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED\n"
        "print(FLWR_TELEMETRY_ENABLED, os.environ['FLWR_DISABLE_UPDATE_CHECK'])"
    )
    # A process of its own: here something else has imported credit_common already.
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "1", "FLWR_DISABLE_UPDATE_CHECK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("names", [["a"], ["x", "b", "m"]])
def test_node_ids_follow_the_names(names: list[str]) -> None:
    grid = LoopGrid({name: adding_app(0.0, []) for name in names})
    assert sorted(names) == sorted(grid.node_ids, key=lambda name: grid.node_ids[name])
