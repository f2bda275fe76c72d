import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load, load_file, save_file

from credit_common.backbone import resolve_backbone
from credit_common.contract import parse_contract
from credit_common.errors import WireError
from credit_common.lora import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    factors,
    from_peft,
    peft_files,
    schema_name,
)
from credit_common.model import CreditModel

# peft asks transformers for a name that the latter is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
TEXTS = [
    "age 31 income 22",
    "a",
    "orders 12 orders 7 age 19 paid late twice, then on time; income unknown, who owns a home",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def every_factor(model, adapter):
    return {n: a for n, a in adapter.items() if n.startswith("lora.")} | model.fixed()


def written(model, adapter, folder):
    """The adapter's files, as a release writes them."""
    depth = model.bert.config.num_hidden_layers
    spec = model.contract.model
    for name, content in peft_files(spec, depth, "x/y", every_factor(model, adapter)).items():
        (folder / name).write_bytes(content)
    return folder


def plain_bert(model):
    """The backbone's BertModel, from transformers alone."""
    from transformers import BertModel

    return BertModel.from_pretrained(model.backbone.folder, add_pooling_layer=False).eval()


@torch.no_grad()
def cls_of(bert, model):
    """[CLS] of each text by itself, all tokens through all layers."""
    out = []
    for tokens in model.tokens(TEXTS):
        ids, mask = model.padded([tokens], len(tokens))
        out.append(bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0])
    return torch.cat(out)


@torch.no_grad()
def own_cls(model):
    tokens = model.tokens(TEXTS)
    ids, mask = model.padded(tokens, max(map(len, tokens)))
    return model.read(model.frozen(ids, mask), mask)


def assert_peft_reads_the_same(model, adapter, folder):
    from peft import PeftModel

    bert = plain_bert(model)
    untrained = cls_of(bert, model)
    model.load_adapter(adapter)
    opened = PeftModel.from_pretrained(bert, written(model, adapter, folder)).eval()
    theirs = cls_of(opened, model)
    assert (theirs - own_cls(model)).abs().max() < 1e-5
    assert (theirs - untrained).abs().max() > 1e-3  # the adapter took part
    return opened


