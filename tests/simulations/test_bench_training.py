"""The peers are what a user would write, the arms share what they should, the figures are right."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from credit_common.backbone import load_tokenizer, resolve_backbone, token_ids
from credit_common.contract import parse_contract
from credit_common.errors import FetchError
from credit_common.fields import CategoryField, NumberField
from credit_common.text import record_text
from credit_simulations.bench import training
from credit_simulations.bench.compared import QUICK
from credit_simulations.bench.engine import Engine, Schedule, at_layers
from credit_simulations.bench.recipes import Recipe
from credit_simulations.bench.texts import (
    TextSet,
    long_texts,
    spread,
    text_only,
    whole_record,
)
from credit_simulations.bench.timing import Times, ratio, slowdown

SCHEDULE = Schedule(users=24, batch=8, noise_multiplier=1.0)


@pytest.fixture(scope="module")
def texts(federation_file, records) -> TextSet:
    contract = parse_contract(federation_file())
    return TextSet(
        name="pakdd2009",
        contract=text_only(contract),
        packaged=contract,
        biggest=tuple(records(24)),
        train=tuple(records(48, seed=1)),
        holdout=tuple(records(40, seed=2)),
    )


@pytest.fixture
def recipe(texts, tiny_bert):
    """The recipe on the tiny BERT; without dropout, its gradients are no draw."""

    def make(mode, *, noise_multiplier=1.0, physical=None):
        said = [record_text(texts.contract, r) for r in texts.biggest]
        labels = np.asarray([r.label for r in texts.biggest], np.float32)
        made = Recipe(
            tiny_bert,
            texts.contract.model,
            said,
            labels,
            mode,
            batch=8,
            noise_multiplier=noise_multiplier,
            physical=physical,
        )
        return made, said, labels

    return make


def parameters(recipe) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in recipe.model.parameters() if p.requires_grad]


def times(*example_s: float, cache_s: float = 0.0) -> Times:
    return Times(example_s=example_s, cache_s=(cache_s,) * len(example_s), cache_mib=0.0)


def test_the_recipe_trains_the_parameters_of_the_engine_at_all_layers(recipe, texts):
    ours = Engine(at_layers(texts.contract, 3, SCHEDULE), texts.biggest).model.schema()
    recipe, _, _ = recipe("none")
    mine = sorted(shape.shape for shape in parameters(recipe))
    assert mine == sorted(tuple(shape) for shape in ours.values())


def test_the_recipe_keeps_the_checkpoints_dropout(recipe):
    drops = [m.p for m in recipe("hooks")[0].model.modules() if type(m).__name__ == "Dropout"]
    assert drops
    assert all(p == 0.1 for p in drops)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_an_empty_poisson_batch_is_a_step_of_noise_in_the_recipe(recipe, mode):
    import torch

    recipe, _, _ = recipe(mode)
    recipe.steps(1)
    before = parameters(recipe)
    nothing = torch.zeros(0, 12, dtype=torch.int64)
    recipe._step(nothing, nothing, torch.zeros(0))
    after = parameters(recipe)
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert recipe.steps(2) >= 0  # and it goes on


def test_batches_sorted_by_length_give_the_recipe_the_same_step(recipe):
    import torch

    steps = []
    for physical in (None, 3):
        made, said, labels = recipe("hooks", noise_multiplier=0.0, physical=physical)
        for module in made.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        seen = []
        made._optimizer.attach_step_hook(
            lambda opt, seen=seen: seen.extend(p.grad.clone() for p in opt.params)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on Opacus' hooks
            made._step(*made._padded(said), torch.from_numpy(labels))
        steps.append(seen)
    assert any(bool(g.abs().max() > 1e-4) for g in steps[0])
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_recipe_scores_in_the_order_of_its_texts(recipe):
    recipe, said, _ = recipe("none")
    whole = recipe.scores(said)
    np.testing.assert_allclose(whole[::-1], recipe.scores(said[::-1]), atol=1e-5)
    assert len(set(whole.tolist())) > 1


def test_the_engine_without_privacy_takes_the_batches_drawn_with_it(texts):
    engine = Engine(at_layers(texts.contract, 2, SCHEDULE), texts.biggest)
    engine.encode()
    seconds, drawn = engine.private_steps(3)
    assert seconds > 0
    assert [len(numbers) for numbers in drawn] == [24, 24, 24]
    assert len({numbers.tobytes() for numbers in drawn}) == 3
    engine.open_steps(drawn)  # asks for no more than was drawn, and for no noise
    with pytest.raises(StopIteration):
        engine._steps(engine._plan(engine.contract.without_privacy(), 2), _once(drawn), _once([]))


def _once(drawn):
    from credit_simulations.bench.engine import _Replayed

    return _Replayed(drawn[:1])


def test_the_cache_of_all_layers_is_the_size_of_one_layers_output(texts):
    engine = Engine(at_layers(texts.contract, 3, SCHEDULE), texts.biggest)
    engine.encode()
    said = [record_text(texts.contract, r) for r in texts.biggest]
    spec = texts.contract.model
    ids = token_ids(load_tokenizer(resolve_backbone(spec)), said, spec.tokens)
    least = sum(len(own) for own in ids) * engine.model.hidden * 2
    assert least <= engine.cache_mib() * 2**20 <= 2 * least


def test_a_ratio_counts_the_cache_and_takes_the_median_of_pairs():
    base, arm = times(1.0, 10.0, 2.0), times(0.1, 0.1, 0.1)
    assert ratio(base, arm, users=10, epochs=30) == pytest.approx(20.0)
    cached = replace(arm, cache_s=(30.0, 30.0, 30.0))  # as much as the epochs themselves
    assert ratio(base, cached, users=10, epochs=30) == pytest.approx(10.0)
    assert ratio(base, base, users=10, epochs=30) == 1.0
    pairs = times(2.0, 4.0, 9.0), times(1.0, 8.0, 9.0)  # medians alone would say 8 / 4
    assert slowdown(*pairs) == 1.0


def test_the_whole_record_says_every_number_and_category(contract, records):
    said = whole_record(contract)
    for record in records(5):
        text = record_text(said, record)
        for field in said.fields:
            value = record.values.get(field.name)
            if isinstance(field, NumberField | CategoryField) and value is not None:
                spelt = f"{value:.6g}" if isinstance(value, float) else value
                assert f"{field.name}: {spelt}" in text


def test_long_texts_fill_every_token(texts, tiny_bert):
    contract = long_texts(texts.contract)
    tokenizer = load_tokenizer(resolve_backbone(contract.model))
    said = [record_text(contract, r) for r in texts.biggest]
    assert {len(ids) for ids in token_ids(tokenizer, said, contract.model.tokens)} == {128}


def test_spread_takes_from_every_part(records):
    all_of = records(100)
    some = spread(all_of, 10)
    assert [all_of.index(r) // 10 for r in some] == list(range(10))
    assert spread(all_of, 200) == all_of


def test_every_arm_is_measured_and_judged(texts, monkeypatch):
    def load(name):
        if name == "lendingclub":
            raise FetchError("no loans here")
        return texts

    monkeypatch.setattr(training, "load_texts", load)
    sizes = replace(QUICK, batch=8, users=24, auc_users=40, auc_epochs=1, pooled_users=20, draws=1)
    measured = training.measure_training(
        ["pakdd2009", "lendingclub"], sizes, "a command", lambda what: None
    )
    assert "lendingclub is left out: no loans here." in measured.notes
    arms = {(row["arm"], row["k"]) for row in measured.rows}
    ours = {(name, k) for name in ("engine", "engine no dp") for k in (1, 2, 3)}
    assert arms == ours | {(f"recipe{kind}", None) for kind in ("", " ghost", " no dp")}
    by_arm = {(row["arm"], row["k"]): row for row in measured.rows}
    assert by_arm["recipe", None]["ratio"] == 1.0
    assert by_arm["recipe", None]["auc_se"] == 0.0
    for (name, k), row in by_arm.items():
        assert row["examples_per_s"] > 0
        assert (row["auc"] is None) == (name == "recipe ghost")
        assert (row["cache_s"] is None) == (k is None)
    assert -1 < measured.figures["auc_difference"] < 1  # negative where fewer layers are ahead
    assert measured.figures["ratio_k1"] == by_arm["engine", 1]["ratio"]
    assert len({tuple(row) for row in measured.rows}) == 1
    assert any("auc_difference" in note for note in measured.notes)


@pytest.mark.slow
def test_the_command_prints_one_object(tmp_path):
    code = "import sys; from credit_simulations.cli import main; sys.exit(main())"
    command = ["bench", "training", "--quick", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    told = json.loads(done.stdout)
    ratios = {"ratio_k1", "ratio_k2", "ratio_k3", "ratio_all_layers"}
    shares = {"dp_over_no_dp_min", "dp_over_no_dp_k1", "memory_ratio", "auc_difference"}
    assert ratios | shares <= set(told)
    assert all(told[name] > 0 for name in ratios)
    assert {row["texts"] for row in told["rows"]} == {"german"}
