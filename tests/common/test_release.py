import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from credit_common.backbone import resolve_backbone
from credit_common.claim import Facts, facts_to_json, schedule_epsilon
from credit_common.contract import parse_contract
from credit_common.errors import ContractError, CreditError, PrivacyError, TrustError, WireError
from credit_common.evaluation import read_released, rows_of
from credit_common.lora import CONFIG_FILE, WEIGHTS_FILE
from credit_common.model import CreditModel
from credit_common.release import (
    new_release_folder,
    open_release,
    release_scores,
    write_release,
)
from credit_common.text import wide_width

CLASSES = {"kind": "multiclass", "positive": None, "negative": None, "classes": ["a", "b", "c"]}
VALUE = {"kind": "regression", "positive": None, "negative": None, "range": [0.0, 50.0]}
EDGES = {"age": (25.0, 40.0, 60.0), "income": (1.0, 10.0, 50.0, 100.0)}
ALWAYS = {"README.md", "contract.toml", "head.safetensors", "privacy.json", "release.json"}
LORA = {CONFIG_FILE, WEIGHTS_FILE}
KINDS = [
    ({}, {}),
    ({"layers": 3, "text_scale": 2.5}, CLASSES),
    ({"layers": 1, "head_bias": False}, {}),
    ({"layers": 2, "factors": "ffa"}, VALUE),
    ({"train": ["lora", "head"]}, {}),
    ({"train": ["head", "wide"]}, CLASSES),
    ({"train": ["head"]}, {}),
    ({"train": ["wide"]}, VALUE),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def facts_for(contract, rounds=2, **changes):
    spent = schedule_epsilon(contract, rounds) or (None, None)
    counts = np.stack([np.linspace(9, 1, contract.evaluation.bins)] * 2) - 2
    told = {"rounds": rounds, "holders": 4, "evaluated": 3, "histogram": rows_of(counts)}
    told |= {"epsilon": spent[0], "holdout_epsilon": spent[1]}
    return Facts(**{**told, "created": "2025-01-02T03:04:05+00:00", **changes})


@pytest.fixture
def released(tmp_path, federation_file, model_for, shaken):
    """A release of a contract with changes: its folder, model and adapter."""

    def make(model=None, task=None, private=True, name="001", edges=None):
        asks = {"federated": edges is not None}
        text = federation_file(model=model or {}, task=task or {}, private=private, **asks)
        own = model_for(parse_contract(text))
        adapter = shaken(own)
        write_release(tmp_path / name, text, own, adapter, facts_for(own.contract), edges)
        return tmp_path / name, own, adapter

    return make


def reseal(folder, changes=None, **keys):
    """Change files and keys of release.json as somebody does who minds the digests."""
    plain = json.loads((folder / "release.json").read_text("utf-8")) | keys
    for name, content in (changes or {}).items():
        (folder / name).write_bytes(content)
        plain["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / "release.json").write_text(json.dumps(plain), "utf-8")


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(("model", "task"), KINDS)
def test_what_is_released_is_opened_again(released, model, task):
    folder, own, adapter = released(model, task)
    opened = open_release(folder)
    assert same(opened.adapter, adapter)
    assert list(opened.adapter) == sorted(opened.adapter)
    assert same(opened.fixed, own.fixed())
    assert opened.contract == own.contract
    assert opened.contract_text == (folder / "contract.toml").read_text("utf-8")
    assert repr(opened.facts) == repr(facts_for(own.contract))
    assert opened.digest == hashlib.sha256((folder / "release.json").read_bytes()).hexdigest()
    assert opened.backbone_sha256 == (own.backbone.sha256 if own.reads_text else None)
    lora = "lora" in own.contract.model.train
    assert {p.name for p in folder.iterdir()} == ALWAYS | (LORA if lora else set())
    own.load_adapter(own.initial_adapter())
    own.load_fixed(opened.fixed)
    own.load_adapter(opened.adapter)
    assert same(own.adapter(), adapter)


@pytest.mark.parametrize(("model", "task"), KINDS)
def test_the_documented_function_is_the_models_forward(released, records, model, task):
    folder, own, adapter = released(model, task)
    head = open_release(folder).head
    draw = np.random.default_rng(1)
    own.load_adapter(adapter)
    texts = [" ".join(f"{k} {v}" for k, v in r.values.items() if v) for r in records(9)]
    cls = hidden = mask = wide = None
    with torch.no_grad():
        if own.reads_text:
            tokens = own.tokens(texts)
            ids, mask = own.padded(tokens, max(map(len, tokens)))
            hidden = own.frozen(ids, mask)
            cls = own.read(hidden, mask).numpy()
        if "wide" in own.contract.model.train:
            wide = draw.uniform(-1, 1, (9, wide_width(own.contract))).astype(np.float32) / 5
        expected = own(hidden, mask, None if wide is None else torch.from_numpy(wide)).numpy()
    scores = release_scores(head, cls, wide)
    assert scores.dtype == np.float32
    assert scores.shape == expected.shape == (9, own.contract.task.outputs)
    assert np.abs(scores - expected).max() < 1e-5
    assert expected.std() > 0.01  # scores that differ, so that something was compared


def test_the_files_hold_what_they_are_said_to_hold(released):
    folder, own, adapter = released({"text_scale": 2.5, "factors": "ffa"})
    head = load_file(folder / "head.safetensors")
    trained = {name: array for name, array in adapter.items() if not name.startswith("lora.")}
    assert same({name: head[name] for name in trained}, trained)
    assert set(head) == {*trained, "reference", "text_scale", "offset"}
    assert head["text_scale"].tolist() == [2.5]
    assert head["offset"].tolist() == [np.float32(np.log(0.2 / 0.8))]
    assert np.array_equal(head["reference"], own.reference[0].numpy())
    assert len(load_file(folder / WEIGHTS_FILE)) == 4  # A too, though it does not train
    manifest = json.loads((folder / "release.json").read_text())
    facts = facts_for(own.contract)
    assert manifest["facts"]["histogram"] == [list(row) for row in facts.histogram]
    read = read_released(own.contract, np.array(facts.histogram), 3)
    assert manifest["figures"]["auc"] == pytest.approx(read["auc"].value, abs=1e-6)
    assert manifest["intervals"]["ks"] == pytest.approx([read["ks"].low, read["ks"].high], abs=1e-6)
    assert set(manifest["figures"]) == set(manifest["intervals"]) == set(read)
    assert json.loads((folder / "privacy.json").read_text())["private"] is True


def test_the_contract_stays_word_for_word(tmp_path, federation_file, model_for, shaken):
    text = "# Größe: 大小, by hand\n\n" + federation_file().replace("rounds = 3", "rounds   =  3")
    model = model_for(parse_contract(text))
    write_release(tmp_path / "r", text, model, shaken(model), facts_for(model.contract))
    assert (tmp_path / "r" / "contract.toml").read_bytes() == text.encode()
    assert open_release(tmp_path / "r").contract_text == text


def test_the_same_release_has_the_same_digest_and_another_adapter_another(
    tmp_path, federation_file, model_for, shaken
):
    text = federation_file()
    model = model_for(parse_contract(text))
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        model.load_adapter(shaken(model, seed=7 + number))  # what the model holds has no part
        adapter = shaken(model, seed=seed)
        write_release(tmp_path / str(number), text, model, adapter, facts_for(model.contract))
        digests.append(open_release(tmp_path / str(number)).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_release_without_privacy_says_so(released):
    folder, _, _ = released(private=False)
    said = json.loads((folder / "privacy.json").read_text())
    assert said["private"] is False
    assert said["epsilon"] is None
    assert "no privacy" in said["statement"]
    assert "There is no privacy" in (folder / "README.md").read_text()
    assert open_release(folder).facts.epsilon is None


def test_what_does_not_belong_together_is_not_released(
    tmp_path, federation_file, model_for, shaken
):
    text = federation_file()
    model = model_for(parse_contract(text))
    adapter, facts = shaken(model), facts_for(model.contract)
    folder = tmp_path / "releases" / "001"
    cases = [
        (TrustError, "another digest", (federation_file(model={"seed": 1}), adapter, facts)),
        (ContractError, "TOML", ("no contract", adapter, facts)),
        (WireError, "count", (text, {**adapter, "count": np.zeros(1, np.float32)}, facts)),
        (WireError, "head.bias", (text, {**adapter, "head.bias": np.zeros(2, np.float32)}, facts)),
        (PrivacyError, "epsilon", (text, adapter, facts_for(model.contract, epsilon=0.1))),
        (
            PrivacyError,
            "epsilon",
            (text, adapter, facts_for(parse_contract(federation_file(private=False)))),
        ),
    ]
    for error, match, (contract_text, arrays, told) in cases:
        with pytest.raises(error, match=match):
            write_release(folder, contract_text, model, arrays, told)
    assert list(tmp_path.iterdir()) == []
    write_release(folder, text, model, adapter, facts)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(WireError, match="001: exists already"):
        write_release(folder, text, model, shaken(model, seed=3), facts)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", sorted((ALWAYS | LORA) - {"release.json"}))
def test_any_changed_or_missing_file_is_told_by_name(released, name):
    folder, _, _ = released()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(TrustError, match=name):
        open_release(folder)
    (folder / name).unlink()
    with pytest.raises(WireError, match=f"{name}: is missing"):
        open_release(folder)


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


@pytest.mark.parametrize(
    "name", ["head.safetensors", WEIGHTS_FILE, "extra.pkl", "adapter_model.bin"]
)
def test_a_pickle_is_never_opened(released, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    folder, _, _ = released()
    payload = pickle.dumps(Bomb())
    reseal(folder, {name: payload})
    with pytest.raises(WireError, match=name):
        open_release(folder)
    assert not Path("exploded").exists()
    pickle.loads(payload)
    assert Path("exploded").exists()  # it would have gone off


def broken(folder, file, change):
    tensors = load_file(folder / file)
    change(tensors)
    reseal(folder, {file: save(tensors)})


A5 = "base_model.model.encoder.layer.2.attention.self.query.lora_A.weight"
HEADS = {
    "nan": lambda t: t["head.weight"].fill(np.nan),
    "infinite": lambda t: t["offset"].fill(np.inf),
    "double": lambda t: t.update({"head.bias": t["head.bias"].astype(np.float64)}),
    "flat": lambda t: t.update({"head.weight": t["head.weight"].ravel()}),
    "narrow": lambda t: t.update({"wide.weight": t["wide.weight"][:, :-1]}),
    "broadcast": lambda t: t.update({"reference": t["reference"][:1]}),
    "two offsets": lambda t: t.update({"offset": np.zeros(2, np.float32)}),
    "no reference": lambda t: t.pop("reference"),
    "no wide part": lambda t: t.pop("wide.weight"),
    "more": lambda t: t.update({"count": np.zeros(1, np.float32)}),
    "empty": lambda t: t.clear(),
}
FACTORS = {
    "nan": lambda t: t[A5].fill(np.nan),
    "integer": lambda t: t.update({A5: t[A5].astype(np.int32)}),
    "turned": lambda t: t.update({A5: t[A5].T.copy()}),
    "other rank": lambda t: t.update({A5: t[A5][:-1]}),
    "missing": lambda t: t.pop(A5),
    "more": lambda t: t.update({"head.weight": np.zeros(1, np.float32)}),
}


@pytest.mark.parametrize(
    ("file", "change"),
    [("head.safetensors", c) for c in HEADS.values()]
    + [(WEIGHTS_FILE, c) for c in FACTORS.values()],
    ids=[*(f"head {n}" for n in HEADS), *(f"lora {n}" for n in FACTORS)],
)
def test_arrays_that_are_not_the_contracts_are_refused(released, file, change):
    folder, _, _ = released()
    broken(folder, file, change)
    with pytest.raises(WireError, match=file):
        open_release(folder)


def test_another_contract_is_not_the_releases(released, federation_file):
    folder, own, _ = released()
    digest = own.contract.digest
    other = federation_file(training={"rounds": 4}).encode()
    reseal(folder, {"contract.toml": other})
    with pytest.raises(TrustError, match=r"contract\.toml: its digest"):
        open_release(folder)
    reseal(folder, {"contract.toml": federation_file().encode()}, federation="others")
    with pytest.raises(TrustError, match=r"contract\.toml: its federation"):
        open_release(folder)
    for content in (b"\xff\xfe", b"x = ", b"format = 1\n"):
        reseal(folder, {"contract.toml": content})
        with pytest.raises(WireError, match=r"contract\.toml"):
            open_release(folder)
    reseal(folder, {"contract.toml": federation_file().encode()}, federation="shop-credit")
    assert open_release(folder).contract.digest == digest


@pytest.mark.parametrize(
    "keys",
    [
        {"format": 2},
        {"format": None},
        {"backbone": None},
        {"backbone": "minilm-l6"},
        {"backbone": {"name": "x"}},
        {"backbone": {"name": "x", "sha256": 5}},
        {"facts": {}},
        {"facts": None},
        {"more": 1},
        {"files": None},
        {"figures": {}},
        {"figures": {"auc": 0.99}},
        {"figures": None},
        {"intervals": {"auc": [0.98, 0.99]}},
    ],
)
def test_a_malformed_manifest_is_refused(released, keys):
    folder, _, _ = released()
    reseal(folder, **keys)
    with pytest.raises(WireError, match=r"release\.json"):
        open_release(folder)


def test_a_figure_that_is_not_in_the_histogram_cannot_be_told(released):
    folder, _, _ = released()
    told = json.loads((folder / "release.json").read_text())
    for name in ("figures", "intervals"):
        reseal(folder, **{name: told[name] | {"fairness": told[name]["auc"]}})
        with pytest.raises(
            WireError, match=rf"release\.json: its {name} are not those of its hist"
        ):
            open_release(folder)
        reseal(folder, **{name: told[name]})
    open_release(folder)
    other = told["facts"] | {"evaluated": 4}  # more holders, more noise
    reseal(folder, facts=other)
    with pytest.raises(WireError, match="its intervals are not those"):
        open_release(folder)


@pytest.mark.parametrize("name", ["epsilon", "holdout_epsilon"])
def test_a_release_that_tells_less_epsilon_than_its_rounds_spent_is_not_opened(released, name):
    folder, own, _ = released()
    told = facts_to_json(facts_for(own.contract, rounds=3))
    assert told[name] > 0
    for share in (0.99, 0.5, 0.0):
        reseal(folder, facts=told | {name: told[name] * share})
        with pytest.raises(WireError, match=rf"release\.json: facts\.{name} = .*contract spend"):
            open_release(folder)
    for share in (0.9995, 1.5):  # another version of the accountant, or a looser bound
        reseal(folder, facts=told | {name: told[name] * share})
        assert vars(open_release(folder).facts)[name] == told[name] * share


def test_a_release_whose_facts_are_not_the_contracts_is_not_opened(released):
    folder, _, _ = released()
    told = json.loads((folder / "release.json").read_text())["facts"]
    for changes, match in (
        ({"rounds": 4}, r"facts\.rounds = 4: the contract has 3"),
        ({"epsilon": None, "holdout_epsilon": None}, "if and only if the contract has one"),
    ):
        reseal(folder, facts=told | changes)
        with pytest.raises(WireError, match=match):
            open_release(folder)


def test_a_histogram_of_other_bins_is_not_the_contracts(
    tmp_path, federation_file, model_for, shaken
):
    text = federation_file()
    model = model_for(parse_contract(text))
    facts = facts_for(model.contract, histogram=((1.0, 2.0), (3.0, 4.0)))
    with pytest.raises(WireError, match=r"facts\.histogram must have the contract's \d+ bins"):
        write_release(tmp_path / "r", text, model, shaken(model), facts)
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_of_the_manifest_is_an_error_of_ours_or_another_digest(released):
    folder, _, _ = released()
    path = folder / "release.json"
    right, digest = path.read_bytes(), open_release(folder).digest
    draw = np.random.default_rng(0)
    for place in draw.choice(len(right), 120, replace=False):
        content = bytearray(right)
        content[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(content)
        try:
            told = open_release(folder).digest
        except CreditError as error:
            told = str(error)
        assert told != digest
        assert "001" in told or len(told) == 64


def test_files_of_another_kind_of_contract_have_no_place(released):
    folder, _, _ = released({"train": ["head", "wide"]})
    reseal(folder, {CONFIG_FILE: b"{}"})
    with pytest.raises(WireError, match=f"{CONFIG_FILE}: is missing, or has no place"):
        open_release(folder)


def test_what_is_no_release_is_told(tmp_path):
    with pytest.raises(WireError, match=r"has no release\.json"):
        open_release(tmp_path)
    with pytest.raises(WireError, match="nowhere: cannot be opened"):
        open_release(tmp_path / "nowhere")


def test_the_next_folder_is_one_past_the_last(tmp_path):
    assert new_release_folder(tmp_path) == tmp_path / "releases" / "001"
    assert list(tmp_path.iterdir()) == []  # it is named, not made
    for name in ("001", "002", "007", ".009.draft", "x", "12", "1000.old", "010 copy"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    assert new_release_folder(tmp_path).name == "008"
    (tmp_path / "releases" / "999").mkdir()
    assert new_release_folder(tmp_path).name == "1000"
    (tmp_path / "releases" / "1000").mkdir()
    assert new_release_folder(tmp_path).name == "1001"


def test_a_release_is_opened_without_torch(released):
    folder, _, _ = released()
    code = (
        "import sys; from pathlib import Path; from credit_common.release import *;"
        f"r = open_release(Path({str(folder)!r})); print(len(r.adapter), r.digest);"
        "print(sorted({'torch', 'peft', 'transformers', 'flwr', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"7 {open_release(folder).digest}", "[]"]


def test_the_models_reference_is_its_own_whatever_it_has_learnt(released, federation_file, shaken):
    """Made from the contract before anything is loaded, so a model reopened has the same one."""
    folder, own, _ = released({"factors": "ffa", "layers": 2})
    again = CreditModel(own.contract, resolve_backbone(own.contract.model), precision="float32")
    again.load_fixed({name: array * np.float32(3) for name, array in own.fixed().items()})
    again.load_adapter(shaken(again, seed=5))
    opened = open_release(folder)
    assert np.abs(opened.head["reference"] - again.reference[0].numpy()).max() < 1e-6


def test_a_release_keeps_the_federations_edges(released):
    folder, own, adapter = released({"train": ["wide"]}, edges=EDGES)
    opened = open_release(folder)
    assert opened.edges == EDGES
    assert opened.contract == own.contract
    assert opened.contract.digest == own.contract.digest != opened.resolved.digest
    assert same(opened.adapter, adapter)
    assert {f.name: f.edges for f in opened.resolved.federated_fields} == EDGES
    written = load_file(folder / "head.safetensors")
    assert written["edges.income"].tolist() == list(EDGES["income"])
    card = (folder / "README.md").read_text("utf-8")
    assert "The edges of `age`, `income` are not in `contract.toml`" in card
    assert "with noise for their privacy before the first round" in card
    assert "statistics" in json.loads((folder / "privacy.json").read_text("utf-8"))


def test_a_release_without_federated_edges_says_nothing_of_them(released):
    folder, _, _ = released({"train": ["wide"]})
    opened = open_release(folder)
    assert opened.edges == {}
    assert opened.resolved is opened.contract
    assert "not in `contract.toml`" not in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"age": EDGES["age"]},
        {**EDGES, "age": (25.0, 40.0)},
        {**EDGES, "age": (60.0, 40.0, 25.0)},
        {**EDGES, "age": (25.0, 40.0, 101.0)},
    ],
)
def test_a_release_with_other_edges_than_the_contracts_is_not_written(released, wrong, tmp_path):
    with pytest.raises(ContractError, match="edges"):
        released({"train": ["wide"]}, edges=wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges.age": None},
        {"edges.tenure": np.array([2.0], np.float32)},
        {"edges.age": np.array([25, 40], np.float32)},
        {"edges.age": np.array([25, 40, 60], np.float64)},
        {"edges.age": np.array([25, 40, np.nan], np.float32)},
        {"edges.age": np.array([40, 25, 60], np.float32)},
        {"edges.age": np.array([25, 40, 101], np.float32)},
    ],
)
def test_a_release_whose_edges_were_changed_is_refused(released, wrong):
    folder, _, _ = released({"train": ["wide"]}, edges=EDGES)
    arrays = {**load_file(folder / "head.safetensors"), **wrong}
    kept = {name: array for name, array in arrays.items() if array is not None}
    reseal(folder, {"head.safetensors": save(kept)})
    with pytest.raises(WireError, match=r"head\.safetensors"):
        open_release(folder)
