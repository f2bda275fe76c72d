import hashlib
import json
import pickle
import time
from pathlib import Path

import pytest
import torch

from credit_common.backbone import load_bert, load_tokenizer, resolve_backbone, token_ids
from credit_common.errors import BackboneError
from credit_common.fetch import MINILM_SHA256
from credit_common.sections import Model

NONE = "0" * 64


@pytest.fixture(scope="module")
def minilm():
    return resolve_backbone(Model())


class Opened:
    """Leaves a trace where somebody unpickles it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_the_default_is_the_pinned_file(minilm):
    assert minilm.sha256 == MINILM_SHA256
    assert resolve_backbone(
        Model(backbone=str(minilm.folder), backbone_sha256=MINILM_SHA256)
    ).folder == (minilm.folder)


def test_weights_of_another_digest_are_refused_and_both_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(BackboneError) as refused:
        resolve_backbone(Model(backbone=str(tmp_path), backbone_sha256=NONE))
    found = hashlib.sha256(b"other weights").hexdigest()
    assert NONE in str(refused.value)
    assert found in str(refused.value)


def test_pickled_weights_are_refused_unopened(tmp_path):
    trace = tmp_path / "trace"
    payload = pickle.dumps(Opened(trace))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(payload)
    with pytest.raises(BackboneError, match="other formats are not opened"):
        resolve_backbone(Model(backbone=str(tmp_path), backbone_sha256=NONE))
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()  # the trap does spring where it is opened


def test_another_kind_of_model_is_refused(minilm, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(minilm.folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    model = Model(backbone=str(tmp_path), backbone_sha256=MINILM_SHA256)
    with pytest.raises(BackboneError, match="'gpt2', must be 'bert'"):
        resolve_backbone(model)


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(BackboneError, match="hub cannot be reached"):
        resolve_backbone(Model(backbone="nobody/no-such-bert", backbone_sha256=NONE))
    assert time.monotonic() - started < 20  # an answer, not a hang


def test_a_missing_folder_is_no_hub_id():
    with pytest.raises(BackboneError, match="neither a folder nor a hub id"):
        resolve_backbone(Model(backbone="/no/such/folder/here", backbone_sha256=NONE))


def test_a_loaded_bert_is_frozen_exact_and_without_dropout(minilm):
    bert = load_bert(minilm)
    dropouts = [m.p for m in bert.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    assert not any(dropouts)
    assert bert.config.attention_probs_dropout_prob == 0
    assert not bert.training
    assert not any(p.requires_grad for p in bert.parameters())
    assert {p.dtype for p in bert.parameters()} == {torch.float32}


def test_tokens_are_cut_but_keep_both_ends(minilm):
    tokenizer = load_tokenizer(minilm)
    short, long = token_ids(tokenizer, ["age 31", "age " * 50], 12)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert (short[0], short[-1], long[0], long[-1]) == (cls, sep, cls, sep)
    assert len(long) == 12 > len(short)
    assert token_ids(tokenizer, [], 12) == []
