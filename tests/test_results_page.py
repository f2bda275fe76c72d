"""docs/results.md says what docs/results.jsonl holds, and no more."""

import re
from pathlib import Path

import pytest

from credit_simulations.results.rows import rows
from credit_simulations.results.spoilt import spoilt_grid
from credit_simulations.results.tables import as_markdown, grid_markdown, pivot_grid, rows_grid
from credit_simulations.results.trials import read_trials

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
ARMS = {
    "federated", "newcomers", "wide_only", "frozen_bert", "central", "central_dp", "local_only",
    "logistic", "gbm", "untuned", "tfidf",
}  # fmt: skip


@pytest.fixture(scope="module")
def trials():
    return read_trials(DOCS / "results.jsonl").trials


@pytest.fixture(scope="module")
def told(trials):
    """(data, partition, arm, epsilon) -> row."""
    return {(r.data, r.partition.split("-")[0], r.arm, r.epsilon): r for r in rows(trials)}


def test_the_tables_are_those_that_the_report_prints(trials):
    between = PAGE.split("<!-- tables -->")[1].split("<!-- end of tables -->")[0]
    assert between.strip() == as_markdown(trials).strip()


def test_the_tables_of_spoilt_records_are_those_that_the_report_prints():
    trials = read_trials(DOCS / "results-robustness.jsonl").trials
    between = PAGE.split("<!-- robustness -->")[1].split("<!-- end of robustness -->")[0]
    grids = (rows_grid(rows(trials)), spoilt_grid(trials))
    assert between.strip() == "\n".join(map(grid_markdown, grids)).strip()


def test_the_table_of_simulated_merchants_is_that_which_the_report_prints():
    trials = read_trials(DOCS / "results-simulated.jsonl").trials
    between = PAGE.split("<!-- simulated -->")[1].split("<!-- end of simulated -->")[0]
    assert between.strip() == grid_markdown(pivot_grid(trials)).strip()
    assert "| best possible |  | 0.814 |" in between


def test_spoilt_records_newcomers_and_a_later_period_are_all_there():
    trials = read_trials(DOCS / "results-robustness.jsonl").trials
    texts = [trial for trial in trials if trial.setting.data == "lendingclub"]
    for trial in texts:
        assert set(trial.perturbed) == {"clean", "typos", "no_text", "missing_fields"}
    for where in ("natural", "natural-later"):
        arms = {trial.arm for trial in texts if trial.setting.partition == where}
        assert arms == {"federated", "newcomers", "wide_only", "logistic", "gbm"}


@pytest.mark.parametrize("data", ["pakdd2009", "taiwan", "gmsc", "lendingclub"])
def test_every_arm_stands_at_every_epsilon(told, data):
    for epsilon in (1.0, 3.0, 8.0, None):
        for arm in ("federated", "wide_only", "frozen_bert"):
            assert told[data, "natural", arm, epsilon].seeds == 5
        central = "central" if epsilon is None else "central_dp"
        assert told[data, "natural", central, epsilon].seeds == 5
    assert {arm for name, where, arm, _ in told if (name, where) == (data, "natural")} >= ARMS


def test_what_was_asked_is_told_as_it_was_seen(told):
    def auc(data, arm, epsilon=None, partition="natural"):
        return told[data, partition, arm, epsilon].auc_mean

    def gain():
        own = told["pakdd2009", "natural", "federated", 8.0].in_holder_auc_mean
        return own - told["pakdd2009", "natural", "local_only", None].in_holder_auc_mean

    seen = {
        "pakdd2009, no DP": auc("pakdd2009", "federated"),
        "pakdd2009, ε = 8": gain(),
        "taiwan, Dirichlet(.5), no DP": auc("taiwan", "federated", partition="dirichlet"),
        "gmsc, no DP": auc("gmsc", "federated") - auc("gmsc", "gbm"),
        "lendingclub, no DP": auc("lendingclub", "federated"),
        "lendingclub, text alone, no DP": auc("lendingclub", "text_only"),
        "lendingclub, ε = 8": auc("lendingclub", "federated", 8.0)
        - auc("lendingclub", "wide_only", 8.0),
    }
    table = PAGE.split("<!-- asked -->")[1].split("\n\n")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()]
    shown = {line[0]: line[3] for line in cells[2:]}
    assert set(shown) == set(seen)
    for name, figure in seen.items():
        number = float(re.sub(r"[^\d.+-]", "", shown[name].replace("\N{MINUS SIGN}", "-")))
        assert number == pytest.approx(figure, abs=5.1e-4), name
