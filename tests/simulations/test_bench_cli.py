import pytest

from credit_simulations.cli import main


@pytest.mark.parametrize(
    "typed",
    [
        ["start", "--repeats", "0"],
        ["rounds", "--holders", "20", "-1"],
        ["rounds", "--repeats", "0"],
        ["wire", "--draws", "-1"],
        ["wire", "--seeds", "x"],
        ["training", "--users", "0"],
        ["training", "--auc-users", "1.5"],
        ["training", "--no-auc", "--only-auc"],
        [],
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_measured(typed, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *typed])
    assert ended.value.code == 2
    assert "bench" in capsys.readouterr().err


def test_start_prints_each_commands_time(capsys):
    assert main(["bench", "start", "--repeats", "1", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    for command in ("credit-client", "flower-server", "credit-sim"):
        assert f"| {command} --help |" in shown
    assert "`credit-sim bench start --repeats 1`" in shown