@pytest.mark.parametrize("mode", ["fedavg", "ffa"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_peft_opens_the_files_and_reads_the_same_cls(
    federation_file, model_for, shaken, tmp_path, layers, mode
):
    text = federation_file(model={"layers": layers, "factors": mode})
    model = model_for(parse_contract(text))
    opened = assert_peft_reads_the_same(model, shaken(model), tmp_path)
    assert not any(p.requires_grad for p in opened.parameters())


@pytest.mark.parametrize("targets", [("query",), ("value",), ("value", "query")])
def test_any_projections_are_read_the_same(federation_file, model_for, shaken, tmp_path, targets):
    model = model_for(parse_contract(federation_file(model={"targets": targets, "rank": 3})))
    assert_peft_reads_the_same(model, shaken(model), tmp_path)


@pytest.mark.parametrize(("layers", "mode"), [(1, "ffa"), (2, "fedavg"), (3, "fedavg")])
def test_peft_reads_the_same_from_the_pinned_minilm(
    federation_file, model_for, shaken, tmp_path, layers, mode
):
    text = federation_file(pinned=True, model={"layers": layers, "factors": mode})
    model = model_for(parse_contract(text))
    assert_peft_reads_the_same(model, shaken(model, scale=0.2), tmp_path)


@pytest.mark.parametrize("mode", ["fedavg", "ffa"])
def test_the_files_are_those_that_peft_itself_would_write(
    federation_file, model_for, shaken, tmp_path, mode
):
    from peft import PeftModel

    text = federation_file(model={"layers": 2, "factors": mode})
    model = model_for(parse_contract(text))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    opened = PeftModel.from_pretrained(plain_bert(model), written(model, shaken(model), ours))
    opened.save_pretrained(theirs, save_embedding_layers=False)
    own, peft = load_file(ours / WEIGHTS_FILE), load_file(theirs / WEIGHTS_FILE)
    assert set(own) == set(peft)
    assert len(own) == 8
    assert all(np.array_equal(own[name], peft[name]) for name in own)
    config = json.loads((theirs / CONFIG_FILE).read_text())
    config["target_modules"].sort()
    for key, value in json.loads((ours / CONFIG_FILE).read_text()).items():
        if key != "base_model_name_or_path":
            assert config[key] == value, key


def test_the_files_do_not_depend_on_the_order_of_the_arrays(federation_file, model_for, shaken):
    model = model_for(parse_contract(federation_file(model={"layers": 2})))
    arrays = every_factor(model, shaken(model))
    turned = dict(reversed(arrays.items()))
    spec = model.contract.model
    assert peft_files(spec, 3, "x", arrays) == peft_files(spec, 3, "x", turned)


def test_what_is_written_is_read_back_by_the_schemas_names(federation_file, model_for, shaken):
    model = model_for(parse_contract(federation_file(model={"layers": 2})))
    arrays = every_factor(model, shaken(model))
    spec = model.contract.model
    read = from_peft(spec, load(peft_files(spec, 3, "x", arrays)[WEIGHTS_FILE]), "a file")
    assert set(read) == set(arrays)
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)


def test_the_contracts_rank_and_scale_are_those_of_the_model_and_of_the_file(
    federation_file, model_for, shaken
):
    model = model_for(parse_contract(federation_file(model={"rank": 5, "alpha": 3.0})))
    A, B, scale = factors(model.bert.encoder.layer[2].attention.self.query)
    assert (A.shape, B.shape, scale) == ((5, 32), (32, 5), 3.0 / 5)
    files = peft_files(model.contract.model, 3, "x", every_factor(model, shaken(model)))
    config = json.loads(files[CONFIG_FILE])
    assert (config["r"], config["lora_alpha"], config["layers_to_transform"]) == (5, 3.0, [2])


def test_only_lora_factors_have_a_schema_name(federation_file, model_for):
    model = model_for(parse_contract(federation_file(model={"layers": 3})))
    named = {name: schema_name(name) for name, _ in model.named_parameters()}
    short = [name for name in named.values() if name]
    assert sorted(short) == sorted(
        f"lora.{layer}.{target}.{factor}"
        for layer, target, factor in itertools.product(range(3), ("query", "value"), "AB")
    )
    assert all("lora_" in name for name, own in named.items() if own)
    assert named["head.weight"] is None


P = "base_model.model.encoder.layer.{}.attention.self.{}.lora_{}.weight"
WRONG = {
    "one factor is missing": lambda t: t.pop(P.format(2, "query", "A")),
    "something else is there": lambda t: t.update({"classifier.weight": np.zeros(1, np.float32)}),
    "a third layer": lambda t: t.update({P.format(0, "query", "A"): np.zeros(1, np.float32)}),
    "a gap": lambda t: [t.update({n.replace("r.1.", "r.0."): t.pop(n)}) for n in list(t)],
    "another projection": lambda t: [t.update({n.replace("query", "key"): t.pop(n)}) for n in [*t]],
    "nothing": lambda t: t.clear(),
    "a suffix": lambda t: [t.update({n + ".x": t.pop(n)}) for n in list(t)],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tensors_that_are_not_the_contracts_lora_are_refused(
    federation_file, model_for, shaken, wrong
):
    model = model_for(parse_contract(federation_file(model={"layers": 2})))
    spec = model.contract.model
    files = peft_files(spec, 3, "x", every_factor(model, shaken(model)))
    tensors = load(files[WEIGHTS_FILE])
    from_peft(spec, dict(tensors), "right")
    WRONG[wrong](tensors)
    with pytest.raises(WireError, match="some/file: must hold LoRA's A and B"):
        from_peft(spec, tensors, "some/file")


def test_a_peft_file_with_a_changed_factor_is_told_apart(
    federation_file, model_for, shaken, tmp_path
):
    """The comparison of [CLS] vectors above sees a single wrong factor."""
    from peft import PeftModel

    model = model_for(parse_contract(federation_file(model={"layers": 2})))
    adapter = shaken(model)
    model.load_adapter(adapter)
    file = written(model, adapter, tmp_path) / WEIGHTS_FILE
    tensors = load_file(file)
    tensors[P.format(1, "value", "A")] *= np.float32(1.2)
    save_file(tensors, file)
    opened = PeftModel.from_pretrained(plain_bert(model), tmp_path).eval()
    assert (cls_of(opened, model) - own_cls(model)).abs().max() > 1e-4


def test_fixed_factors_of_another_draw_are_loaded(federation_file, shaken):
    contract = parse_contract(federation_file(model={"factors": "ffa", "layers": 2}))
    model = CreditModel(contract, resolve_backbone(contract.model), precision="float32")
    adapter, drawn = shaken(model), model.fixed()
    assert len(drawn) == 4
    assert not set(drawn) & set(adapter)
    model.load_adapter(adapter)
    before = own_cls(model)
    other = {name: array[::-1] * np.float32(1.5) for name, array in drawn.items()}
    model.load_fixed(other)
    assert all(np.array_equal(array, other[name]) for name, array in model.fixed().items())
    assert (own_cls(model) - before).abs().max() > 1e-3
    model.load_fixed(drawn)
    assert torch.equal(own_cls(model), before)
    name = next(iter(drawn))
    for wrong in ({}, {**drawn, name: drawn[name].T}, {**drawn, name: drawn[name] * np.nan}):
        with pytest.raises(WireError, match="adapter array"):
            model.load_fixed(wrong)
    assert torch.equal(own_cls(model), before)


def test_where_a_trains_nothing_is_fixed(federation_file, model_for):
    model = model_for(parse_contract(federation_file()))
    assert model.fixed() == {}
    model.load_fixed({})


def test_names_and_files_need_neither_torch_nor_peft():
    code = (
        "import sys, credit_common.lora as lora; lora.schema_name('x');"
        "print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
