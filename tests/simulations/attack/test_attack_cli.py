"""`credit-sim attack` on German credit, and what its options refuse."""

import json

import pytest

from credit_simulations.attack.run import Row, Setting
from credit_simulations.attack.view import write_markdown
from credit_simulations.cli import main


def test_rows_have_an_attack_an_aggregator_and_both_figures(capsys):
    words = "attack --data german --holders 3 --attackers 1 --epsilon none --format json"
    names = ["--attacks", "nan", "sign_flip", "--aggregators", "median", "multi_krum", "stock"]
    assert main([*words.split(), *names]) == 0
    out = capsys.readouterr()
    rows = json.loads(out.out)["rows"]
    # Krum is for 5 holders at least where one may lie.
    assert [(row["attack"], row["aggregator"]) for row in rows] == [
        (attack, aggregator)
        for aggregator in ("median", "stock")
        for attack in ("nan", "sign_flip")
    ]
    for row in rows:
        assert (row["holders"], row["attackers"], row["epsilon"]) == (3, 1, None)
        assert 0.6 < row["auc_clean"] < 0.9
        assert row["honest_set_aside"] == 0
    told = {(row["attack"], row["aggregator"]): row for row in rows}
    assert told["nan", "stock"]["auc"] is None
    assert told["nan", "median"]["auc"] > told["nan", "median"]["auc_clean"] - 0.1
    assert told["nan", "median"]["set_aside"] == {"not-finite": 3}
    assert "attack: 3 holders, stock, nan by 1: auc broken" in out.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--attacks bribe", "--attacks bribe: must be one of sign_flip, scale"),
        ("--aggregators sum", "--aggregators sum: must be one of mean, trimmed_mean"),
        ("--holders 3 10 --attackers 1", "--attackers: one number for each of --holders"),
        ("--holders 4 --attackers 2", "--holders 4 with --attackers 2: there must be at least 3"),
        ("--holders 2", "--holders 2 with --attackers 1: there must be at least 3 holders"),
        ("--seeds 0", "--seeds 0: must be at least 1"),
        ("--epsilon much", "--epsilon much: must be a number, or none"),
        ("--epsilon 0", r"--epsilon 0: must be inside (0, 50], or none"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(
    capsys, monkeypatch, words, told
):
    monkeypatch.setattr("credit_simulations.attack.run.read_users", None)
    assert main(["attack", *words.split()]) == 1
    assert told in capsys.readouterr().err


def test_one_in_ten_lies_unless_told():
    assert Setting().federations() == [(3, 1), (10, 1), (27, 3)]
    assert Setting(holders=(27,), attackers=(5,)).federations() == [(27, 5)]


def test_markdown_has_the_mean_over_seeds_and_what_liars_changed(capsys):
    def row(seed, attack, auc, clean):
        return Row(
            attack=attack,
            aggregator="median",
            holders=10,
            attackers=1,
            seed=seed,
            epsilon=8.0,
            auc=auc,
            auc_clean=clean,
            set_aside={},
            honest_set_aside=0,
            seconds=1.0,
        )

    rows = [row(0, "nan", 0.6, 0.7), row(1, "nan", 0.7, 0.68), row(0, "scale", None, 0.7)]
    write_markdown([*rows, row(1, "scale", 0.5, 0.68)])
    out = capsys.readouterr().out
    assert "**10 holders, 1 of whom lies, ε 8**" in out
    assert "| none | 0.6900 |" in out
    assert "| nan | 0.6500 (-0.0400) |" in out
    assert "| scale | broken |" in out
