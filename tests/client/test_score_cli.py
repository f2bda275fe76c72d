import csv
import json
import stat
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from credit_client.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
LOW, HIGH = 0.18, 0.195
RULES = {"approve_below": LOW, "decline_from": HIGH, "bands": {"A": LOW, "B": HIGH, "C": 1.0}}
SAID = {"income": {"en": "Income too low", "zh": "收入偏低"}}


@pytest.fixture
def files(released, tmp_path, rows_of, write_rows):
    """A release with decisions and reasons, and a shard whose outcomes its scores tell of."""
    folder, _, _ = released({"train": ["wide"]}, decision=RULES, reasons=SAID)
    rows = rows_of(300)
    shard = write_rows(tmp_path / "plain.csv", rows)
    plain = ["--release", str(folder), "--shard", str(shard), "--reasons", "none"]
    assert main(["score", *plain, "--out", str(tmp_path / "first.csv")]) == 0
    draw = np.random.default_rng(0)
    with (tmp_path / "first.csv").open(newline="") as file:
        logits = np.array([float(line["logit"]) for line in csv.DictReader(file)])
    pds = 1 / (1 + np.exp(-(4 * (logits - logits.mean()))))
    labels = (draw.random(300) < pds).astype(int)
    write_rows(shard, [{**row, "defaulted": str(y)} for row, y in zip(rows, labels, strict=True)])
    return ["--release", str(folder), "--shard", str(shard)], tmp_path


def lines(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_has_band_decision_and_reasons_for_who_is_not_approved(files, capsys):
    own, folder = files
    capsys.readouterr()
    assert main(["score", *own, "--out", str(folder / "a.csv"), "--most-reasons", "2"]) == 0
    told = lines(folder / "a.csv")
    assert list(told[0]) == [
        "row", "user", "pd", "logit", "points", "band", "decision",
        "reason_1", "reason_1_text", "reason_2", "reason_2_text",
    ]  # fmt: skip
    for line in told:
        pd = float(line["pd"])
        assert line["band"] == ("A" if pd < LOW else "B" if pd < HIGH else "C")
        assert line["decision"] == ("approve" if pd < LOW else "refer" if pd < HIGH else "decline")
        assert (line["reason_1"] == "") == (line["decision"] == "approve")
        if line["reason_1"] == "income":
            assert line["reason_1_text"] == "Income too low"
    assert {line["decision"] for line in told} >= {"refer", "decline"}
    said = capsys.readouterr().out
    assert "300 of 300 rows scored" in said
    assert f"decline {sum(line['decision'] == 'decline' for line in told)}" in said


def test_own_cut_offs_calibration_and_language(files, capsys):
    own, folder = files
    calibration = folder / "calibration.json"
    asked = ["calibrate", *own, "--out", str(calibration), "--users", "all", "--format", "json"]
    capsys.readouterr()
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["users"]) == ("platt", 300)
    assert told["slope"] > 1
    assert stat.S_IMODE(calibration.stat().st_mode) == 0o600
    more = ["--calibration", str(calibration), "--approve-below", "0.2", "--decline-from", "0.2"]
    out = folder / "b.parquet"
    asked = ["score", *own, "--out", str(out), *more, "--language", "zh", "--format", "json"]
    assert main(asked) == 0
    summary = json.loads(capsys.readouterr().out)
    table = pq.read_table(out).to_pylist()
    assert summary["scored"] == len(table) == 300
    assert set(summary["decisions"]) == {"approve", "decline"}
    for line in table:
        logit = told["slope"] * line["logit"] + told["intercept"]
        assert line["calibrated_pd"] == pytest.approx(1 / (1 + np.exp(-logit)))
        assert line["decision"] == ("approve" if line["calibrated_pd"] < 0.2 else "decline")
        assert line["points"] == pytest.approx(600 - 50 / np.log(2) * (logit + np.log(19)))
        if line["reason_1"] == "income":
            assert line["reason_1_text"] == "收入偏低"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_an_export_scores_the_same(files, capsys):
    own, folder = files
    release = own[:2]
    assert main(["export", *release, "--out", str(folder / "onnx")]) == 0
    assert "on made-up records, PDs within" in capsys.readouterr().out
    for name, more in (("torch.csv", []), ("onnx.csv", ["--export", str(folder / "onnx")])):
        asked = ["score", *own, "--out", str(folder / name), "--reasons", "none", *more]
        assert main(asked) == 0
    ours, theirs = ([float(x["pd"]) for x in lines(folder / n)] for n in ("onnx.csv", "torch.csv"))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--approve-below", "0.5", "--decline-from", "0.2"], "decision.decline_from = 0.2: must"),
        (["--approve-below", "2", "--decline-from", "3"], "decision.approve_below = 2.0: must be"),
        (["--most-reasons", "0"], "reasons = 0: must be between 1 and 20"),
        (["--calibration", "none.json"], "cannot read the calibration none.json"),
        (["--export", "nowhere"], "nowhere: cannot be opened"),
    ],
)
def test_mistakes_get_one_line(files, capsys, more, said):
    own, folder = files
    capsys.readouterr()
    assert main(["score", *own, "--out", str(folder / "c.csv"), *more]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (folder / "c.csv").exists()


def test_a_missing_library_is_named_with_its_extra(files, capsys, monkeypatch):
    own, folder = files
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    monkeypatch.delitem(sys.modules, "captum", raising=False)
    capsys.readouterr()
    assert main(["score", *own, "--out", str(folder / "d.csv")]) == 1
    assert "pip install '.[score]'" in capsys.readouterr().err
