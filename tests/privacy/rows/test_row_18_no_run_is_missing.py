"""Row 18: no tuning, selection or early stopping on private data goes uncharged.

A report fails where a message left, or a model came back, that the ledger has no charge for. The
broken variant reports from whatever ledger is there, so that trial runs under another one vanish.
The evaluation schedule is fixed in the contract, and each evaluation is charged.
"""

import json

import pytest

from credit_client.gate import Exit
from credit_client.heads import OwnHeads
from credit_client.ledger import Ledger
from credit_client.report.statement import privacy_report
from credit_common import federation_pb2 as pb
from credit_common.errors import PrivacyError
from credit_common.heads import head_to_json
from credit_common.privacy import mechanism_plan


def run(identity, ledger, name):
    """One training answer of a run, through the gate's exit."""
    contract = identity.bundle.contract
    plan = mechanism_plan(contract, "small")
    ledger.charge(
        "train",
        plan.round_event(),
        contract_digest=contract.digest,
        message_id=name,
        request_digest="r",
        reply=name.encode(),
        budget_epsilon=plan.epsilon,
        delta=plan.delta,
    )
    Exit(identity.manifest, ledger).answer(pb.Reply(message_id=name, adapter=name.encode()), 1)


def check_a_trial_run_is_not_forgotten(report, identity):
    """Trials under a ledger that was put away afterwards; then a clean run is reported."""
    with Ledger.in_memory() as trials:
        run(identity, trials, "trial")
    with Ledger.open(identity.ledger_path) as ledger:
        run(identity, ledger, "clean")
        with pytest.raises(PrivacyError, match="'trial'"):
            report(identity, ledger)


def from_the_ledger_alone(identity, ledger):
    """The broken variant: what the ledger has, whatever left."""
    return {"epsilon": ledger.epsilon_overall(1e-5)}


def test_row_18_the_report_fails_where_a_run_is_missing(enrolled):
    check_a_trial_run_is_not_forgotten(privacy_report, enrolled)


def test_row_18_catches_a_report_of_the_ledger_alone(enrolled):
    with pytest.raises(pytest.fail.Exception):
        check_a_trial_run_is_not_forgotten(from_the_ledger_alone, enrolled)


def check_a_model_of_a_forgotten_run_is_seen(report, identity):
    """Ledger and manifest of the run were put away, the model that came of it was kept."""
    contract = identity.bundle.contract
    with Ledger.in_memory() as trials:
        for number in range(3):
            run(identity, trials, f"trial-{number}")
        head = OwnHeads(identity, trials).head(spend=True)
    release = identity.home / "releases" / "001"
    release.mkdir(parents=True)
    facts = {"epsilon": 1.0, "heads": [head_to_json(head)]}
    content = {"contract_digest": contract.digest, "facts": facts}
    (release / "release.json").write_text(json.dumps(content))
    identity.manifest.path.unlink()
    with Ledger.open(identity.ledger_path) as ledger:
        run(identity, ledger, "clean")
        with pytest.raises(PrivacyError, match="signed 3 entries then, and it has 1"):
            report(identity, ledger)


def test_row_18_a_model_of_a_run_that_the_ledger_does_not_have_fails_too(enrolled):
    check_a_model_of_a_forgotten_run_is_seen(privacy_report, enrolled)


def test_row_18_catches_a_report_that_looks_at_no_model(enrolled):
    with pytest.raises(pytest.fail.Exception):
        check_a_model_of_a_forgotten_run_is_seen(from_the_ledger_alone, enrolled)


def test_row_18_evaluations_are_scheduled_by_the_contract_and_charged(contract):
    plan = mechanism_plan(contract, "small")
    due = [r for r in range(1, plan.rounds + 1) if contract.evaluation.due(r, plan.rounds)]
    assert plan.evaluations == len(due)
    assert plan.evaluation_event() is not None
