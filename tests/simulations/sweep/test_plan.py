"""Sweep files: what is refused, which trials there are, and what a trial's digest depends on."""

import dataclasses

import pytest

from credit_common.contract import parse_contract
from credit_common.errors import ContractError
from credit_simulations.sweep import plan
from credit_simulations.sweep.cli import PACKAGED
from credit_simulations.sweep.plan import (
    ARMS,
    OPEN_ARMS,
    PRIVATE_ARMS,
    Entry,
    Sweep,
    Trial,
    load_sweep,
)

SMALL = """
name = "small"
epsilons = [1, 8]
seeds = 2
arms = ["federated", "central_dp", "gbm"]
[[data]]
name = "german"
min_rows = 50
"""


def loaded(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return load_sweep(path)


def test_each_arm_has_its_own_epsilons(tmp_path):
    trials = loaded(tmp_path, SMALL).trials()
    found = [(t.arm, t.epsilon, t.seed) for t in trials]
    one_seed = [
        ("federated", 1.0),
        ("federated", 8.0),
        ("federated", None),
        ("central_dp", 1.0),
        ("central_dp", 8.0),
        ("gbm", None),
    ]
    assert found == [(*own, seed) for seed in (0, 1) for own in one_seed]


def test_epsilons_of_one_arm_and_no_trial_without_dp(tmp_path):
    text = SMALL.replace("[[data]]", "without_dp = false\n[epsilons_of]\nfederated = [3]\n[[data]]")
    found = {(t.arm, t.epsilon) for t in loaded(tmp_path, text).trials()}
    assert found == {("federated", 3.0), ("central_dp", 1.0), ("central_dp", 8.0), ("gbm", None)}


def test_a_data_set_may_run_some_of_the_arms_alone(tmp_path):
    other = '[[data]]\nname = "taiwan"\narms = ["gbm", "tfidf"]\n'
    trials = loaded(tmp_path, SMALL + other).trials()
    arms = {name: {t.arm for t in trials if t.entry.name == name} for name in ("german", "taiwan")}
    assert arms == {"german": {"federated", "central_dp", "gbm"}, "taiwan": {"gbm"}}


def test_folds_stand_in_the_place_of_seeds(tmp_path):
    trials = loaded(tmp_path, SMALL.replace("seeds = 2", "seeds = 2\nfolds = 5")).trials()
    assert {(t.seed, t.folds) for t in trials} == {(fold, 5) for fold in range(5)}


def test_every_arm_is_with_or_without_dp():
    assert sorted({*OPEN_ARMS, *PRIVATE_ARMS, "central_dp"}) == sorted(ARMS)


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("epsilons = [1, 8]", "epsilons = [0]", "epsilons = .*inside"),
        ("epsilons = [1, 8]", "epsilons = [8, 8]", "epsilons = .*each once"),
        ("seeds = 2", "seeds = 0", "seeds = 0: must be at least 1"),
        ("seeds = 2", "sedes = 2", "unknown key 'sedes'"),
        ('"gbm"', '"lgbm"', "arms = 'lgbm': must be one of federated"),
        ("min_rows = 50", 'arms = ["lgbm"]', "arms = 'lgbm': must be one of federated"),
        ("min_rows = 50", 'partition = "dirichlet"', "data.holders = 0: must be at least 2"),
        ("min_rows = 50", 'partition = "random"', "data.partition = 'random'"),
        ("min_rows = 50", "alpha = 0", "data.alpha = 0.0"),
        ('name = "small"', 'name = "a b"', "name = 'a b'"),
        ("[[data]]", "[date]", "data.* is missing"),
        ("seeds = 2", "seeds =", "not valid TOML"),
        ("seeds = 2", "folds = 1", "folds = 1: must be 0, or at least 2"),
    ],
)
def test_a_wrong_file_is_refused_by_key_value_and_bound(tmp_path, was, becomes, said):
    assert was in SMALL
    with pytest.raises(ContractError, match=f"sweep.toml.*{said}"):
        loaded(tmp_path, SMALL.replace(was, becomes))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ContractError, match=r"cannot read the sweep .*none\.toml"):
        load_sweep(tmp_path / "none.toml")


