import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_common.contract import Contract, canonical, parse_contract
from credit_common.errors import ContractError
from credit_common.quantiles import Grid, Quantiles
from credit_common.text import (
    reference_record,
    reference_texts,
    wide_features,
    wide_names,
    wide_width,
)

AGE = 'edges = "federated"\nbins = 4\ncells = 41'
EDGES = {"age": (25.0, 40.0, 60.0), "income": (1.0, 10.0, 50.0, 100.0)}


def grid(low: float, high: float, **keys: object) -> Grid:
    return Grid(quantiles=Quantiles(**{"bins": 2, **keys}), range=(low, high))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bins = 4", "", ["fields.age", "bins", "missing"]),
        ("bins = 4", "bins = 1", ["fields.age.bins", "between 2 and 100"]),
        ("bins = 4", "bins = 101", ["fields.age.bins", "between 2 and 100"]),
        ("bins = 4", "bins = 4.0", ["fields.age.bins", "an integer"]),
        ("bins = 4", "bins = 50", ["fields.age.cells", "41", "at least the 50 bins"]),
        ("cells = 41", "cells = 9", ["fields.age.cells", "between 10 and 2000"]),
        ("cells = 41", "cells = 2001", ["fields.age.cells", "between 10 and 2000"]),
        ("cells = 41", 'scale = "log2"', ["fields.age.scale", "'log2'", "'linear', 'log'"]),
        ("cells = 41", 'cell = 41\nscale = "log"', ["fields.age", "unknown key 'cell'"]),
        ("cells = 41", "quantiles = { bins = 3 }", ["fields.age", "quantiles", "federated"]),
        ("range = [18, 100]", "range = [18, 1e31]", ["fields.age.range", "1e+30"]),
        ("range = [18, 100]", "range = [1e9, 1000000001]", ["fields.age.cells", "float32"]),
        ('"federated"\nbins = 4', '"federal"\nbins = 4', ["fields.age.edges", "'federal'"]),
        ('"federated"\nbins = 4', "[20, 30]\nbins = 4", ["fields.age.bins", "left out"]),
        ('"federated"\nbins = 4\n', "[20, 30]\n", ["fields.age.cells", "left out"]),
        ('"federated"\nbins = 4\ncells = 41', "[]", ["fields.age.edges", "at least one edge"]),
        ("mean = [5, 20]", 'mean = "federated"', ["fields.orders.edges", "event lists"]),
        ("noise_multiplier = 8.0", "", ["statistics.noise_multiplier", "0.0", "at least 0.2"]),
        ("noise_multiplier = 8.0", "noise_multiplier = 0.1", ["statistics", "at least 0.2"]),
        ("noise_multiplier = 8.0", "noise_multiplier = -1", ["statistics", "between 0 and 1e6"]),
        ("noise_multiplier = 8.0", "sigma = 8.0", ["[statistics] unknown key 'sigma'"]),
        ("rank = 4", 'train = ["lora", "head"]', ["model.train", '"wide"', "federated"]),
        (
            "epsilon = 4.0\ndelta = 1e-5\nnoise_multiplier = 1.0",
            "",
            ["noise_multiplier", "0 where"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    federated_text: str, old: str, new: str, said: list[str]
) -> None:
    assert old in federated_text
    with pytest.raises(ContractError) as caught:
        parse_contract(federated_text.replace(old, new, 1))
    for part in said:
        assert part in str(caught.value)


def test_a_whole_event_list_with_federated_edges_is_refused(contract_text: str) -> None:
    start, rest = contract_text.split("[fields.edges]\n")
    text = start + 'edges = "federated"\n' + rest[rest.index("[[") :]
    with pytest.raises(ContractError, match="event lists have edges of their own"):
        parse_contract(text)


def test_noise_for_statistics_that_nobody_asks_for_is_refused(contract_text: str) -> None:
    with pytest.raises(ContractError, match="no field's edges are federated"):
        parse_contract(contract_text + "\n[statistics]\nnoise_multiplier = 8.0\n")
    plain = parse_contract(contract_text)
    assert parse_contract(contract_text + "\n[statistics]\n").digest == plain.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bins = 4", "bins = 5"),
        ("cells = 41", "cells = 42"),
        ("cells = 41", 'cells = 41\nscale = "log"'),
        ("noise_multiplier = 8.0", "noise_multiplier = 8.1"),
    ],
)
def test_the_digest_covers_all_of_it(federated_text: str, old: str, new: str) -> None:
    plain = parse_contract(federated_text)
    assert parse_contract(federated_text.replace(old, new, 1)).digest != plain.digest
    spelt = federated_text.replace("cells = 41", 'cells = 41\nscale = "linear"')
    assert parse_contract(spelt).digest == plain.digest


def test_a_contract_without_federated_edges_has_none_of_it_in_its_canonical_form(
    contract: Contract, federated: Contract
) -> None:
    plain, asking = json.loads(canonical(contract)), json.loads(canonical(federated))
    assert "statistics" not in plain
    assert not any("quantiles" in field for field in plain["fields"])
    assert asking["statistics"] == {"noise_multiplier": 8.0}
    asked = {f["name"]: f["quantiles"] for f in asking["fields"] if "quantiles" in f}
    assert asked == {
        "age": {"bins": 4, "cells": 41, "scale": "linear"},
        "income": {"bins": 5, "cells": 200, "scale": "log"},
    }


