"""Row 12: Flower's LocalDpMod is not used, nor any other mod around a holder's app.

It calibrates noise by the classic Gaussian formula beyond its range (ε below 1), never composes
rounds, and draws from NumPy's global generator.
"""

import ast
import math
from pathlib import Path

import pytest
from flwr.clientapp.mod import LocalDpMod

import credit_client
import credit_common
import credit_server
import credit_simulations
from credit_common.accountant import epsilon
from credit_common.events import Histogram

PACKAGES = (credit_common, credit_client, credit_server, credit_simulations)


def sources():
    for package in PACKAGES:
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            yield path.read_text(encoding="utf-8")


def check_no_mods(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith(("flwr.clientapp.mod", "flwr.client.mod"))
        if isinstance(node, ast.Import):
            assert not any(".mod" in name.name and "flwr" in name.name for name in node.names)
        if isinstance(node, ast.keyword):
            assert node.arg != "mods"
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            assert name not in ("LocalDpMod", "fixedclipping_mod", "adaptiveclipping_mod")


def test_row_12_no_mod_stands_between_training_and_the_gate():
    found = list(sources())
    assert len(found) > 60
    for source in found:
        check_no_mods(source)


@pytest.mark.parametrize(
    "broken",
    [
        "from flwr.clientapp.mod import LocalDpMod",
        "import flwr.clientapp.mod as m",
        "app = ClientApp(mods=[x])",
        "m.LocalDpMod(1.0, 1.0, 8.0, 1e-5)",
    ],
)
def test_row_12_catches_a_mod(broken):
    with pytest.raises(AssertionError):
        check_no_mods(broken)


def test_row_12_its_formula_claims_less_than_it_spends():
    """One release at its σ for ε = 12 spends 13; thirty are not counted at all."""
    claimed, delta = 12.0, 1e-5
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=claimed, delta=delta)
    sigma = mod.sensitivity * math.sqrt(2 * math.log(1.25 / mod.delta)) / mod.epsilon
    one = Histogram(noise_multiplier=sigma)
    assert epsilon([one], delta) > claimed
    assert epsilon([one] * 30, delta) > 5 * claimed
