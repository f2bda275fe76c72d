import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from credit_common.card import base_model, code_block, model_card
from credit_common.claim import Facts, schedule_epsilon, told_epsilon
from credit_common.contract import parse_contract
from credit_common.evaluation import read_released, rows_of
from credit_common.fetch import fetch_minilm
from credit_common.record import Record
from credit_common.release import write_release
from credit_common.text import record_text, wide_features, wide_names

# peft asks transformers for a name that the latter is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
CLASSES = {"kind": "multiclass", "positive": None, "negative": None, "classes": ["a", "b", "c"]}
VALUE = {"kind": "regression", "positive": None, "negative": None, "range": [0.0, 50.0]}
SHA = "0" * 64


def some_counts(bins):
    return np.stack([np.linspace(400, 100, bins), np.linspace(10, 50, bins)])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def facts_for(contract, **changes):
    spent = schedule_epsilon(contract, 2) or (None, None)
    bins = contract.evaluation.bins
    told = {"rounds": 2, "holders": 4, "evaluated": 3, "histogram": rows_of(some_counts(bins))}
    told |= {"epsilon": spent[0], "holdout_epsilon": spent[1]}
    return Facts(**{**told, "created": "2025-01-02T03:04:05+00:00", **changes})


@pytest.fixture
def released(tmp_path, model_for, shaken):
    """A release of a contract's text, and the model with its adapter."""

    def make(text, edges=None):
        model = model_for(parse_contract(text))
        adapter = shaken(model)
        folder = tmp_path / "release"
        write_release(folder, text, model, adapter, facts_for(model.contract), edges)
        model.load_adapter(adapter)
        return folder, model

    return make


def python_of(folder):
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return block


@torch.no_grad()
def score_of(model, text, wide):
    hidden = mask = None
    if model.reads_text:
        tokens = model.tokens([text])
        ids, mask = model.padded(tokens, len(tokens[0]))
        hidden = model.frozen(ids, mask)
    wide = None if wide is None else torch.from_numpy(wide)
    return model(hidden, mask, wide).numpy()


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ({"layers": 2, "text_scale": 3.0}, {}),
        ({"layers": 1, "factors": "ffa"}, VALUE),
        ({"layers": 3, "train": ["lora", "head"], "tokens": 8}, CLASSES),
        ({"train": ["head", "wide"]}, {}),
        ({"layers": 2, "mean_weight": 2.5}, {}),
        ({"train": ["head"], "mean_weight": 2.5}, {}),
        ({"layers": 1, "head_bias": False}, {}),
        ({"train": ["wide"]}, CLASSES),
    ],
)
def test_the_cards_code_gives_the_models_score(
    released, federation_file, monkeypatch, capsys, model, task
):
    folder, own = released(federation_file(model=model, task=task))
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(python_of(folder), "card", "exec"), names)  # verbatim
    expected = score_of(own, names.get("text"), names.get("wide"))
    assert names["score"].shape == (1, own.contract.task.outputs)
    assert np.abs(names["score"] - expected).max() < 1e-5
    printed = [float(x) for x in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", capsys.readouterr().out)]
    assert np.allclose(printed, expected[0], atol=1e-5)


def test_the_cards_record_is_encoded_as_the_project_does(released, federation_file, monkeypatch):
    folder, own = released(federation_file(model={"train": ["head", "wide"]}))
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(python_of(folder), "card", "exec"), names)
    record = Record(
        values={
            "age": 25.0,
            "income": 10.0,
            "tenure": 1.0,
            "home": "none",
            "job": "driver",
            **{
                f"orders_{name}_{w}d": edge
                for name, edge in (("sum", 10.0), ("count", 1.0), ("mean", 5.0))
                for w in (7, 30)
            },
            "orders_recency": 3.0,
        },
        protected={},
        label=None,
    )
    assert set(record.values) == {field.name for field in own.contract.wide_fields}
    assert names["text"] == record_text(own.contract, record)
    assert np.abs(names["wide"][0] - wide_features(own.contract, record)).max() < 1e-8


def test_the_cards_example_is_under_the_federations_edges(released, federation_file, monkeypatch):
    text = federation_file(federated=True, model={"train": ["wide"]})
    edges = {"age": (25.0, 40.0, 60.0), "income": (0.5, 10.0, 50.0, 100.0)}
    folder, own = released(text, edges)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(python_of(folder), "card", "exec"), names)
    cells = np.flatnonzero(names["wide"][0])
    resolved = own.contract.with_edges(edges)
    said = [wide_names(resolved)[place] for place in cells]
    assert "age [25, 40)" in said
    assert "income [0.5, 10)" in said


def test_the_cards_code_runs_without_this_project_on_the_hubs_backbone(
    released, federation_file, tmp_path
):
    """In a process that cannot import the project, with the backbone in a Hub cache."""
    folder, own = released(federation_file(pinned=True))
    assert base_model(own.contract.model) == "sentence-transformers/all-MiniLM-L6-v2"
    cache = tmp_path / "hf" / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1" * 40)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / ("1" * 40)).symlink_to(fetch_minilm(), target_is_directory=True)
    before = (
        "import sys\nfor name in ('credit_common', 'flwr', 'opacus'): sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", before + python_of(folder) + "\nprint(text)\nprint(cells)"],
        cwd=folder,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    score, text, cells = done.stdout.splitlines()
    wide = np.zeros((1, own.wide.weight.shape[1]), np.float32)
    for place, value in json.loads(re.sub(r"(\d+):", r'"\1":', cells)).items():
        wide[0, int(place)] = value
    expected = score_of(own, text, wide)
    assert float(score.strip("[]")) == pytest.approx(float(expected[0, 0]), abs=1e-5)


