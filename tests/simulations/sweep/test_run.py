"""A sweep on real data and weights: every arm, nothing twice, what a crash leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from credit_common.errors import CreditError
from credit_simulations.data import contract_path, describe
from credit_simulations.results.trials import read_trials
from credit_simulations.sweep import workers
from credit_simulations.sweep.plan import ARMS, Entry, Sweep, Trial
from credit_simulations.sweep.run import read_lines, run_sweep
from credit_simulations.sweep.trials import run_trial
from credit_simulations.sweep.workers import by_processes, work

GERMAN = Entry(name="german", min_rows=50)
SWEEP = Sweep(name="small", epsilons=(8.0,), seeds=1, data=(GERMAN,))

pytestmark = [pytest.mark.slow, pytest.mark.long(170)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a sweep over all arms, its lines, and what was told."""
    folder, told = tmp_path_factory.mktemp("sweep"), []
    lines = run_sweep(SWEEP, folder, processes=2, on_trial=told.append)
    return folder, lines, told


def test_every_arm_has_its_line(finished):
    folder, lines, told = finished
    found = {(line["arm"], line["epsilon"]) for line in lines}
    both = {"federated", "newcomers", "wide_only", "text_only", "frozen_bert"}
    assert found == {
        *((arm, e) for arm in both for e in (8.0, None)),
        ("central_dp", 8.0),
        *((arm, None) for arm in set(ARMS) - both - {"central_dp"}),
    }
    assert len(told) == len(lines) == told[-1].total == told[-1].finished
    assert told[-1].left_seconds == 0
    assert len((folder / "results.jsonl").read_text().splitlines()) == len(lines)


def test_lines_say_what_they_must(finished):
    _, lines, _ = finished
    big = {name for name, rows in describe("german").holders.items() if rows >= GERMAN.min_rows}
    for line in lines:
        assert line["data"] == "german"
        assert line["partition"] == "natural"
        few = line["arm"] == "newcomers" and line["epsilon"] is not None  # hold-out users, noised
        assert (0.0 if few else 0.3) < line["auc"] < 0.95
        assert 0 <= line["ks"] <= 1
        assert 0.1 < line["brier"] < 0.4
        assert set(line["in_holder"]) <= big
        assert sum(part["users"] for part in line["calibration"]) == sum(
            own["users"] for own in line["in_holder"].values()
        )
        if line["epsilon"] is not None:
            assert 7.5 < line["epsilon_spent"] <= 8.0
            assert line["delta"] == 1e-5
    by_arm = {(line["arm"], line["epsilon"]): line for line in lines}
    assert by_arm["federated", None]["bytes_up"] > by_arm["wide_only", None]["bytes_up"] > 0
    assert by_arm["central", None]["bytes_up"] == by_arm["gbm", None]["bytes_up"] == 0
    assert by_arm["federated", 8.0]["rounds"]
    assert not by_arm["newcomers", 8.0]["rounds"]  # they would be of who took part
    held_out = [set(line["in_holder"]) for line in lines if line["arm"] != "newcomers"]
    assert all(own == held_out[0] for own in held_out)
    new = set(by_arm["newcomers", None]["in_holder"])
    assert new < held_out[0]
    # 1,000 applicants: what data.md says of a regression, give or take
    assert by_arm["logistic", None]["auc"] > 0.7
    assert by_arm["federated", None]["auc"] > 0.7


def test_a_finished_trial_is_never_run_again(finished, monkeypatch):
    folder, lines, _ = finished
    before = (folder / "results.jsonl").read_bytes()
    monkeypatch.setattr(workers, "work", lambda task: pytest.fail("ran again"))
    told = []
    assert run_sweep(SWEEP, folder, processes=2, on_trial=told.append) == lines
    assert told == []
    assert (folder / "results.jsonl").read_bytes() == before


def test_without_dp_a_second_run_has_the_same_figures(finished):
    _, lines, _ = finished
    for arm in ("federated", "logistic", "gbm"):
        _, again = work(Trial(entry=GERMAN, arm=arm, epsilon=None, seed=0))
        (line,) = [x for x in lines if x["arm"] == arm and x["epsilon"] is None]
        assert {**again, "seconds": 0} == {**line, "seconds": 0}


