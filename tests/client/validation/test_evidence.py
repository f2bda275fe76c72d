"""WOE and IV: by hand, with half a user where a cell has none of one class."""

import math

import numpy as np
import pytest

from credit_client.validation.evidence import evidence
from credit_common.record import OTHER, Record


def records_of(name, values):
    return [Record(values={name: value}, protected={}, label=None) for value in values]


def of(found, name):
    return next(field for field in found if field.name == name)


def test_woe_and_iv_are_those_of_the_book(contract):
    values = [20.0] * 30 + [30.0] * 50 + [70.0] * 20
    bads = np.array(([1] * 15 + [0] * 15) + ([1] * 5 + [0] * 45) + ([1] * 4 + [0] * 16))
    age = of(evidence(contract, records_of("age", values), bads), "age")
    goods, defaults = 76, 24
    expected = [
        math.log((15 / goods) / (15 / defaults)),
        math.log((45 / goods) / (5 / defaults)),
        None,
        math.log((16 / goods) / (4 / defaults)),
        None,
    ]
    assert [c.name for c in age.cells] == ["[, 25)", "[25, 40)", "[40, 60)", "[60, )", "missing"]
    for cell, woe in zip(age.cells, expected, strict=True):
        assert cell.woe == (woe if woe is None else pytest.approx(woe))
        assert not cell.corrected
    iv = sum(
        (g / goods - b / defaults) * math.log((g / goods) / (b / defaults))
        for g, b in ((15, 15), (45, 5), (16, 4))
    )
    assert age.iv == pytest.approx(iv)
    assert age.band == "suspicious"
    assert [c.users for c in age.cells] == [30, 50, 0, 20, 0]


def test_a_cell_without_one_class_gets_half_a_user_of_both(contract):
    values = ["P"] * 10 + ["R"] * 30 + [OTHER] * 6 + [None] * 4
    bads = np.array([0] * 10 + [1] * 10 + [0] * 20 + [1] * 6 + [0] * 4)
    home = of(evidence(contract, records_of("home", values), bads), "home")
    cells = {cell.name: cell for cell in home.cells}
    assert cells["P"].woe == pytest.approx(math.log((10.5 / 34) / (0.5 / 16)))
    assert cells["other"].woe == pytest.approx(math.log((0.5 / 34) / (6.5 / 16)))
    assert cells["missing"].woe == pytest.approx(math.log((4.5 / 34) / (0.5 / 16)))
    assert [n for n, c in cells.items() if c.corrected] == ["P", "other", "missing"]
    assert all(cell.iv >= 0 for cell in home.cells)
    assert cells["none"].woe is None
    assert home.iv == pytest.approx(sum(cell.iv for cell in home.cells))


def test_a_field_that_knows_nothing_has_the_iv_of_chance(contract):
    draw = np.random.default_rng(0)
    found = []
    for _ in range(150):
        values = draw.uniform(18, 100, 400).tolist()
        bads = (draw.random(400) < 0.3).astype(np.int64)
        found.append(of(evidence(contract, records_of("age", values), bads), "age"))
    assert np.mean([f.iv for f in found]) == pytest.approx(
        np.mean([f.by_chance for f in found]), rel=0.15
    )


def test_every_field_of_the_wide_part_is_told_in_order(contract):
    records = [Record(values={}, protected={}, label=None)] * 20
    found = evidence(contract, records, np.array([0, 1] * 10))
    assert [f.name for f in found] == [f.name for f in contract.wide_fields]
    assert all(f.iv == 0 and f.band == "unpredictive" for f in found)