def test_the_header_is_the_hubs(federation_file):
    from huggingface_hub import ModelCard

    def header(**changes):
        contract = parse_contract(federation_file(**changes))
        return ModelCard(model_card(contract, facts_for(contract), SHA)).data.to_dict()

    assert header(pinned=True) == {
        "license": "apache-2.0",
        "library_name": "peft",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "tags": ["credit-scoring", "federated-learning", "lora", "differential-privacy"],
    }
    assert header(model={"backbone": "no", "backbone_sha256": SHA}).get("base_model") is None
    hub = header(model={"backbone": "google/bert_uncased_L-2", "backbone_sha256": SHA})
    assert hub["base_model"] == "google/bert_uncased_L-2"
    wide = header(private=False, model={"train": ["wide"]})
    assert wide == {"license": "apache-2.0", "tags": ["credit-scoring", "federated-learning"]}
    folder = header()  # the tiny BERT's path is no hub id, and the header must not claim one
    assert "base_model" not in folder


def test_the_card_says_what_was_trained_on_what_and_how_private_it_is(federation_file):
    text = federation_file(
        pinned=True, federation={"name": "north-shops", "description": "Shops of the north"}
    )
    contract = parse_contract(text)
    facts = facts_for(contract)
    card = model_card(contract, facts, SHA)
    for said in (
        "# north-shops",
        "Shops of the north",
        "at least 4 holders",
        "2 rounds",
        "2025-01-02T03:04:05+00:00",
        "rank 4 on query and value of the top layer,",
        contract.digest,
        SHA,
        "hold-out users of 3 holders, with noise for their privacy",
        f"epsilon {told_epsilon(facts.epsilon)} for a user who was trained on",
        f"{told_epsilon(facts.holdout_epsilon)} for a hold-out user, at delta 1e-05",
    ):
        assert said in card, said
    none = model_card(contract, facts_for(contract, histogram=None, evaluated=0), SHA)
    assert "None were released" in none


def table_of(card, header):
    rows = card.split(header)[1].split("\n\n")[0].strip().splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_card_tells_each_figure_with_the_interval_of_its_noise(federation_file):
    contract = parse_contract(federation_file())
    counts = some_counts(contract.evaluation.bins)
    card = model_card(contract, facts_for(contract), SHA)
    read = read_released(contract, counts, 3)
    assert table_of(card, "| figure | value | interval |\n") == [
        [name, f"{figure.value:.4f}", f"{figure.low:.4f} to {figure.high:.4f}"]
        for name, figure in read.items()
    ]
    rows = table_of(card, "| probability said | users | observed | interval |\n")
    assert len(rows) == 10
    assert rows[0][0].startswith("0.0000 to ")
    assert rows[-1][0].endswith(" to 1.0000")
    assert sum(float(row[1]) for row in rows) == pytest.approx(counts.sum(), abs=6)
    for _, _, observed, ends in rows:
        low, high = map(float, ends.split(" to "))
        assert low <= float(observed) <= high


def test_figures_that_noise_swamps_are_not_made_up(federation_file):
    contract = parse_contract(federation_file())
    nobody = tuple((-1.0,) * contract.evaluation.bins for _ in range(2))
    card = model_card(contract, facts_for(contract, histogram=nobody), SHA)
    assert ["auc", "not available", "0.0000 to 1.0000"] in table_of(
        card, "| figure | value | interval |\n"
    )
    assert "nan" not in card


@pytest.mark.parametrize(("task", "names"), [(CLASSES, ["accuracy"]), (VALUE, ["mae"])])
def test_other_tasks_have_their_own_figures_and_no_calibration_table(federation_file, task, names):
    contract = parse_contract(federation_file(task=task))
    card = model_card(contract, facts_for(contract), SHA)
    assert [row[0] for row in table_of(card, "| figure | value | interval |\n")] == names
    assert "probability said" not in card


def test_without_a_budget_the_card_says_that_there_is_no_privacy(federation_file):
    contract = parse_contract(federation_file(private=False))
    card = model_card(contract, facts_for(contract), SHA)
    assert "There is no privacy" in card
    assert not re.search(r"[Ee]psilon|Differential privacy for|with noise", card)
    assert "differential-privacy" not in card


@pytest.mark.parametrize("task", [{}, CLASSES, VALUE])
def test_the_card_says_how_a_score_is_read(federation_file, task):
    contract = parse_contract(federation_file(task=task, scorecard={"pdo": 20.0}))
    card = model_card(contract, facts_for(contract), SHA)
    said = {
        "binary": "by the contract's scorecard: 600, 20, 19.",
        "multiclass": "softmax of the scores",
        "regression": "low + score * (high - low)",
    }
    assert [kind for kind, words in said.items() if words in card] == [contract.task.kind]


def test_names_with_quotes_and_backslashes_stay_strings_in_the_code(federation_file):
    odd = 'C:\\models\\"bert"\n# 大 😀'
    contract = parse_contract(federation_file(model={"backbone": odd, "backbone_sha256": SHA}))
    code = code_block(contract)
    line = next(line for line in code.splitlines() if line.startswith("backbone"))
    names: dict[str, object] = {}
    exec(line, names)
    assert names["backbone"] == odd
    compile(code, "card", "exec")
