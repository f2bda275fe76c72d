"""The points table adds up to the points of the model's own score, whatever the record."""

import re

import numpy as np
import pytest

from credit_common.card_points import scorecard_part
from credit_common.contract import parse_contract
from credit_common.errors import ContractError
from credit_common.points_table import points_table
from credit_common.record import OTHER, Record
from credit_common.release import release_scores
from credit_common.text import reference_record, wide_features, wide_width

EDGES = {"age": (25.0, 40.0, 60.0), "income": (0.5, 10.0, 50.0, 100.0)}


def head_of(contract, seed=0):
    draw = np.random.default_rng(seed)
    weights = draw.standard_normal((1, wide_width(contract))).astype(np.float32)
    return {"wide.weight": weights, "offset": np.array([-1.3], np.float32)}


def drawn(contract, n, seed=1):
    """Records with every cell in them, missing and other codes too."""
    draw = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        values = {}
        for field in contract.wide_fields:
            if field.kind == "number":
                inner = (*field.edges, field.edges[0] - 0.1, field.edges[-1] + 0.1)
                choices = [None, *inner]
            else:
                choices = [None, OTHER, *field.values]
            values[field.name] = choices[draw.integers(len(choices))]
        out.append(Record(values=values, protected={}, label=None))
    return out


def own_points(contract, head, records):
    """Without the table: the documented function and Siddiqi's formula."""
    wide = np.stack([wide_features(contract, record) for record in records])
    logits = release_scores(head, None, wide)[:, 0].astype(np.float64)
    card = contract.scorecard
    return card.base_score + card.pdo / np.log(2) * (-logits - np.log(card.base_odds))


@pytest.mark.parametrize("edges", [None, EDGES])
def test_base_and_cells_add_up_to_the_points_of_the_score(contract, federated, edges):
    own = federated.with_edges(edges) if edges else contract
    head = head_of(own)
    table = points_table(own, head)
    records = drawn(own, 200)
    told = np.array([table.total(own, record) for record in records])
    assert np.abs(told - own_points(own, head, records)).max() < 1e-3
    assert told.std() > 10


def test_the_reference_applicant_has_the_base_and_no_points(contract):
    table = points_table(contract, head_of(contract))
    applicant = reference_record(contract)
    assert table.total(contract, applicant) == pytest.approx(table.base, abs=1e-9)
    assert all(field.points[field.reference] == 0 for field in table.fields)
    assert table.base == pytest.approx(
        own_points(contract, head_of(contract), [applicant])[0], abs=1e-3
    )


def test_strongest_fields_are_those_whose_cells_differ_most(contract):
    table = points_table(contract, head_of(contract))
    spreads = [max(f.points) - min(f.points) for f in table.strongest(3)]
    assert spreads == sorted((f.spread for f in table.fields), reverse=True)[:3]
    assert len(table.strongest(99)) == len(contract.wide_fields)


def test_what_has_no_points_is_refused_or_none(federation_file):
    value = {"kind": "regression", "positive": None, "negative": None, "range": [0.0, 50.0]}
    other = parse_contract(federation_file(task=value))
    with pytest.raises(ContractError, match=r"task.kind = 'regression': must be 'binary'"):
        points_table(other, {})
    text = parse_contract(federation_file(model={"train": ["lora", "head"]}))
    assert points_table(text, {"offset": np.zeros(1, np.float32)}) is None


def test_the_cards_part_has_scale_cut_offs_bands_and_the_tables_own_points(federation_file):
    own = parse_contract(
        federation_file(
            scorecard={"preset": "toad", "lowest": 300.0},
            decision={
                "approve_below": 0.1,
                "decline_from": 0.25,
                "bands": {"A": 0.05, "B": 0.2, "C": 1.0},
            },
        )
    )
    head = head_of(own)
    told = scorecard_part(own, head)
    assert told == scorecard_part(own, head)
    for said in (
        "750 points are odds of 35 good",
        "60 points more double",
        "Points go from 300,",
        "below 0.1, declines one from 0.25 on",
        "| B | 0.05 to 0.2 |",
        "what BERT reads is not in them",
    ):
        assert said in told, said
    table = points_table(own, head)
    shown = table.strongest(5)
    rows = re.findall(r"^\| (.*) \| (.*) \| ([+-]?\d+\.\d) \|$", told, re.MULTILINE)
    assert len(rows) == sum(len(field.cells) for field in shown)
    assert [float(row[2]) for row in rows] == pytest.approx(
        [p for field in shown for p in field.points], abs=0.051
    )
    assert f"has {table.base:.1f} points" in told


def test_a_card_of_text_alone_says_so(federation_file):
    own = parse_contract(federation_file(model={"train": ["lora", "head"]}))
    told = scorecard_part(own, {"offset": np.zeros(1, np.float32)})
    assert "All points come from what BERT reads" in told
    assert "names no cut-offs" in told
