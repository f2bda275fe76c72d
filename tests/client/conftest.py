import dataclasses
import hashlib

import pytest
import torch

from credit_common.contract import Contract
from credit_common.sections import Model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def variant(contract, federated, tiny_bert):
    """The contract with some keys of its parts changed, on the tiny BERT.

    With `edges="federated"` it is the one that asks for edges.
    """
    digest = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()

    def make(*, private=True, edges="explicit", **changes) -> Contract:
        own = {"model": {"backbone": str(tiny_bert), "backbone_sha256": digest}}
        base = federated if edges == "federated" else contract
        base = base if private else base.without_privacy()
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
def minilm_model(contract, model_for):
    """One layer of the pinned MiniLM."""
    assert contract.model == dataclasses.replace(Model(), rank=4)
    return model_for(contract)
