"""What a run under faults is made on: pakdd2009's biggest shops, a small contract, a small BERT.

The BERT has two layers of 64 numbers a token and random weights: what is tested is whether a run
survives, for which words need no meaning, and seven processes have to start, some of them again and
again. A cut of the packaged backbone would be the same code at forty times the work.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from credit_common.contract import Contract, parse_contract
from credit_common.fetch import fetch_minilm
from credit_simulations.data import contract_path
from credit_simulations.live import found
from credit_simulations.packaged import packaged_shards

DATA_SET = "pakdd2009"
LAYERS, HIDDEN, HEADS = 2, 64, 4
_NARROWED = {384: HIDDEN, 1536: 2 * HIDDEN}
_KEPT = {"task", "record", "split", "fields"}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a run's contract says that the packaged one says otherwise.

    Attributes:
        rounds: Number of rounds, evaluated after every fifth and the last.
        steps: Local steps of a round.
        private: Whether there is a budget; if so it is the largest that a contract may have.
        noise_multiplier: Of a step, where there is a budget.
        reads_text: Whether the small BERT takes part beside the wide features.
        min_holders: Fewest holders of a round.
        grace_seconds: For holders that are gone.
    """

    rounds: int = 10
    steps: int = 3
    private: bool
    noise_multiplier: float = 2.0
    reads_text: bool = True
    min_holders: int = 3
    grace_seconds: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A founded federation (see `live.found`).

    Attributes:
        home: Its folder.
        shards: File of each holder by name, in its home.
    """

    home: Path
    contract: Contract
    shards: dict[str, Path]

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.home / "coordinator"


def lay_ground(home: Path, terms: Terms, holders: int, rows: int | None = None) -> Ground:
    """Found a federation of the data set's biggest shops in a new folder.

    Args:
        home: Not there yet.
        terms: Of its contract.
        holders: How many shops.
        rows: Most rows of a shop; None for all.
    """
    home.mkdir(mode=0o700, parents=True)
    model = 'train = ["wide"]'
    if terms.reads_text:
        backbone = home / "bert"
        sha256 = small_bert(backbone)
        model = (
            f'backbone = {json.dumps(str(backbone))}\nbackbone_sha256 = "{sha256}"\n'
            "tokens = 16\nlayers = 1\nrank = 4"
        )
    text = contract_text(contract_path(DATA_SET).read_text("utf-8"), terms, model)
    path = home / "federation.toml"
    path.write_text(text, encoding="utf-8")
    files = dict(packaged_shards(DATA_SET, holders))
    if rows is not None:
        for name, file in files.items():
            files[name] = home / file.name
            pd.read_parquet(file).head(rows).to_parquet(files[name])
    return Ground(home=home, contract=parse_contract(text), shards=found(home, path, files))


def contract_text(base: str, terms: Terms, model: str) -> str:
    """A federation file with the task and the fields of `base`, and the terms for the rest."""
    parts = re.split(r"(?m)^(?=\[)", base)
    kept = [p for p in parts if p.startswith("[") and re.split(r"[].]", p.strip("["))[0] in _KEPT]
    budget = f"epsilon = 50.0\nnoise_multiplier = {terms.noise_multiplier}\n"
    sigma = 1.0 if terms.private else 0.0
    return f"""\
format = 1

[federation]
name = "chaos"
min_holders = {terms.min_holders}
answer_seconds = 120.0
grace_seconds = {terms.grace_seconds}

[model]
{model}

[training]
rounds = {terms.rounds}
steps = {terms.steps}
sampling_rate = 0.2
average = 0.7
learning_rate = {{ lora = 0.1, head = 1.0, wide = 20.0 }}

[privacy]
{budget if terms.private else ""}delta = 1e-5
size_classes = {{ small = 500, medium = 1500, large = 3000, huge = 6000 }}

[evaluation]
every = 5
noise_multiplier = {sigma}

{"".join(kept)}"""


def small_bert(folder: Path) -> str:
    """Write a BERT of two narrow layers with public random weights; returns its SHA-256.

    Tensors have the packaged backbone's names, so that nothing but shapes is made up here.
    """
    folder.mkdir()
    packaged = fetch_minilm()
    for file in packaged.iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            shutil.copy(file, folder)
    config = json.loads((packaged / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config |= {"hidden_size": HIDDEN, "intermediate_size": _NARROWED[1536]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    draw = np.random.default_rng(0)
    tensors = {}
    with safe_open(packaged / "model.safetensors", "np") as opened:
        for name in sorted(opened.keys()):
            layer = re.search(r"layer\.(\d+)\.", name)
            if "pooler" in name or "position_ids" in name or (layer and int(layer[1]) >= LAYERS):
                continue
            shape = [_NARROWED.get(n, n) for n in opened.get_slice(name).get_shape()]
            if name.endswith("bias"):
                tensor = np.zeros(shape)
            elif "LayerNorm" in name:
                tensor = np.ones(shape)
            else:  # large enough that attention is not uniform
                tensor = 0.25 * draw.standard_normal(shape)
            tensors[name] = tensor.astype(np.float32)
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    return hashlib.sha256(weights.read_bytes()).hexdigest()