def test_the_same_data_set_twice_is_refused():
    for other in (Entry(name="german"), Entry(name="german", rows=500)):
        with pytest.raises(ContractError, match=r"data = \['german natural 0'.*told apart by name"):
            Sweep(name="x", data=(Entry(name="german"), other))


def test_contracts_are_looked_for_beside_the_sweep_file(tmp_path):
    sweep = loaded(tmp_path, SMALL + 'contract = "own.toml"\n')
    assert sweep.data[0].contract == str(tmp_path / "own.toml")


def test_a_digest_follows_all_that_a_result_depends_on(federation_file):
    contract = parse_contract(federation_file())
    other = dataclasses.replace(contract, model=dataclasses.replace(contract.model, rank=2))
    sweep = Sweep(name="x", data=(Entry(name="german"), Entry(name="german", holders=3)))
    digests = {t.digest(contract, "d" * 64) for t in sweep.trials()}
    assert len(digests) == len(sweep.trials())
    first = sweep.trials()[0]
    moved = dataclasses.replace(first, entry=dataclasses.replace(first.entry, contract="/a/b.toml"))
    assert moved.digest(contract, "d" * 64) in digests  # the contract counts, not where it lies
    assert first.digest(other, "d" * 64) not in digests
    assert first.digest(contract, "e" * 64) not in digests
    folded = dataclasses.replace(first, folds=5)
    assert folded.digest(contract, "d" * 64) not in digests


def test_a_revision_of_an_arm_leaves_the_others_as_they_are(federation_file, monkeypatch):
    contract = parse_contract(federation_file())

    def digests(entry):
        arms = ("logistic", "gbm")
        trials = [Trial(entry=entry, arm=arm, epsilon=None, seed=0) for arm in arms]
        return [trial.digest(contract, "d" * 64) for trial in trials]

    natural, drawn = Entry(name="german"), Entry(name="german", partition="iid", holders=3)
    before = digests(natural), digests(drawn)
    monkeypatch.setitem(plan.REVISIONS, "gbm", plan.DRAWN_REVISION + 1)
    logistic, gbm = digests(natural)
    assert logistic == before[0][0]
    assert gbm != before[0][1]
    monkeypatch.setattr(plan, "DRAWN_REVISION", plan.DRAWN_REVISION + 9)
    assert digests(natural) == [logistic, gbm]
    assert not set(digests(drawn)) & set(before[1])


def test_settings_at_an_epsilon_count_there_and_for_trained_arms_alone(tmp_path, federation_file):
    contract = parse_contract(federation_file())
    text = SMALL + "[[data.at]]\nepsilons = [1]\nrounds = 2\nlearning_rate = { wide = 3.0 }\n"
    plain, changed = loaded(tmp_path, SMALL).trials(), loaded(tmp_path, text).trials()
    at = changed[0].entry
    assert at.contract_at(contract, 1.0).training.rounds == 2
    assert at.contract_at(contract, 1.0).training.learning_rate.wide == 3.0
    assert at.contract_at(contract, 1.0).training.steps == contract.training.steps
    assert at.contract_at(contract, 8.0) == at.contract_at(contract, None) == contract
    for before, after in zip(plain, changed, strict=True):
        same = before.digest(contract, "d" * 64) == after.digest(contract, "d" * 64)
        assert same == (after.epsilon != 1.0)
    wrong = loaded(tmp_path, text.replace("rounds = 2", "rounds = 0"))
    with pytest.raises(ContractError, match=r"training\.rounds = 0"):
        wrong.trials()[0].digest(contract, "d" * 64)
    with pytest.raises(ContractError, match="unknown key 'epochs'"):
        loaded(tmp_path, text.replace("rounds = 2", "epochs = 2"))


@pytest.mark.parametrize("path", sorted(PACKAGED.glob("*.toml")), ids=lambda p: p.stem)
def test_packaged_sweeps_load(path):
    assert load_sweep(path).name == path.stem
