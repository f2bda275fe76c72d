import pandas as pd
import pytest

from credit_simulations.federation import Progress
from credit_simulations.runs import RunResult
from credit_simulations.view import RunView, summary, write_markdown

SPENT = 4.9811  # to the nearest hundredth it would be told as less than it is


@pytest.fixture
def result(contract):
    row = {"arm": "federated", "epsilon": SPENT, "draw": 1, "auc": 0.7, "bytes_up": 9, "seconds": 1}
    free = {**row, "arm": "no_dp", "epsilon": None}
    return RunResult(
        contract=contract,
        table=pd.DataFrame([row, free]).astype({"epsilon": float}),
        adapter={},
        users={"a": (30, 10)},
        seconds={"rounds": 1.0},
    )


@pytest.mark.parametrize("show", [summary, write_markdown])
def test_what_is_told_of_an_arm_is_not_less_than_it_spent(result, capsys, show):
    show(result)
    told = capsys.readouterr().out
    assert "4.99" in told
    assert "4.98" not in told
    assert "none" in told


def test_the_live_table_tells_no_less_than_was_spent(contract, capsys):
    with RunView(contract, None) as view:
        progress = Progress(round=1, holders=2, figures={}, epsilon=SPENT)
        view.watcher.round("federated", 1, progress)
    told = capsys.readouterr().err
    assert "4.99" in told
    assert "4.98" not in told
