"""The audit as a command, on real data and real weights."""

import contextlib
import dataclasses
import io
import json

import pytest

from credit_common.errors import CreditError, FetchError
from credit_simulations import audit, cli
from credit_simulations.audit import AuditResult, Line, Measured, arms, run_audit
from credit_simulations.audit_view import audit_summary, write_audit_json, write_audit_markdown

CLAIMS = ("eps=inf", "eps=8", "eps=2", "eps=1")
SOUND = {f"{attack} {claim}" for attack in ("one-run", "membership") for claim in CLAIMS}
SOUND |= {"single step by mu"}
BROKEN = {f"one-run {how}" for how in ("no noise", "fixed seed", "no clip", "five rows a user")}
BROKEN |= {f"single step by mu, {how}" for how in ("half noise", "three rows a user")}


@pytest.fixture(scope="module")
def ran():
    """Exit code, stdout and stderr of the quick audit, on fewer users."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "QUICK_USERS", 60)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(["audit", "--quick", "--format", "json"])
    return code, out.getvalue(), err.getvalue()


@pytest.mark.slow
def test_json_is_one_object_on_stdout_and_progress_is_on_stderr(ran):
    code, out, err = ran
    shown = json.loads(out)
    assert code == (0 if shown["passed"] else 1), err
    assert out.count("\n") == 1
    assert {"data", "delta", "arms", "seconds", "command"} <= set(shown)
    assert shown["command"] == "credit-sim audit --data german --canaries 1000 --quick"
    assert [line.removeprefix("audit: ") for line in err.splitlines()] == [
        "reading german",
        *(arm["name"] for arm in shown["arms"]),
    ]


@pytest.mark.slow
def test_every_arm_says_what_is_claimed_and_what_was_proved(ran):
    lines = {arm["name"]: arm for arm in json.loads(ran[1])["arms"]}
    assert {name for name, arm in lines.items() if arm["kind"] == "sound"} == SOUND
    assert {name for name, arm in lines.items() if arm["kind"] == "broken"} == BROKEN
    for name, arm in lines.items():
        attack = name.partition(" ")[0]
        assert arm["confidence"] == (1 - 1e-6 if attack == "single" else 0.95)
        assert arm["canaries"] == {"membership": 60, "one-run": 1000, "single": 2000}[attack]
        assert arm["lower_bound"] >= 0
        if name.endswith("inf"):
            assert arm["claimed_epsilon"] is None
            assert not arm["caught"]
        else:
            assert arm["caught"] == (arm["lower_bound"] > arm["claimed_epsilon"])
            if attack != "membership":  # sixty users may pass a bound of 95% by chance
                assert arm["caught"] == (arm["kind"] == "broken"), name


@pytest.mark.slow
def test_without_privacy_the_audit_finds_much(ran):
    lines = {arm["name"]: arm for arm in json.loads(ran[1])["arms"]}
    assert lines["one-run eps=inf"]["lower_bound"] > 3
    assert lines["membership eps=inf"]["auc"] > 0.8


def test_the_arms_are_fixed_before_anything_runs(subject_of):
    listed = {(arm.name, arm.kind, arm.claim) for arm in arms(subject_of(), 400)}
    assert {name for name, kind, _ in listed if kind == "sound"} == SOUND
    broken = {name: claim for name, kind, claim in listed if kind == "broken"}
    assert set(broken) == BROKEN
    assert {claim for name, claim in broken.items() if name.startswith("one-run")} == {2.0}


def line(kind, claim, lower):
    measured = Measured(lower_bound=lower, confidence=0.95, canaries=1000)
    return Line(name="an arm", kind=kind, claimed_epsilon=claim, measured=measured, seconds=1.0)


def result_of(*lines) -> AuditResult:
    return AuditResult(
        data="german",
        users=10,
        delta=1e-5,
        schedule=audit.SCHEDULE,
        lines=lines,
        seconds=1.0,
        command="credit-sim audit",
    )


@pytest.mark.parametrize(
    ("kind", "claim", "lower", "fails"),
    [
        ("sound", 2.0, 1.9, False),
        ("sound", 2.0, 2.0, False),
        ("sound", 2.0, 2.1, True),
        ("sound", None, 9.0, False),
        ("broken", 2.0, 2.1, False),
        ("broken", 2.0, 2.0, True),
    ],
)
def test_a_refuted_sound_arm_and_a_broken_one_at_large_fail_the_audit(
    kind, claim, lower, fails, monkeypatch, capsys
):
    result = result_of(line("sound", 1.0, 0.5), line(kind, claim, lower))
    monkeypatch.setattr(audit, "run_audit", lambda *_, **__: result)
    assert cli.main(["audit", "--format", "json"]) == fails
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is not fails
    assert ("an arm" in err) == fails


@pytest.mark.parametrize("view", [audit_summary, write_audit_markdown])
def test_a_view_shows_each_arm_with_its_claim_and_verdict(view, capsys):
    wrong = dataclasses.replace(line("sound", 2.0, 2.5), name="the wrong arm")
    view(result_of(line("sound", None, 4.4), line("broken", 2.0, 3.3), wrong))
    rows = capsys.readouterr().out.splitlines()
    assert any("∞" in r and "4.40" in r and "nothing claimed" in r for r in rows)
    assert any("broken" in r and "3.30" in r and "caught" in r for r in rows)
    assert any("the wrong arm" in r and "WRONG" in r for r in rows)
    assert sum("WRONG" in r for r in rows) == 1
    assert any("95% confidence" in r for r in rows)


def test_json_keeps_infinity_out(capsys):
    write_audit_json(result_of(line("sound", None, 4.4)))
    (arm,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["arms"]
    assert arm["claimed_epsilon"] is None


def test_too_few_canaries_are_refused_before_anything_is_read():
    with pytest.raises(CreditError, match="at least 600"):
        run_audit("german", canaries=599)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(FetchError, match="unknown data set"):
        run_audit("nowhere")
