import dataclasses
import json

import numpy as np
import onnx
import pytest

from credit_client.scoring import export as module
from credit_client.scoring.export import compare, export, made_up
from credit_client.scoring.reference import open_reference
from credit_client.scoring.runtime import MANIFEST, MODEL, open_export
from credit_common.errors import ShardError, TrustError, WireError
from credit_common.release import open_release

pytestmark = [
    pytest.mark.slow,  # torch.export of a BERT
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
CLASSES = {"kind": "multiclass", "positive": None, "negative": None, "classes": ["a", "b", "c"]}


def labelled(contract, count=240):
    """Records whose outcome a score can tell a little of."""
    draw = np.random.default_rng(1)
    return [
        dataclasses.replace(record, label=float(draw.random() < 0.3))
        for record in made_up(contract, count)
    ]


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ({"layers": 1}, {}),
        ({"layers": 3, "tokens": 24, "text_scale": 2.0}, {}),
        ({"train": ["lora", "head"], "factors": "ffa"}, {}),
        ({"train": ["wide"]}, {}),
        ({"layers": 2, "mean_weight": 2.5}, CLASSES),
        ({"layers": 1, "head_bias": False}, {}),
    ],
)
def test_an_export_scores_as_the_reference_does(released, tmp_path, model, task):
    folder, _, _ = released(model, task)
    release = open_release(folder)
    parity = export(release, tmp_path / "onnx", "float32")
    assert parity.users == 0
    assert parity.pd_difference <= 1e-5
    engine, reference = open_export(release, tmp_path / "onnx"), open_reference(release)
    records = made_up(release.resolved, 200)
    ours, theirs = engine.score(records), reference.score(records)
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-5
    assert theirs.std(0).min() > 1e-3
    assert engine.name == "onnx"


def test_rows_and_lengths_are_free_and_no_lora_is_left(released, tmp_path):
    folder, _, _ = released({"layers": 2})
    release = open_release(folder)
    export(release, tmp_path / "onnx", "float32")
    engine = open_export(release, tmp_path / "onnx", threads=1)
    records = made_up(release.resolved, 70)
    whole = engine.score(records)
    for some in ([0], [3, 5], list(range(69))):
        part = engine.score([records[i] for i in some], filled=False)
        assert np.abs(part - whole[some]).max() < 1e-5
    graph = onnx.load(tmp_path / "onnx" / MODEL).graph
    assert not [node.name for node in graph.node if "lora" in node.name.lower()]
    assert [i.name for i in graph.input] == ["ids", "mask", "wide"]


def test_int8_is_smaller_and_checked_by_auc(released, tmp_path, monkeypatch):
    folder, _, _ = released({"layers": 2})
    release = open_release(folder)
    records = labelled(release.resolved)
    monkeypatch.setattr(module, "AUC_CLOSE", 0.05)  # of a random model on random outcomes
    parity = export(release, tmp_path / "int8", "int8", records)
    assert parity.users == 240
    assert 0 < parity.pd_difference < 0.05
    assert parity.auc_difference < 0.05
    told = json.loads((tmp_path / "int8" / MANIFEST).read_text())
    assert (told["precision"], told["release"]) == ("int8", release.digest)
    assert told["parity"]["auc"] == parity.auc
    engine = open_export(release, tmp_path / "int8")
    assert engine.name == "int8"
    again = compare(engine, open_reference(release), records, labelled=True)
    assert again == parity
    monkeypatch.setattr(module, "AUC_CLOSE", -1.0)
    with pytest.raises(ShardError, match=r"in int8 the AUC of 240 users is .*; not written"):
        export(release, tmp_path / "other", "int8", records)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("count", [0, 199])
def test_int8_needs_users_to_be_checked_on(released, tmp_path, count):
    folder, _, _ = released({"train": ["wide"]})
    release = open_release(folder)
    with pytest.raises(ShardError, match=f"are known: {count} of them, .* at least 200, 5 with"):
        export(release, tmp_path / "int8", "int8", labelled(release.resolved)[:count])


def test_an_export_that_scores_otherwise_is_not_written(released, tmp_path, monkeypatch):
    folder, _, _ = released({"train": ["wide"]})
    real = module.forward_of

    def off(content):
        forward = real(content)
        return lambda *given: forward(*given) + np.float32(1e-3)

    monkeypatch.setattr(module, "forward_of", off)
    with pytest.raises(ShardError, match=r"up to 0.000\d+ from .* at most 1e-05: not written"):
        export(open_release(folder), tmp_path / "onnx", "float32")
    assert not (tmp_path / "onnx").exists()


def test_an_export_of_another_release_or_with_a_changed_byte_is_refused(released, tmp_path):
    folder, _, _ = released({"train": ["wide"]})
    release = open_release(folder)
    export(release, tmp_path / "onnx", "float32")
    with pytest.raises(TrustError, match="is an export of another release"):
        open_export(dataclasses.replace(release, digest="ab" * 32), tmp_path / "onnx")
    with pytest.raises(WireError, match="exists already"):
        export(release, tmp_path / "onnx", "float32")
    path = tmp_path / "onnx" / MODEL
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(TrustError, match="SHA-256 is not the one"):
        open_export(release, tmp_path / "onnx")
