"""One resident model and one cache of frozen outputs serve all holders and arms of a process."""

import dataclasses

import pytest

from credit_client.training.examples import Examples
from credit_common import model as models
from credit_common.backbone import resolve_backbone
from credit_common.contract import parse_contract
from credit_common.errors import CreditError
from credit_common.model import CreditModel
from credit_simulations import arms
from credit_simulations.arms import ARMS, Bench
from credit_simulations.federation import Party


@pytest.fixture
def bench(federation_file, model_for, records):
    contract = parse_contract(federation_file())
    contract = dataclasses.replace(
        contract, training=dataclasses.replace(contract.training, rounds=2, steps=1)
    )
    done = Bench(
        contract,
        device="cpu",
        seed=0,
        state=None,
        allow_no_privacy=False,
        stage=lambda words: None,
        note=lambda line: None,
        on_round=lambda *line: None,
    )
    done._backbone = resolve_backbone(contract.model)
    done._model = model_for(contract)
    done.parties = [
        Party(
            name=name,
            size_class="small",
            train=Examples(done._model, contract, records(30, seed=i)),
            holdout=Examples(done._model, contract, records(20, seed=100 + i)),
        )
        for i, name in enumerate("abc")
    ]
    with done:
        yield done


def test_no_arm_computes_frozen_outputs_again(bench, monkeypatch):
    through, loaded = [], []
    frozen, load = CreditModel.frozen, models.load_bert

    def counting(self, ids, mask):
        through.append(len(ids))
        return frozen(self, ids, mask)

    monkeypatch.setattr(CreditModel, "frozen", counting)
    monkeypatch.setattr(models, "load_bert", lambda own: loaded.append(own) or load(own))
    bench.federated(2)
    assert (through, loaded) == ([], [])
    for arm in ARMS[1:]:
        bench.arm(arm, 2)
    assert {row["arm"] for row in bench.rows} == set(ARMS)
    # frozen_bert alone makes a model of its own, which reads the contract's one reference record.
    assert len(loaded) == 1
    assert through == [1]


def test_what_cannot_be_fitted_is_said_before_anything_trains(monkeypatch):
    monkeypatch.setattr(arms, "find_spec", lambda name: None)
    with pytest.raises(CreditError, match=r"arm 'local_only' needs scikit-learn: pip install"):
        arms.check_arms(["federated", "local_only"])
    arms.check_arms(["federated", "wide_only"])
