import json
import stat

import numpy as np
import pytest
from sklearn.calibration import _SigmoidCalibration

from credit_client.scoring.calibration import (
    Calibration,
    fit,
    read_calibration,
    write_calibration,
)
from credit_common.errors import ContractError, ShardError

RELEASE = "ab" * 32


def drawn(users, slope=0.7, intercept=-1.0, seed=0):
    draw = np.random.default_rng(seed)
    logits = draw.normal(-1.5, 1.0, users)
    labels = draw.random(users) < 1 / (1 + np.exp(-(slope * logits + intercept)))
    return logits, labels.astype(float)


def test_platt_is_the_fit_that_scikit_learn_makes():
    logits, labels = drawn(3000)
    found = fit("platt", logits, labels, RELEASE)
    theirs = _SigmoidCalibration().fit(logits, labels)
    assert found.apply(logits) == pytest.approx(theirs.predict(logits), abs=1e-4)
    assert (found.slope, found.intercept) == pytest.approx((0.7, -1.0), abs=0.3)


def test_a_fit_says_as_many_defaults_as_there_were():
    logits, labels = drawn(4000)
    for method in ("platt", "isotonic"):
        found = fit(method, logits, labels, RELEASE)
        assert found.apply(logits).mean() == pytest.approx(labels.mean(), abs=2e-3)


def test_pds_rise_and_are_never_certain():
    logits = np.concatenate([np.linspace(-3, -1, 600), np.linspace(1, 3, 600)])
    labels = (logits > 0).astype(float)  # the scores tell all
    for method in ("platt", "isotonic"):
        pds = fit(method, logits, labels, RELEASE).apply(np.array([-1e9, *np.sort(logits), 1e9]))
        assert np.all(np.diff(pds) >= 0)
        assert 0 <= pds[0] < 1e-2
        assert 1 - 1e-2 < pds[-1] <= 1
        inner = pds[1:-1]
        assert inner.min() > 0
        assert inner.max() < 1


@pytest.mark.parametrize(
    ("users", "method", "said"),
    [
        (49, "platt", "49 users with an outcome, must be at least 50"),
        (999, "isotonic", "999 users with an outcome, must be at least 1000"),
    ],
)
def test_too_few_users_are_refused(users, method, said):
    logits, labels = drawn(users)
    with pytest.raises(ShardError, match=said):
        fit(method, logits, labels, RELEASE)


@pytest.mark.parametrize("bad", [0, 4, 196, 200])
def test_one_outcome_alone_is_refused(bad):
    labels = np.arange(200) < bad
    with pytest.raises(ShardError, match=f"{bad} of 200 users defaulted, must be 5 with and"):
        fit("platt", np.arange(200.0), labels, RELEASE)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_scores_that_order_users_backwards_are_not_turned_round(method):
    logits, labels = drawn(2000, slope=1.0)
    with pytest.raises(ShardError, match="do not rise with the defaults"):
        fit(method, -logits, labels, RELEASE)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_file_keeps_every_bit_and_is_its_owners(tmp_path, method):
    logits, labels = drawn(1500)
    found, path = fit(method, logits, labels, RELEASE), tmp_path / "calibration.json"
    path.write_text("older")
    path.chmod(0o644)
    write_calibration(path, found)
    assert read_calibration(path, RELEASE) == found
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]
    with pytest.raises(ShardError, match=r"is for the release abab.*, not for cdcd"):
        read_calibration(path, "cd" * 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slope": -1.0}, r"calibration\.slope = -1: must be positive"),
        ({"method": "beta"}, r"calibration\.method = 'beta': must be one of"),
        ({"format": 2}, "is not a calibration of format 1"),
        ({"more": 1}, "unknown key 'more'"),
        ({"method": "isotonic", "knots": [[0.0, 0.2], [0.0, 0.3]]}, "knots: must rise"),
        ({"method": "isotonic", "knots": [[0.0, 0.0], [1.0, 0.3]]}, "knots: must rise, with PDs"),
        ({"method": "isotonic"}, "knots: must rise"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path, change, said):
    path = tmp_path / "calibration.json"
    write_calibration(path, Calibration(method="platt", release=RELEASE, users=60))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ShardError, match=said):
        read_calibration(path, RELEASE)


def test_what_cannot_be_read_or_written_is_said(tmp_path):
    with pytest.raises(ShardError, match="cannot read the calibration"):
        read_calibration(tmp_path / "none.json", RELEASE)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ShardError, match=r"bad\.json: is not JSON"):
        read_calibration(tmp_path / "bad.json", RELEASE)
    with pytest.raises(ShardError, match="cannot write the calibration"):
        write_calibration(
            tmp_path / "no" / "c.json", Calibration(method="platt", release="", users=1)
        )
    with pytest.raises(ContractError, match="slope"):
        Calibration(method="platt", release="", users=1, slope=0.0)
