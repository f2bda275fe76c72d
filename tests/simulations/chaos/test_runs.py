"""Five short runs under faults, and kill points: the real commands over mutual TLS."""

import contextlib
import io
from pathlib import Path

import pytest

from credit_simulations.chaos.campaign import Campaign, run_chaos
from credit_simulations.chaos.cli import kills_summary, summary
from credit_simulations.chaos.kills import run_kills
from credit_simulations.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.long(190)]


def test_five_runs_lose_nothing_count_nothing_twice_and_end_near_the_calm_one(
    tmp_path: Path,
) -> None:
    plan = Campaign(
        runs=5, rounds=4, reads_text=False, holders=3, min_holders=1, rows=800,
        keep=tmp_path / "chaos",
    )  # fmt: skip
    rows = run_chaos(plan)
    shown = summary(rows)
    assert [what for row in rows for what in row.failures] == []
    assert (shown["runs"], shown["ended"]) == (5, 5)
    assert shown["rounds_counted_twice"] == shown["rounds_lost"] == 0
    assert shown["ledger_below_truth"] == 0
    assert 0 <= shown["auc_difference_max"] <= 0.01
    assert [row["private"] for row in shown["rows"]] == [True, False, True, False, True]
    struck = {kind for row in shown["rows"] for kind in row["struck"]}
    assert struck >= {"kill-server", "kill-holder", "drop", "truncate"}
    told = [e for row in rows for e in row.trace.told]
    assert sum(e.what == "lie" for e in told) >= 5
    assert sum(e.what == "killed" for e in told) >= 5


def test_a_kill_point_of_each_side_is_reached_and_changes_nothing(tmp_path: Path) -> None:
    result = run_kills(tmp_path / "kills", 1)
    assert result.failures == []
    shown = kills_summary(result)
    assert list(shown["points"].values()) == [1, 1]
    assert shown["ended"] == 1


@pytest.mark.parametrize("words", [["--runs", "0"], ["--kills", "0"], ["--lies", "white"]])
def test_a_mistake_is_told_before_anything_is_made(words: list[str]) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert main(["chaos", *words]) == 1
    assert words[0] in errors.getvalue()
    assert errors.getvalue().count("\n") == 1
