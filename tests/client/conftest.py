import dataclasses
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch

from credit_client.gate import Exit
from credit_client.identity import Identity, open_identity, request
from credit_client.ledger import Ledger
from credit_common import federation_pb2 as pb
from credit_common.bundle import Bundle
from credit_common.claim import Facts, schedule_epsilon
from credit_common.contract import Contract, parse_contract
from credit_common.privacy import mechanism_plan
from credit_common.protocol import hello
from credit_common.release import write_release
from credit_common.sections import Model
from credit_server.authority import create_authority
from credit_server.enrol import enrol


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


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory, contract_text):
    """Makes the identity of a holder that is enrolled and has spent nothing yet."""

    def make(name="shop", text=contract_text) -> Identity:
        folder = tmp_path_factory.mktemp("federation")
        contract = parse_contract(text)
        (folder / "coordinator").mkdir()
        authority = create_authority(folder / "coordinator", contract.federation.name)
        bundle = Bundle(
            federation=contract.federation.name,
            address="credit.example:8443",
            ca_pem=authority.ca_pem.decode(),
            contract_text=text,
        )
        csr = request(folder / "home", bundle, name, contract.privacy.size_classes[0][0])
        _, pem = enrol(folder / "coordinator", authority, contract, csr.read_bytes(), where="test")
        csr.with_suffix(".pem").write_bytes(pem)
        return open_identity(folder / "home")

    return make


@pytest.fixture(scope="session")
def answer():
    """Charges a holder's ledger for answers and lists them in its manifest, as a round does."""

    def make(identity, *kinds, budget=50.0):
        contract = identity.bundle.contract
        plan = mechanism_plan(contract, identity.subject.size_class)
        events = {
            "adapter": ("train", plan.round_event()),
            "histogram": ("holdout", plan.evaluation_event()),
            "last histogram": ("holdout", plan.evaluation_event(plan.evaluation_groups)),
        }
        with Ledger.open(identity.ledger_path, identity.witness) as ledger:
            ledger.bind_split(contract.split.salt, contract.split.holdout, contract.record.user)
            door = Exit(identity.manifest, ledger)
            door.greeting(hello(contract.digest))
            for round_, kind in enumerate(kinds, start=1):
                account, event = events[kind]
                kind = kind.removeprefix("last ")
                name = f"m{len(ledger.entries())}"
                payload = f"{kind} of {name}".encode()
                ledger.charge(
                    account,
                    event,
                    contract_digest=contract.digest,
                    message_id=name,
                    request_digest="ab" * 32,
                    reply=payload,
                    budget_epsilon=budget,
                    delta=plan.delta,
                )
                door.answer(pb.Reply(message_id=name, **{kind: payload}), round_)

    return make


@pytest.fixture(scope="session")
def write_small(model_for, shaken):
    """Writes a release of a contract's text after one round; returns its model and adapter."""

    def write(folder, text, seed=0, scale=0.3, edges=None):
        own = model_for(parse_contract(text))
        spent = schedule_epsilon(own.contract, 1) or (None, None)
        facts = Facts(
            rounds=1,
            holders=2,
            epsilon=spent[0],
            holdout_epsilon=spent[1],
            created=f"2025-01-02T03:04:{seed:02}Z",
        )
        adapter = shaken(own, seed, scale)
        write_release(folder, text, own, adapter, facts, edges)
        return own, adapter

    return write


@pytest.fixture
def released(tmp_path, federation_file, write_small):
    """A release of a contract with changes, its model, and its adapter."""

    def make(model=None, task=None, edges=None, **changes):
        asks = {"federated": edges is not None, **changes}
        text = federation_file(model=model or {}, task=task or {}, **asks)
        folder = tmp_path / "release"
        return folder, *write_small(folder, text, edges=edges)

    return make


WORDS = "paid late twice then bought shoes and a lamp on a rainy day for the new flat"


@pytest.fixture(scope="session")
def rows_of():
    """Rows of a merchant's file, one user each, without a label."""

    def make(n, seed=0):
        draw = np.random.default_rng(seed)
        return [
            {
                "user": f"u {i:05}",
                "age": f"{draw.uniform(18, 100):.1f}",
                "income": f"{draw.uniform(0, 100):.2f}",
                "tenure": str(draw.integers(0, 40)),
                "home": str(draw.choice(["P", "R"])),
                "job": str(draw.choice(["clerk", "driver"])),
                "note": " ".join(draw.choice(WORDS.split(), int(draw.integers(0, 30)))),
                "at": "2025-01-02",
                "orders": json.dumps(
                    [{"time": "2025-01-01", "value": float(draw.integers(1, 90))}]
                ),
                "sex": "f",
            }
            for i in range(n)
        ]

    return make


@pytest.fixture(scope="session")
def write_rows():
    """Writes a CSV of rows, with columns renamed."""

    def write(path, rows, **columns):
        pd.DataFrame(rows).rename(columns=columns).to_csv(path, index=False)
        return path

    return write
