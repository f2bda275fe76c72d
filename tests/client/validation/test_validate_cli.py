"""`credit-client validate` as it is typed: what it prints, what it writes, what it refuses."""

import json
import stat
import subprocess
import sys

import pytest

from credit_client.cli import main
from credit_common.extras import install


@pytest.fixture
def validate(trial, capsys):
    def run(*more, code=0, release=None, shard=None):
        base = ["validate", "--release", str(release or trial.release), "--device", "cpu"]
        found = main([*base, "--shard", str(shard or trial.shard), *map(str, more)])
        told = capsys.readouterr()
        assert found == code, told.err
        return told

    return run


def test_json_is_the_study_and_nothing_else(validate, told):
    plain = json.loads(validate("--format", "json").out)
    assert plain["figures"]["auc"] == told.figures.auc
    assert plain["judged"]["users"] == "holdout"


def test_table_and_markdown_say_the_same(validate, told):
    auc = f"{told.figures.auc:.4f}"
    table, markdown = validate().out, validate("--format", "markdown").out
    assert table.startswith("MODEL REPORT OF SHOP-CREDIT\n")
    assert markdown.startswith("# Model report of shop-credit\n")
    assert auc in table
    assert auc in markdown


def test_the_page_is_written_for_its_owner_alone_and_not_over_anything(validate, trial, tmp_path):
    out = tmp_path / "report.html"
    told = validate("--out", out, "--from", "2025-06-01", "--lgd", 0.6, "--exposure", 200)
    assert out.read_text().startswith("<!doctype html>")
    assert "LGD 0.6, exposure 200" in out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert told.err == f"wrote {out}\n"
    assert list(tmp_path.iterdir()) == [out]  # no draft is left
    assert "exists already; --overwrite" in validate("--out", out, code=1).err
    validate("--out", out, "--overwrite")
    assert "LGD 0.45" in out.read_text()
    inside = trial.release / "report.html"
    assert "is inside the release" in validate("--out", inside, code=1).err
    lost = validate("--out", trial.shard, "--overwrite", code=1)
    assert "is the shard itself" in lost.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--approve-below", "0.1"], "decision.decline_from = None: must be given with"),
        (["--approve-below", "0.3", "--decline-from", "0.2"], "must be between approve_below 0.3"),
        (["--lgd", "1.5"], "lgd = 1.5: must be between 0 and 1"),
        (["--exposure", "-1"], "exposure = -1: must be positive"),
        (["--challenger", "nowhere"], "nowhere"),
        (["--calibration", "nowhere.json"], "cannot read the calibration nowhere.json"),
        (["--out", "nowhere/report.html"], "its folder does not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(validate, more, said):
    err = validate(*more, code=1).err
    assert said in err
    assert err.count("\n") == 1
    assert err.startswith("credit-client: ")


def test_a_day_that_is_none_is_wrong_usage(validate, capsys):
    with pytest.raises(SystemExit) as caught:
        validate("--from", "yesterday")
    assert caught.value.code == 2
    assert "YYYY-MM-DD" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sklearn", "fairlearn", "matplotlib"])
def test_a_missing_library_is_named_with_what_to_type(validate, monkeypatch, name):
    from credit_client import validate_cli

    found = validate_cli.find_spec
    monkeypatch.setattr(
        validate_cli, "find_spec", lambda asked: None if asked == name else found(asked)
    )
    err = validate(code=1).err
    assert err == f"credit-client: {name} is not installed: {install('score')}\n"


def test_the_command_line_starts_without_the_extra():
    """None of its libraries is loaded to show the help."""
    code = (
        "import sys\n"
        "from credit_client.cli import main\n"
        "try:\n    main(['validate', '--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'sklearn', 'fairlearn', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--challenger" in done.stdout
