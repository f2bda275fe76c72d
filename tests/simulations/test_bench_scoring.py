import json

import pytest

from credit_simulations.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def test_every_arm_scores_the_same_file_as_the_plain_loop(capsys, monkeypatch):
    """In small: whether it runs and agrees, no figures of speed."""
    from credit_client.scoring import export

    monkeypatch.setattr(export, "AUC_CLOSE", 0.1)  # of a few hundred users
    monkeypatch.setattr("credit_simulations.bench.scoring.HOLDERS", 2)
    asked = ["bench", "scoring", "--data", "german", "--rows", "90", "--repeats", "1"]
    assert main([*asked, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    arms = {row["arm"]: row for row in told["rows"]}
    assert set(arms) == {"plain loop", "torch", "onnx", "onnx int8"}
    assert {row["rows"] for row in told["rows"]} == {90}
    assert arms["torch"]["pd_difference_max"] < 1e-5
    assert told["pd_difference_max"] == arms["onnx"]["pd_difference_max"] < 1e-5
    assert 1e-5 < arms["onnx int8"]["pd_difference_max"] < 0.1
    assert arms["plain loop"]["over_plain"] == 1.0
    assert told["batch_over_plain"] == arms["onnx int8"]["over_plain"] > 0
    assert told["auc_difference_int8"] < 0.1
