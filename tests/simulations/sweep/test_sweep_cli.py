"""credit-sim sweep as typed: mistakes get one line, before anything is computed."""

import sys

import pytest

from credit_simulations.cli import main


def refused(capsys, *arguments):
    code = main(["sweep", *map(str, arguments)])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return code, said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.toml"], "cannot read the sweep nowhere.toml"),
        (["--quick", "--data", "iris"], "--data iris: the sweep has pakdd2009, taiwan"),
        (["--quick", "--arms", "xgboost"], "arms = 'xgboost': must be one of federated"),
        (["--quick", "--folds", "1"], "folds = 1: must be 0, or at least 2"),
        (["--quick", "--processes", "0"], "--processes = 0: must be at least 1"),
        (["quick", "--full"], "one of them"),
    ],
)
def test_a_mistake_is_named(capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, line = refused(capsys, *arguments)
    assert code == 1
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_its_arms_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("credit_simulations.sweep.cli.find_spec", lambda name: None)
    code, line = refused(capsys, "--quick")
    assert code == 1
    assert "pip install '.[bench]'" in line


def test_wrong_usage_is_told_by_argparse(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "--quick", "--full"])
    assert ended.value.code == 2
