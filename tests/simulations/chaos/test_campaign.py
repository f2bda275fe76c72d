"""What a run under faults is blamed for, and the object that says so."""

import dataclasses
import json
import math
from collections import Counter

import pytest

from credit_simulations.chaos.campaign import Row
from credit_simulations.chaos.checks import Findings
from credit_simulations.chaos.cli import kills_summary, summary
from credit_simulations.chaos.kills import Killed
from credit_simulations.chaos.run import SERVER, Trace
from credit_simulations.processes import Event


def trace(ended: bool = True) -> Trace:
    return Trace(ended=ended, struck=Counter({"drop": 2, "kill-server": 1}), wall=3.0, cpu=2.0)


GOOD = Row(number=1, private=True, ended=True, found=Findings(), trace=trace())
OPEN = dataclasses.replace(GOOD, number=2, private=False, auc=0.7, auc_difference=0.004)


@pytest.mark.parametrize("row", [GOOD, OPEN])
def test_a_run_without_a_finding_is_blamed_for_nothing(row: Row) -> None:
    assert row.failures == []


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Findings)])
def test_a_run_is_blamed_for_each_finding_by_its_name(field: str) -> None:
    row = dataclasses.replace(GOOD, found=Findings(**{field: 2}))
    assert row.failures == [f"{field} = 2"]
    killed = Killed(points={SERVER: 1}, found=row.found, trace=trace())
    assert killed.failures == [f"{field} = 2"]
    assert summary([GOOD, row])[field] == summary([GOOD, row])["rows"][1][field] == 2
    assert kills_summary(killed)[field] == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ended": False, "reason": "the time was up"}, "the time was up"),
        ({"ended": False}, "did not end"),
        ({"reason": "the ledger was rolled back"}, "rolled back"),
        ({"releases_differing": 1}, "releases_differing = 1"),
        ({"auc_difference": 0.0101}, "auc_difference = 0.0101, at most 0.01"),
    ],
)
def test_a_run_is_blamed_for_what_else_went_wrong(change: dict[str, object], says: str) -> None:
    (blame,) = dataclasses.replace(OPEN, **change).failures
    assert says in blame


def test_kill_points_that_were_never_reached_are_no_success() -> None:
    result = Killed(points={SERVER: 1, "shop": 0}, found=Findings(), trace=trace())
    assert result.failures == ["no kill point of shop was reached"]
    assert Killed(points={SERVER: 1}, found=Findings(), trace=trace(False)).failures


def test_the_object_has_the_counts_of_all_runs_and_the_largest_difference() -> None:
    rows = [GOOD, OPEN, dataclasses.replace(OPEN, number=4, auc_difference=0.002, ended=False)]
    shown = json.loads(json.dumps(summary(rows), allow_nan=False))
    assert (shown["runs"], shown["ended"]) == (3, 2)
    assert shown["rounds_counted_twice"] == shown["rounds_lost"] == shown["ledger_below_truth"] == 0
    assert shown["auc_difference_max"] == 0.004
    assert [row["auc"] for row in shown["rows"]] == [None, 0.7, 0.7]
    assert shown["rows"][0]["struck"] == {"drop": 2, "kill-server": 1}
    assert (shown["wall_seconds"], shown["cpu_seconds"]) == (9.0, 6.0)


def test_without_an_open_run_there_is_no_difference() -> None:
    assert math.isnan(GOOD.auc_difference)
    assert summary([GOOD])["auc_difference_max"] is None


def test_a_trace_finds_the_release_in_the_coordinators_last_word() -> None:
    made = trace()
    assert made.release is None
    made.told.append(Event(who="shop", what="done", line={"release": "shop/releases/001"}))
    assert made.release is None
    made.told.append(Event(who=SERVER, what="done", line={"release": "releases/001"}))
    assert str(made.release) == "releases/001"
    assert made.of("shop", "done") == [{"release": "shop/releases/001"}]