@given(
    low=st.floats(-1e6, 1e6),
    span=st.floats(1, 1e9),
    cells=st.integers(10, 2000),
    scale=st.sampled_from(["linear", "log"]),
)
def test_a_grid_rises_inside_its_range_in_float32_or_is_refused(
    low: float, span: float, cells: int, scale: str
) -> None:
    made = grid(low, low + span, cells=cells, scale=scale)
    try:
        made.check("fields.x")
    except ContractError:
        return
    assert len(made.inner) == cells - 1
    assert all(a < b for a, b in pairwise([low, *made.inner, low + span]))
    assert all(float(np.float32(x)) == x for x in made.inner)


def test_cells_are_equal_in_the_grids_own_scale() -> None:
    linear = np.diff([0.0, *grid(0, 50, cells=100).inner, 50.0])
    assert linear == pytest.approx(np.full(100, 0.5), rel=1e-4)
    log = np.arcsinh([-1000.0, *grid(-1000, 9e5, scale="log").inner, 9e5])
    whole = math.asinh(9e5) + math.asinh(1000)
    assert np.diff(log) == pytest.approx(np.full(200, whole / 200), rel=1e-3)
    amounts = np.array([1000.0, *grid(1000, 1e6, scale="log").inner, 1e6])
    assert amounts[1:] / amounts[:-1] == pytest.approx(np.full(200, 1000 ** (1 / 200)), rel=1e-5)


def test_the_wide_part_is_as_wide_before_edges_are_known_as_after(federated: Contract) -> None:
    resolved = federated.with_edges(EDGES)
    assert wide_width(federated) == wide_width(resolved) == len(wide_names(resolved))
    assert [f.edges for f in federated.federated_fields] == [(), ()]
    assert {f.name: f.edges for f in resolved.federated_fields} == EDGES
    assert {f.name: f.bins for f in resolved.federated_fields} == {"age": 4, "income": 5}
    with pytest.raises(ContractError, match=r"fields\.age\.edges: are federated, and not known"):
        wide_features(federated, reference_record(federated))
    again = resolved.with_edges({**EDGES, "age": (30.0, 40.0, 50.0)})
    assert {f.name: f.edges for f in again.federated_fields}["age"] == (30.0, 40.0, 50.0)


def test_resolved_edges_are_read_as_if_they_stood_in_the_file(
    federated: Contract, contract: Contract, records
) -> None:
    resolved = federated.with_edges({**EDGES, "income": (10.0, 20.0, 50.0, 100.0)})
    fields = tuple(
        dataclasses.replace(f, edges=(10.0, 20.0, 50.0, 100.0)) if f.name == "income" else f
        for f in contract.fields
    )
    plain = dataclasses.replace(contract, fields=fields)
    for record in records(20):
        assert np.array_equal(wide_features(resolved, record), wide_features(plain, record))


def test_the_reference_record_is_the_same_whatever_the_edges_are(federated: Contract) -> None:
    resolved = federated.with_edges(EDGES)
    values = reference_record(federated).values
    assert values == reference_record(resolved).values
    assert reference_texts(federated) == reference_texts(resolved)
    assert values["age"] == pytest.approx(18 + 82 * 21 / 41)  # the grid's middle boundary
    assert values["income"] == pytest.approx(math.sinh(math.asinh(500) / 2), rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"age": (25.0, 40.0)}, r"fields\.age\.edges = 2: must be 3 edges"),
        ({"age": (25.0, 40.0, 60.0, 70.0)}, r"fields\.age\.edges = 4: must be 3 edges"),
        ({"age": ()}, r"fields\.age\.edges = 0: must be 3 edges"),
        ({"age": (25.0, 25.0, 60.0)}, "increasing"),
        ({"age": (60.0, 40.0, 25.0)}, "increasing"),
        ({"age": (25.0, math.nan, 60.0)}, "increasing"),
        ({"age": (math.nan, math.nan, math.nan)}, "increasing"),
        ({"age": (25.0, 40.0, math.inf)}, "inside the range"),
        ({"age": (18.0, 40.0, 60.0)}, "inside the range"),
        ({"age": (25.0, 40.0, 101.0)}, "inside the range"),
        ({"tenure": (2.0,)}, r"edges = \['tenure'\]"),
    ],
)
def test_edges_that_the_contract_did_not_ask_for_are_refused(
    federated: Contract, changed: dict[str, tuple[float, ...]], said: str
) -> None:
    with pytest.raises(ContractError, match=said):
        federated.with_edges({**EDGES, **changed})


def test_no_edges_are_filled_in_where_none_are_asked_for(
    contract: Contract, federated: Contract
) -> None:
    assert contract.with_edges({}) is contract
    with pytest.raises(ContractError, match="edges = "):
        contract.with_edges({"age": (25.0, 40.0, 60.0)})
    with pytest.raises(ContractError, match=r"\['age', 'income'\]"):
        federated.with_edges({})


def test_baselines_without_privacy_count_without_noise(federated: Contract) -> None:
    bare = federated.without_privacy()
    assert bare.statistics.noise_multiplier == 0
    assert bare.federated_fields == federated.federated_fields
