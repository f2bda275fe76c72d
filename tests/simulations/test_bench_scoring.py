import json

import pytest

from credit_common.record import OTHER, Record, parse_value
from credit_simulations.bench.service import as_json
from credit_simulations.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long(120),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def test_every_arm_scores_the_same_file_as_the_plain_loop(capsys, monkeypatch):
    """In small: whether it runs and agrees, no figures of speed."""
    from credit_client.scoring import export

    monkeypatch.setattr(export, "AUC_CLOSE", 0.1)  # of a few hundred users
    monkeypatch.setattr("credit_simulations.bench.scoring.HOLDERS", 2)
    asked = [
        "bench",
        "scoring",
        "--data",
        "german",
        "--rows",
        "90",
        "--repeats",
        "1",
        "--load-seconds",
        "2",
    ]
    assert main([*asked, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    arms = {row["arm"]: row for row in told["rows"]}
    assert set(arms) == {"plain loop", "torch", "onnx", "onnx int8"}
    assert {row["rows"] for row in told["rows"]} == {90}
    assert arms["torch"]["pd_difference_max"] < 1e-5
    assert arms["onnx"]["pd_difference_max"] <= told["pd_difference_max"] < 1e-5
    assert 1e-5 < arms["onnx int8"]["pd_difference_max"] < 0.1
    assert arms["plain loop"]["over_plain"] == 1.0
    assert told["batch_over_plain"] == arms["onnx int8"]["over_plain"] > 0
    assert told["auc_difference_int8"] < 0.1
    assert told["failed_during_swap"] == 0
    assert told["p99_ms"] > 0
    assert "2 releases answered during the swap" in " ".join(told["notes"])


def test_a_record_goes_to_the_service_with_what_it_has(contract):
    field = next(f for f in contract.fields if getattr(f, "unknown", "") == "other")
    values = {"age": 40.0, "income": None, field.name: OTHER, "note": "late"}
    body = as_json(contract, Record(values=values, protected={}, label=None))
    assert (body["age"], body["income"], body["note"]) == (40.0, None, "late")
    assert parse_value(field, body[field.name]) == OTHER  # and not missing
