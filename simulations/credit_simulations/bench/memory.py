"""Peak memory of an arm above its base model, each arm in a process of its own."""

import json
import resource
import sys
from pathlib import Path

import numpy as np

from credit_common.backbone import resolve_backbone
from credit_common.text import record_text
from credit_simulations.bench.child import run_child
from credit_simulations.bench.engine import MEBIBYTE, Engine, Schedule, at_layers
from credit_simulations.bench.recipes import Recipe
from credit_simulations.bench.texts import load_texts, long_texts, spread
from credit_simulations.bench.timing import RECIPES, Arm

ROWS = 64
STEPS = 2


def peak_mib(arm: Arm, texts: str) -> float:
    """Peak MiB above the loaded model of an arm that trains on one batch.

    The batch is 64 users whose texts fill 128 tokens, drawn whole in each of two steps. The
    engine's peak has the frozen layers' run over these users in it.

    Args:
        arm: What trains: a recipe, or our engine with privacy at k layers.
        texts: The set that the users are taken from.

    Raises:
        CreditError: If the arm's process fails or takes too long.
    """
    code = "from credit_simulations.bench.memory import main; main()"
    name, layers = arm
    told = f"peak memory of {name}" + (f", k = {layers}" if layers else "")
    return float(run_child(told, code, [json.dumps([*arm, texts])]))


def main() -> None:
    """Measure one arm, named on the command line, and print its MiB."""
    import torch

    torch.set_num_threads(1)
    name, layers, texts = json.loads(sys.argv[1])
    sys.stdout.write(f"{_peak(name, layers, texts)}\n")


def _peak(name: str, layers: int | None, texts: str) -> float:
    found = load_texts(texts)
    contract = long_texts(found.contract)
    records = (spread(found.biggest, ROWS) * ROWS)[:ROWS]
    schedule = Schedule(users=ROWS, batch=ROWS, noise_multiplier=1.0)
    if layers is not None:
        engine = Engine(at_layers(contract, layers, schedule), records)
        before = _reset()
        engine.encode()
        engine.private_steps(STEPS)
        return (_highest() - before) / MEBIBYTE
    spec = contract.model
    said = [record_text(contract, record) for record in records]
    labels = np.asarray([record.label for record in records], np.float32)
    recipe = Recipe(resolve_backbone(spec).folder, spec, said, labels, RECIPES[name], batch=ROWS)
    before = _reset()
    recipe.steps(STEPS)
    return (_highest() - before) / MEBIBYTE


_STATUS = Path("/proc/self/status")


def _reset() -> int:
    """Bytes in memory now; forgets the peak of loading where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _highest()


def _highest() -> int:
    """Largest number of bytes in memory since `_reset`."""
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
