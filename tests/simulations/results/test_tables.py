"""Tables say what rows say, and no name in them is markup."""

import csv
import io
import re

import pytest

from credit_simulations.results.published import PUBLISHED
from credit_simulations.results.rows import COLUMNS, rows
from credit_simulations.results.tables import as_csv, as_latex, as_markdown, pivot_grid

EVIL = 'a|b\n# x_y_ *z* `c` <b> $1 & 50% [u](v) \\input{x} {~^"}'


@pytest.fixture
def evil(read, line):
    return read(line(data=EVIL, partition=EVIL, arm=EVIL)).trials


def test_csv_has_all_digits_and_reads_back(read, line):
    found = rows(read(line(auc=0.123456789012), line(epsilon=None, data=EVIL)).trials)
    shown = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert tuple(shown[0]) == COLUMNS
    assert {row["data"] for row in shown} == {"pakdd2009", EVIL}
    by_data = {row["data"]: row for row in shown}
    assert float(by_data["pakdd2009"]["auc_mean"]) == 0.123456789012
    assert by_data[EVIL]["epsilon"] == by_data[EVIL]["auc_sd"] == ""


def test_no_name_breaks_a_markdown_table(evil):
    lines = as_markdown(evil).splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]
    assert {len(each) for each in cells[:3]} == {len(COLUMNS)}
    assert not [line for line in lines if line.startswith("#")]
    body = cells[2][0]
    assert not re.search(r"(?<!\\)[`*<>\[\]$&]", body)
    assert r"x_y\_" in body


def test_names_stay_readable_in_markdown(read, line):
    assert "| wide_only |" in as_markdown(read(line(arm="wide_only")).trials)


def test_no_name_breaks_a_latex_table(evil):
    text = as_latex(evil)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip()
    assert len(body.splitlines()) == 1
    assert len(re.findall(r"(?<!\\)&", body)) == len(COLUMNS) - 1
    assert r"\input" not in body
    plain = re.sub(r"\\textbackslash\{\}|\\text\w+\{\}|\\[&%$#_{}]", "", body)
    assert not set(plain.removesuffix(r"\\")) & set("%$#_{}^~\\")


def test_latex_is_booktabs_with_as_many_columns_as_heads(evil):
    text = as_latex(evil)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    assert r"\begin{tabular}{lllllrrrrrr}" in text
    assert r"$\varepsilon$ = 8" in text


def test_the_pivot_has_a_line_an_arm_and_a_column_an_epsilon(read, line):
    found = read(
        line(auc=0.65),
        line(auc=0.67, seed=1),
        line(epsilon=None, auc=0.68),
        line(epsilon=1, auc=0.61),
        line(epsilon=None, arm="local_only", auc=0.6),
    )
    grid = pivot_grid(found.trials)
    assert grid.heads == ("data", "partition", "holders", "arm", "ε = 1", "ε = 8", "no DP")
    assert grid.cells == [
        ("pakdd2009", "natural", "3", "federated", "0.610", "0.660 ± 0.014", "0.680"),
        ("pakdd2009", "natural", "3", "local only", "", "", "0.600"),
    ]


def test_the_best_that_there_can_be_stands_below_the_arms_of_its_setting(read, line):
    found = read(
        *(
            line(partition=p, seed=s, best_auc=0.8 + s / 10)
            for p in ("iid", "natural")
            for s in (0, 1)
        ),
        line(partition="iid", arm="newcomers", best_auc=0.95),
        line(data="taiwan"),
    )
    shown = [(cell[1], cell[3], cell[-1]) for cell in pivot_grid(found.trials).cells]
    assert shown[1] == ("natural", "best possible", "0.850")
    assert shown[4] == ("iid", "best possible", "0.850")
    assert len(shown) == 6


def test_published_figures_stand_beside_with_their_source(read, line):
    shown = as_markdown(read(line(data="gmsc")).trials)
    for epsilon, auc in (("1", "0.847"), ("0.5", "0.845"), ("0.1", "0.842")):
        assert (
            f"| gmsc | federated DP trees | Maddock et al., CCS 2022 | {epsilon} | {auc} |" in shown
        )
    assert "taiwan" not in shown
    assert "Published" not in as_markdown(read(line(data="unheard of")).trials)
    assert all(figure.source and 0.5 < figure.auc < 1 for figure in PUBLISHED)
