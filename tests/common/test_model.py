import dataclasses

import numpy as np
import pytest
import torch

from credit_common.backbone import resolve_backbone
from credit_common.errors import BackboneError, WireError
from credit_common.model import CreditModel, check_adapter
from credit_common.sections import Model
from credit_common.text import reference_texts, wide_width

TEXTS = [
    "age 31 income 22",
    "age 64 who rents works as clerk and has been a customer for many years",
    "a",
    "orders 12 orders 7 age 19 paid late twice, then on time; income unknown, who owns a home",
]
DEPTHS = (1, 2, 6)
WEIGHTS = (0.0, 1.0)
"""Of the mean beside [CLS]."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone():
    return resolve_backbone(Model())


@pytest.fixture(scope="module")
def variant(contract):
    def make(**changes):
        return dataclasses.replace(contract, model=dataclasses.replace(contract.model, **changes))

    return make


@pytest.fixture(scope="module")
def model_of(backbone, variant):
    made = {}

    def make(**changes):
        key = str(sorted(changes.items()))
        if key not in made:
            made[key] = CreditModel(variant(**changes), backbone, precision="float32")
        model = made[key]
        model.load_adapter(model.initial_adapter())
        return model

    return make


def shake(model, seed=0):
    draw = np.random.default_rng(seed)
    adapter = {
        name: (0.2 * draw.standard_normal(shape)).astype(np.float32)
        for name, shape in model.schema().items()
    }
    model.load_adapter(adapter)
    return adapter


def batch(model, extra=0, texts=TEXTS):
    tokens = model.tokens(list(texts))
    return model.padded(tokens, max(map(len, tokens)) + extra)


@torch.no_grad()
def plain_read(model, ids, mask):
    """What transformers and peft themselves compute, all tokens through all layers."""
    out = model.bert(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    means = [tokens[own].mean(0) for tokens, own in zip(out.hidden_states[-2], mask, strict=True)]
    weight = model.contract.model.mean_weight
    return out.last_hidden_state[:, 0] + weight * torch.stack(means)


@torch.no_grad()
def own_read(model, ids, mask):
    return model.read(model.frozen(ids, mask), mask)


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("targets", [("query", "value"), ("query",), ("value",)])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_read_is_what_the_plain_peft_model_gives(model_of, layers, targets, weight):
    model = model_of(layers=layers, targets=targets, mean_weight=weight)
    ids, mask = batch(model, extra=5)
    untrained = plain_read(model, ids, mask)
    shake(model)
    plain = plain_read(model, ids, mask)
    assert (plain - own_read(model, ids, mask)).abs().max() < 1e-5
    assert (plain - untrained).abs().max() > 1e-3  # LoRA took part, so that it was compared


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_result_does_not_depend_on_padding(model_of, layers, weight):
    model = model_of(layers=layers, mean_weight=weight)
    shake(model)
    ids, mask = batch(model)
    longer_ids, longer_mask = batch(model, extra=24)
    short, long = own_read(model, ids, mask), own_read(model, longer_ids, longer_mask)
    assert (short - long).abs().max() < 1e-5
    unmasked = own_read(model, longer_ids, torch.ones_like(longer_mask))
    assert (short - unmasked).abs().max() > 1e-3  # a model that reads padding is told apart


def test_taps_change_nothing_and_leave_nothing_behind(model_of):
    model = model_of(layers=2)
    shake(model)
    ids, mask = batch(model)
    hidden = model.frozen(ids, mask)
    taps = []
    assert torch.equal(model.read(hidden, mask, taps), model.read(hidden, mask))
    assert len(taps) == 4
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("factors", ["fedavg", "ffa"])
@pytest.mark.parametrize("layers", [1, 2])
def test_only_the_schema_is_trainable(model_of, layers, factors):
    model = model_of(layers=layers, factors=factors)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == len(model.schema())
    shake(model)
    ids, mask = batch(model)
    wide = torch.rand(len(TEXTS), wide_width(model.contract))
    hidden = model.frozen(ids, mask)
    assert not hidden.requires_grad
    model.zero_grad()
    model(hidden, mask, wide).sum().backward()
    moved = {id(p) for p in model.parameters() if p.grad is not None}
    model.zero_grad()
    assert moved == {id(p) for _, p in model.trained()}


def test_names_and_shapes_of_an_adapter(model_of, contract):
    wide = wide_width(contract)
    factors = {}
    for layer in (4, 5):
        factors |= {
            f"lora.{layer}.{target}.{factor}": (4, 384) if factor == "A" else (384, 4)
            for target in ("query", "value")
            for factor in "AB"
        }
    rest = {"head.bias": (1,), "head.weight": (1, 384), "wide.weight": (1, wide)}
    schema = model_of(layers=2).schema()
    assert schema == factors | rest
    assert list(schema) == sorted(schema)
    ffa = {name: shape for name, shape in factors.items() if not name.endswith("A")}
    assert model_of(layers=2, factors="ffa").schema() == ffa | rest
    query = {name: shape for name, shape in factors.items() if "5.query" in name}
    assert model_of(layers=1, targets=("query",)).schema() == query | rest


def test_ffa_keeps_a_at_its_public_initial_value(model_of):
    ffa, fedavg = model_of(factors="ffa"), model_of()
    start = fedavg.initial_adapter()
    frozen = {n: p for n, p in ffa.named_parameters() if "lora_A" in n}
    assert len(frozen) == 2
    for name, parameter in frozen.items():
        target = "query" if "query" in name else "value"
        assert np.array_equal(parameter.detach().numpy(), start[f"lora.5.{target}.A"])
        assert np.abs(parameter.detach().numpy()).max() > 0


WRONG = {
    "missing": lambda a: {k: v for k, v in a.items() if k != "head.bias"},
    "extra": lambda a: {**a, "count": np.zeros(1, np.float32)},
    "renamed": lambda a: {("head.b" if k == "head.bias" else k): v for k, v in a.items()},
    "broadcast": lambda a: {**a, "head.weight": np.zeros((1, 1), np.float32)},
    "flat": lambda a: {**a, "head.weight": a["head.weight"].ravel()},
    "double": lambda a: {**a, "head.weight": a["head.weight"].astype(np.float64)},
    "integer": lambda a: {**a, "head.weight": a["head.weight"].astype(np.int32)},
    "nan": lambda a: {**a, "head.weight": np.full_like(a["head.weight"], np.nan)},
    "infinite": lambda a: {**a, "wide.weight": np.full_like(a["wide.weight"], -np.inf)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_adapter_outside_the_schema_is_refused_and_changes_nothing(model_of, wrong):
    model = model_of()
    before = shake(model)
    with pytest.raises(WireError, match=r"head|count|wide"):
        model.load_adapter(WRONG[wrong](shake_like(before)))
    after = model.adapter()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def shake_like(adapter):
    return {name: array + np.float32(1) for name, array in adapter.items()}


def test_check_adapter_takes_what_the_schema_says(model_of):
    check_adapter(model_of().schema(), model_of().initial_adapter())


def test_the_initial_adapter_is_the_contracts_alone(backbone, variant):
    starts = []
    for torch_seed, seed in ((1, 0), (2, 0), (1, 7)):
        with torch.random.fork_rng():
            torch.manual_seed(torch_seed)
            starts.append(
                CreditModel(variant(seed=seed), backbone, precision="float32").initial_adapter()
            )
    first, other_torch, other_seed = starts
    assert all(np.array_equal(first[name], other_torch[name]) for name in first)
    for name in ("lora.5.query.A", "lora.5.value.A", "head.weight"):
        assert not np.array_equal(first[name], other_seed[name])
    assert not np.array_equal(first["lora.5.query.A"], first["lora.5.value.A"])
    for name in ("lora.5.query.B", "lora.5.value.B", "wide.weight", "head.bias"):
        assert not first[name].any()


def test_nothing_of_one_adapter_outlives_the_next(model_of):
    model = model_of(layers=2)
    ids, mask = batch(model)
    wide = torch.rand(len(TEXTS), wide_width(model.contract))
    one = shake(model, seed=1)
    first = model(model.frozen(ids, mask), mask, wide).detach()
    shake(model, seed=2)
    second = model(model.frozen(ids, mask), mask, wide).detach()
    model.load_adapter(one)
    assert torch.equal(model(model.frozen(ids, mask), mask, wide), first)
    assert not torch.allclose(first, second)


def test_adapters_are_copies(model_of):
    model = model_of()
    given = shake(model)
    kept = {name: array.copy() for name, array in given.items()}
    taken, start = model.adapter(), model.initial_adapter()
    for arrays in (given, taken, start):
        for array in arrays.values():
            array += 1
    now, fresh = model.adapter(), model.initial_adapter()
    assert all(np.array_equal(now[name], kept[name]) for name in kept)
    assert not any(np.array_equal(fresh[name], start[name]) for name in kept)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_without_lora_the_head_reads_the_frozen_bert(model_of, contract, weight):
    model = model_of(train=("head", "wide"), mean_weight=weight)
    assert model.schema() == {
        "head.bias": (1,),
        "head.weight": (1, 384),
        "wide.weight": (1, wide_width(contract)),
    }
    ids, mask = batch(model)
    hidden = model.frozen(ids, mask)
    assert hidden.shape == (len(TEXTS), 1, 384)
    assert torch.equal(model.read(hidden, mask), hidden[:, 0])
    assert (plain_read(model, ids, mask) - hidden[:, 0]).abs().max() < 1e-5


def test_the_wide_part_alone_needs_no_bert(contract, variant):
    model = CreditModel(variant(train=("wide",)), None)
    width = wide_width(contract)
    assert model.schema() == {"wide.weight": (1, width)}
    assert not hasattr(model, "bert")
    weights = np.linspace(-1, 1, width, dtype=np.float32)[None]
    model.load_adapter({"wide.weight": weights})
    wide = torch.rand(3, width)
    expected = wide.numpy() @ weights.T + np.log(0.2 / 0.8)
    assert np.allclose(model(None, None, wide).detach(), expected, atol=1e-5)


def test_the_text_side_alone_has_no_wide_weights(model_of):
    model = model_of(train=("lora", "head"))
    assert "wide.weight" not in model.schema()
    ids, mask = batch(model)
    assert model(model.frozen(ids, mask), mask, None).shape == (len(TEXTS), 1)


def test_the_reference_record_starts_at_the_base_rate(model_of, contract):
    model = model_of()
    tokens = model.tokens(reference_texts(contract))
    ids, mask = model.padded(tokens, len(tokens[0]))
    score = model(model.frozen(ids, mask), mask, None)
    assert torch.sigmoid(score).item() == pytest.approx(0.2, abs=1e-4)


def test_a_head_without_a_constant_is_the_same_but_for_it(model_of):
    one, other = model_of(), model_of(head_bias=False)
    assert set(one.schema()) - set(other.schema()) == {"head.bias"}
    ids, mask = batch(one)
    adapter = shake(one)
    constant = adapter.pop("head.bias")
    other.load_adapter(adapter)
    wide = torch.rand(len(TEXTS), wide_width(one.contract))
    with torch.no_grad():
        left, right = (m(m.frozen(ids, mask), mask, wide).numpy() for m in (one, other))
    assert np.abs(left - (right + constant)).max() < 1e-5
    assert np.abs(constant).max() > 1e-3


def test_examples_are_what_texts_are_measured_against(contract, backbone):
    told = ["my roof leaks", "", "a car for my work"]
    fields = tuple(
        dataclasses.replace(f, examples=tuple(told)) if f.name == "note" else f
        for f in contract.fields
    )
    known = dataclasses.replace(contract, fields=fields)
    (alone,) = reference_texts(contract)
    texts = reference_texts(known)
    # The note stands before the orders, and an empty one says nothing.
    start, end = alone.split(" orders", 1)
    assert texts == (f"{start} {told[0]} orders{end}", alone, f"{start} {told[2]} orders{end}")
    plain, model = (CreditModel(own, backbone, precision="float32") for own in (contract, known))
    read = torch.stack([own_read(model, *batch(model, texts=[text]))[0] for text in texts])
    assert torch.allclose(model.reference, read.mean(0)[None], atol=1e-5)
    assert (model.reference - plain.reference).norm() > 0.05 * plain.reference.norm()
    ids, mask = batch(model)
    with torch.no_grad():
        ours = model.text_features(model.frozen(ids, mask), mask)
    expected = (own_read(model, ids, mask) - model.reference) / model.reference.norm()
    assert torch.allclose(ours, expected, atol=1e-5)


def test_text_scale_scales_the_heads_input(model_of):
    one, four = model_of(), model_of(text_scale=4.0)
    ids, mask = batch(one)
    hidden = one.frozen(ids, mask)
    small, large = one.text_features(hidden, mask), four.text_features(hidden, mask)
    assert torch.allclose(4 * small, large, atol=1e-5)


def test_layers_that_wrap_their_output_in_a_tuple_are_read_too(model_of, monkeypatch):
    model = model_of(layers=2)
    shake(model)
    ids, mask = batch(model)
    bare = own_read(model, ids, mask)
    for layer in model.bert.encoder.layer:
        call = layer.forward

        def wrapped(*args, call=call, **kwargs):
            out = call(*args, **kwargs)
            return out if isinstance(out, tuple) else (out,)

        monkeypatch.setattr(layer, "forward", wrapped)
    assert torch.equal(own_read(model, ids, mask), bare)


def test_a_contract_that_does_not_fit_the_backbone_is_refused(backbone, variant):
    with pytest.raises(BackboneError, match="needs a backbone"):
        CreditModel(variant(), None)
    with pytest.raises(BackboneError, match=r"layers = 7.*has 6"):
        CreditModel(variant(layers=7), backbone)
