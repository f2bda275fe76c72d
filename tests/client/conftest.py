import dataclasses
import hashlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.fetch import fetch_minilm
from credit_common.model import CreditModel
from credit_common.record import Record
from credit_common.sections import Model

NOTE = "paid late twice then bought shoes and a lamp on a rainy day for the new flat"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random three-layer BERT with the MiniLM tokenizer: deep enough to sweep the depth."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.25,  # large enough that attention is not uniform
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(5)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for file in fetch_minilm().iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def variant(contract, tiny_bert):
    """The contract with some keys of its parts changed, on the tiny BERT."""
    digest = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()

    def make(*, private=True, **changes) -> Contract:
        own = {"model": {"backbone": str(tiny_bert), "backbone_sha256": digest}}
        base = contract if private else contract.without_privacy()
        for part, keys in {**own, **changes}.items():
            keys = {**own.get(part, {}), **keys}
            base = dataclasses.replace(
                base, **{part: dataclasses.replace(getattr(base, part), **keys)}
            )
        return base

    return make


@pytest.fixture(scope="session")
def task():
    """Changes of the contract's task by kind."""
    return {
        "binary": {},
        "multiclass": {
            "kind": "multiclass",
            "positive": (),
            "negative": (),
            "classes": ("a", "b", "c"),
        },
        "regression": {
            "kind": "regression",
            "positive": (),
            "negative": (),
            "range": (0.0, 50.0),
        },
    }


@pytest.fixture(scope="session")
def model_for():
    """The model of a contract, made once."""
    made: dict[str, CreditModel] = {}

    def make(contract: Contract) -> CreditModel:
        if contract.digest not in made:
            backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
            made[contract.digest] = CreditModel(contract, backbone)
        return made[contract.digest]

    return make


@pytest.fixture(scope="session")
def minilm_model(contract, model_for):
    """One layer of the pinned MiniLM."""
    assert contract.model == dataclasses.replace(Model(), rank=4)
    return model_for(contract)


@pytest.fixture(scope="session")
def records():
    """Users with texts of mixed lengths; a young user with a low income defaults."""

    def make(n: int, kind: str = "binary", seed: int = 0) -> list[Record]:
        draw = np.random.default_rng(seed)
        out = []
        for _ in range(n):
            age, income = float(draw.uniform(18, 100)), float(draw.uniform(0, 100))
            words = draw.choice(NOTE.split(), int(draw.integers(0, 40)))
            values = {
                "age": age,
                "income": income,
                "home": str(draw.choice(["P", "R"])),
                "note": " ".join(words) or None,
                "orders_count_7": float(draw.integers(0, 9)),
            }
            label = {
                "binary": float(age < 40),
                "multiclass": float(np.digitize(age, [40, 60])),
                "regression": (age - 18) / 82,
            }[kind]
            out.append(Record(values=values, protected={}, label=label))
        return out

    return make


@pytest.fixture(scope="session")
def shaken():
    """An adapter of a model's schema with no zeros in it."""

    def make(model: CreditModel, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(seed)
        return {
            name: (scale * draw.standard_normal(shape)).astype(np.float32)
            for name, shape in model.schema().items()
        }

    return make