def test_a_line_that_a_crash_cut_off_is_run_again(finished, tmp_path):
    folder, lines, _ = finished
    whole = (folder / "results.jsonl").read_bytes()
    logistic = replace(SWEEP, arms=("logistic",))
    (line,) = [x for x in lines if x["arm"] == "logistic"]
    cut = json.dumps(line).encode()[:-20]
    (tmp_path / "results.jsonl").write_bytes(cut)
    told = []
    again = run_sweep(logistic, tmp_path, processes=1, on_trial=told.append)
    assert len(told) == 1
    assert {**again[0], "seconds": 0} == {**line, "seconds": 0}
    assert len(read_lines(tmp_path / "results.jsonl")) == 1
    assert whole == (folder / "results.jsonl").read_bytes()


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"digest": "a"}\nhello\n{"digest": "b"}\n')
    with pytest.raises(CreditError, match=r"results\.jsonl, line 2: not a result of a sweep"):
        run_sweep(SWEEP, tmp_path, processes=1)


def test_a_trial_that_is_refused_is_named(tmp_path):
    nobody = Entry(name="german", min_rows=5000)
    with pytest.raises(CreditError, match=r"german, natural, gbm, no dp, seed 0: .*5000 rows"):
        list(by_processes([Trial(entry=nobody, arm="gbm", epsilon=None, seed=0)], 1))


def test_an_arm_without_use_is_finished_too(tmp_path):
    own = tmp_path / "own.toml"
    text = contract_path("german").read_text()
    own.write_text(text.replace("[model]", '[model]\ntrain = ["wide"]'))
    entry = replace(GERMAN, contract=str(own))
    sweep = replace(SWEEP, data=(entry,), arms=("wide_only", "untuned", "logistic"))
    told = []
    for _ in range(2):
        lines = run_sweep(sweep, tmp_path, processes=1, on_trial=told.append)
        assert [line["arm"] for line in lines] == ["logistic"]
    assert [progress.line is None for progress in told].count(True) == 3
    assert len(told) == 4
    assert [trial.arm for trial in read_trials(tmp_path / "results.jsonl").trials] == ["logistic"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_however_a_sweep_ends_its_processes_end_too(tmp_path, how):
    (tmp_path / "s.toml").write_text(
        'name = "small"\nepsilons = [8]\n[[data]]\nname = "german"\nmin_rows = 50\n'
    )
    command = [sys.executable, "-m", "credit_simulations.cli", "sweep", "s.toml"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as sweep:
        first = sweep.stderr.readline()  # a trial is finished, others are under way
        sweep.send_signal(how)
        said = first + sweep.stderr.read()
    assert "sweep: 1/" in said
    assert "Traceback" not in said
    assert sweep.returncode == (130 if how == signal.SIGTERM else -how)
    ended_by = time.monotonic() + 30
    while time.monotonic() < ended_by and _alive(sweep.pid):
        time.sleep(0.2)
    assert not _alive(sweep.pid)
    lines = (tmp_path / "credit-sweeps" / "small" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["data"] for line in lines][:1] == ["german"]


def _alive(group):
    """Whether a process group has a process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_holders_of_one_label_alone_are_nothing_to_judge_by():
    entry = Entry(name="german", partition="dirichlet", holders=4, alpha=0.1, min_rows=20)
    trials = [Trial(entry=entry, arm="newcomers", epsilon=None, seed=s) for s in range(3)]
    lines = [run_trial(trial) for trial in trials]
    assert None in lines
    assert all(line["auc"] is not None for line in lines if line)


def test_drawn_holders_are_one_setting_though_some_have_one_label_alone():
    entry = Entry(name="german", partition="dirichlet", holders=8, alpha=0.2, min_rows=20)
    lines = [run_trial(Trial(entry=entry, arm="gbm", epsilon=None, seed=s)) for s in range(4)]
    assert {line["holders"] for line in lines} == {8}
    for line in lines:
        assert len(line["in_holder"]) == 8 - line["left_out"]
    own = [holder["auc"] for line in lines for holder in line["in_holder"].values()]
    assert None in own
    assert sum(auc is not None for auc in own) > 8
