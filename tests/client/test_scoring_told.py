import dataclasses

import numpy as np
import pytest

from credit_client.scoring.calibration import Calibration
from credit_client.scoring.points import points
from credit_client.scoring.told import tell
from credit_common.contract import parse_contract
from credit_common.decision import Decision
from credit_common.errors import ContractError

RULES = Decision(approve_below=0.1, decline_from=0.3, bands=(("A", 0.05), ("B", 0.3), ("C", 1.0)))
HALF = Calibration(method="platt", release="", users=100, slope=0.5, intercept=-1.0)


def logit(pd):
    return np.log(np.asarray(pd) / (1 - np.asarray(pd)))


@pytest.mark.parametrize(
    ("pd", "band", "decision"),
    [
        (0.01, "A", "approve"),
        (0.05, "B", "approve"),
        (0.0999, "B", "approve"),
        (0.1, "B", "refer"),
        (0.2999, "B", "refer"),
        (0.3, "C", "decline"),
        (0.999, "C", "decline"),
    ],
)
def test_cut_offs_and_bands_hold_what_lies_below_them(contract, pd, band, decision):
    (told,) = tell(contract, [logit(pd) + 1e-12], decision=RULES)
    assert (told.band, told.decision) == (band, decision)
    assert told.pd == pytest.approx(pd)
    assert told.calibrated_pd is None


def test_a_pd_of_one_is_in_the_last_band(contract):
    (told,) = tell(contract, [1e9], decision=RULES)
    assert (told.pd, told.band, told.decision) == (1.0, "C", "decline")


def test_nothing_is_decided_without_cut_offs(contract):
    (told,) = tell(contract, [0.0])
    assert (told.band, told.decision) == (None, None)


def test_a_calibration_decides_where_there_is_one(contract):
    raw = logit(0.4)
    (plain,), (own,) = (tell(contract, [raw], c, RULES) for c in (None, HALF))
    assert plain.decision == "decline"
    assert own.pd == plain.pd
    assert own.calibrated_pd == pytest.approx(1 / (1 + np.exp(-(0.5 * raw - 1.0))))
    assert own.deciding == own.calibrated_pd
    assert (own.band, own.decision) == ("B", "refer")
    assert own.points == pytest.approx(float(points(contract.scorecard, 0.5 * raw - 1.0)))
    assert own.points > plain.points


def test_the_contracts_rules_are_the_default(federation_file):
    rules = {"approve_below": 0.1, "decline_from": 0.3, "bands": {"A": 0.05, "B": 0.3, "C": 1.0}}
    own = parse_contract(federation_file(decision=rules))
    raw = logit([0.02, 0.2, 0.6])
    assert tell(own, raw) == tell(own, raw, decision=RULES)
    assert [t.decision for t in tell(own, raw)] == ["approve", "refer", "decline"]


def test_points_end_where_the_scorecard_does(federation_file):
    own = parse_contract(federation_file(scorecard={"lowest": 300.0, "highest": 850.0}))
    assert [told.points for told in tell(own, [50.0, -50.0])] == [300.0, 850.0]


def test_another_task_has_no_pd(contract):
    task = dataclasses.replace(
        contract.task, kind="regression", positive=(), negative=(), range=(0.0, 1.0)
    )
    with pytest.raises(ContractError, match="must be 'binary'"):
        tell(dataclasses.replace(contract, task=task), [0.0])
