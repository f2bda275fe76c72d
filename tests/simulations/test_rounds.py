import json
import subprocess
import sys

import pytest

from credit_common.errors import CreditError
from credit_common.model import CreditModel
from credit_simulations.bench import rounds
from credit_simulations.bench.cli import STYLES
from credit_simulations.bench.peers import SYSTEMS, installed, tree_peak_mib
from credit_simulations.bench.rounds import Run, measure_rounds
from credit_simulations.bench.trivial import SHAPES
from credit_simulations.cli import main
from credit_simulations.packaged import packaged_contract

RATIOS = {"ray_over_loop": "ray", "pfl_over_loop": "pfl"}


@pytest.fixture
def without_peers(monkeypatch):
    monkeypatch.setattr(rounds, "SYSTEMS", {"loop": SYSTEMS["loop"]})
    monkeypatch.setattr(rounds, "installed", lambda name: name == "loop")


def test_the_benchmark_runs_over_loop_grid_and_says_what_it_left_out(without_peers, capfd):
    assert (
        main(["bench", "rounds", "--holders", "2", "4", "--repeats", "1", "--format", "json"]) == 0
    )
    told = json.loads(capfd.readouterr().out)
    assert [told[name] for name in RATIOS] == [None, None]
    assert "pip install '.[peers]'" in " ".join(told["notes"])
    assert [(row["system"], row["holders"]) for row in told["rows"]] == [("loop", 2), ("loop", 4)]
    for row in told["rows"]:
        assert 0 < row["seconds_per_round"] < row["start_s"]
        assert row["ms_per_holder"] == pytest.approx(
            1e3 * row["seconds_per_round"] / row["holders"], rel=0.01
        )
        assert row["peak_mib"] > 50
    assert told["growth"] > 0


@pytest.mark.parametrize("system", ["loop", *rounds.GATES])
def test_all_rounds_are_done_through_the_gates_too(system):
    ended = []
    SYSTEMS[system](2, 3, lambda: ended.append(True))
    assert len(ended) == 3


@pytest.mark.parametrize("system", RATIOS.values())
def test_a_peer_runs_where_it_is_installed(system):
    if not installed(system):
        pytest.skip(f"{system} is not installed: pip install '.[peers]'")
    run = rounds._run(system, 2, 2)
    assert len(run.seconds) == 2
    assert all(seconds > 0 for seconds in run.seconds)


def test_ratios_are_of_runs_of_the_same_turn(monkeypatch):
    seconds = {"loop": [1.0, 10.0, 2.0], "ray": [5.0, 60.0, 14.0], "pfl": [2.0, 5.0, 1.0]}
    turns = {name: iter(each) for name, each in seconds.items()}
    monkeypatch.setattr(rounds, "SYSTEMS", dict.fromkeys(seconds))
    monkeypatch.setattr(rounds, "installed", lambda name: True)
    monkeypatch.setattr(
        rounds,
        "_run",
        lambda name, n, timed: Run(
            start_s=1.0, seconds=(next(turns[name]),) * timed, peak_mib=100.0
        ),
    )
    measured = measure_rounds([20], 3)
    assert measured.figures["ray_over_loop"] == 6.0
    assert measured.figures["pfl_over_loop"] == 0.5
    assert measured.figures["growth"] == 1.0
    assert [row["seconds_per_round"] for row in measured.rows] == [2.0, 14.0, 2.0]


def test_a_run_that_fails_ends_the_benchmark_with_what_it_said(tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n", "utf-8")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(CreditError, match="ray with 2 holders failed: no such thing"):
        rounds._run("ray", 2, 2)


def test_the_adapter_is_that_of_the_packaged_contract():
    contract = packaged_contract("pakdd2009")
    wide = CreditModel(contract.training_only("wide"), None).schema()
    assert wide == {"wide.weight": SHAPES["wide.weight"]}
    rank, hidden = contract.model.rank, 384
    lora = {name: shape for name, shape in SHAPES.items() if name.startswith("lora")}
    assert len(lora) == 4 * contract.model.layers
    assert set(lora.values()) == {(rank, hidden), (hidden, rank)}


def test_memory_is_that_of_all_processes_below():
    if not sys.platform.startswith("linux"):
        pytest.skip("other processes' memory is read from /proc")
    alone = tree_peak_mib()
    hold = "x = bytearray(200 * 2**20); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    both = tree_peak_mib()
    child.communicate(b"\n")
    assert 200 <= both - alone < 300


@pytest.mark.parametrize(("holders", "repeats"), [([0], 1), ([20, -1], 1), ([], 1), ([20], 0)])
def test_there_is_something_to_measure(holders, repeats):
    with pytest.raises(CreditError, match="at least 1"):
        measure_rounds(holders, repeats)


def test_each_style_can_be_asked_for(capsys):
    for style in STYLES:
        with pytest.raises(SystemExit) as stop:
            main(["bench", "rounds", "--format", style, "--help"])
        assert stop.value.code == 0
    assert "--holders" in capsys.readouterr().out
