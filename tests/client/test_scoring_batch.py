import csv
import dataclasses
import hashlib
import json
import re
import stat

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save

from credit_client.mapping import ShardMapping
from credit_client.scoring import batch, export, sink, stream
from credit_client.scoring.batch import score_file
from credit_client.scoring.engine import ROWS
from credit_client.scoring.reference import engine_of, open_model
from credit_client.scoring.runtime import open_export
from credit_client.shard import read_shard
from credit_client.training.examples import Examples
from credit_client.training.loop import score
from credit_common.errors import CreditError, ShardError, TrustError, WireError
from credit_common.lora import WEIGHTS_FILE
from credit_common.release import open_release, release_scores
from credit_common.text import record_text, wide_features

# peft asks transformers for a name that the latter is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
CLASSES = {"kind": "multiclass", "positive": None, "negative": None, "classes": ["a", "b", "c"]}
VALUE = {"kind": "regression", "positive": None, "negative": None, "range": [-50.0, 150.0]}


def read_scores(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(path, name):
    return np.array([float(line[name]) for line in read_scores(path)])


def records_of(shard, contract):
    """Records in the file's order."""
    read = read_shard(shard, contract, require_label=False)
    return [e.record for e in sorted((*read.train, *read.holdout), key=lambda e: e.row)]


def peft_scores(folder, contract, records):
    """What somebody else gets: transformers, peft, and the documented function, one by one."""
    from peft import PeftModel
    from transformers import AutoTokenizer, BertModel

    bert = BertModel.from_pretrained(contract.model.backbone, add_pooling_layer=False)
    bert = PeftModel.from_pretrained(bert, folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(contract.model.backbone)
    cls = []
    for record in records:
        text = record_text(contract, record)
        tokens = tokenizer(
            text, truncation=True, max_length=contract.model.tokens, return_tensors="pt"
        )
        with torch.no_grad():
            cls.append(bert(**tokens).last_hidden_state[:, 0].numpy())
    wide = np.stack([wide_features(contract, record) for record in records])
    return release_scores(load_file(folder / "head.safetensors"), np.concatenate(cls), wide)


@pytest.mark.parametrize(
    "model", [{}, {"layers": 3, "tokens": 24, "text_scale": 2.0}, {"layers": 2, "factors": "ffa"}]
)
def test_a_files_scores_are_those_of_the_release_opened_by_anybody(
    released, tmp_path, model, rows_of, write_rows
):
    folder, own, _ = released(model)
    shard = write_rows(tmp_path / "shard.csv", rows_of(ROWS + 9))
    summary = score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    theirs = peft_scores(folder, own.contract, records_of(shard, own.contract))[:, 0]
    logits = column(tmp_path / "out.csv", "logit")
    assert summary.scored == len(logits) == ROWS + 9
    assert np.abs(logits - theirs).max() < 1e-5
    assert theirs.std() > 0.05
    pds = column(tmp_path / "out.csv", "pd")
    assert np.abs(pds - 1 / (1 + np.exp(-theirs.astype(float)))).max() < 1e-5
    told = 600 + 50 / np.log(2) * (-theirs - np.log(19))
    assert np.abs(column(tmp_path / "out.csv", "points") - told).max() < 0.051


def test_the_scores_are_the_models_in_its_federation(released, tmp_path, rows_of, write_rows):
    """To 1e-5 of its forward pass; the half-precision cache of training is further away."""
    folder, own, adapter = released({"layers": 2})
    shard = write_rows(tmp_path / "shard.csv", rows_of(40))
    score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    records = records_of(shard, own.contract)
    examples = Examples(own, own.contract, records)
    own.load_adapter(adapter)
    exact = []
    for record in records:
        (tokens,) = own.tokens([record_text(own.contract, record)])
        ids, mask = own.padded([tokens], len(tokens))
        wide = torch.from_numpy(wide_features(own.contract, record))[None]
        with torch.no_grad():
            exact.append(float(own(own.frozen(ids, mask), mask, wide)))
    logits = column(tmp_path / "out.csv", "logit")
    assert np.abs(logits - exact).max() < 1e-5
    kept = score(own, examples, adapter)[:, 0]
    assert 1e-5 < np.abs(kept - exact).max() < 0.02


def test_a_release_with_federated_edges_scores_as_its_model_did(
    released, tmp_path, rows_of, write_rows
):
    edges = {"age": (25.0, 40.0, 60.0), "income": (1.0, 10.0, 50.0, 90.0)}
    folder, own, adapter = released(edges=edges)
    shard = write_rows(tmp_path / "shard.csv", rows_of(40))
    score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    records = records_of(shard, own.contract)
    resolved = own.contract.with_edges(edges)
    kept = score(own, Examples(own, own.contract, records).under(resolved), adapter)[:, 0]
    logits = column(tmp_path / "out.csv", "logit")
    assert np.abs(kept - logits).max() < 0.02  # the half-precision cache of training
    opened = open_release(folder)
    wide = np.stack([wide_features(opened.resolved, record) for record in records])
    without = release_scores({**opened.head, "wide.weight": 0 * adapter["wide.weight"]}, None, wide)
    share = release_scores(opened.head, None, wide) - without
    others = own.contract.with_edges({**edges, "age": (30.0, 50.0, 70.0)})
    moved = np.stack([wide_features(others, record) for record in records]) - wide
    assert np.abs(moved @ adapter["wide.weight"].T).max() > 0.05  # other edges would show
    assert share.shape == (40, 1)


def test_lines_follow_the_file_and_name_its_users(released, tmp_path, rows_of, write_rows):
    folder, own, _ = released({"train": ["wide"]})
    rows = rows_of(60)
    shard = write_rows(tmp_path / "shard.csv", rows)
    summary = score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    lines = read_scores(tmp_path / "out.csv")
    assert list(lines[0]) == ["row", "user", "pd", "logit", "points"]
    assert [line["row"] for line in lines] == [str(i) for i in range(1, 61)]
    assert [line["user"] for line in lines] == [row["user"] for row in rows]
    read = read_shard(shard, own.contract, require_label=False)
    assert min(len(read.train), len(read.holdout)) > 5  # both parts are scored
    assert (summary.rows, summary.scored, summary.rejected, summary.duplicates) == (60, 60, 0, 0)
    assert summary.out == tmp_path / "out.csv"
    assert summary.seconds > 0
    for line in lines:
        assert re.fullmatch(r"0\.\d{6}", line["pd"])
        assert re.fullmatch(r"-?\d+\.\d{6}", line["logit"])
        assert re.fullmatch(r"-?\d+\.\d", line["points"])


def in_int8(folder, out, monkeypatch):
    """The engine of an export in int8, checked on made-up outcomes."""
    release, draw = open_release(folder), np.random.default_rng(1)
    known = [
        dataclasses.replace(record, label=float(draw.random() < 0.3))
        for record in export.made_up(release.resolved, 240)
    ]
    monkeypatch.setattr(export, "AUC_CLOSE", 1.0)
    export.export(release, out, "int8", known)
    return open_export(release, out, threads=1)


@pytest.mark.parametrize("arm", ["torch", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_line_depends_on_its_own_record_alone(
    released, tmp_path, rows_of, write_rows, arm, monkeypatch
):
    folder, _, _ = released({"layers": 2})
    rows = rows_of(2 * ROWS + 5)
    whole = tmp_path / "whole.csv"
    engine = in_int8(folder, tmp_path / "int8", monkeypatch) if arm == "int8" else None
    options = {"device": "cpu", "engine": engine}
    score_file(folder, write_rows(tmp_path / "a.csv", rows), whole, **options)
    told = {line["user"]: line["logit"] for line in read_scores(whole)}
    assert len(set(told.values())) > ROWS
    for name, some in (("turned", rows[::-1]), ("few", rows[7:10]), ("one", rows[70:71])):
        out = tmp_path / f"{name}.out.csv"
        score_file(folder, write_rows(tmp_path / f"{name}.csv", some), out, **options)
        for line in read_scores(out):
            assert told[line["user"]] == line["logit"]


def test_several_rows_duplicates_and_rejects(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    rows = rows_of(6)
    rows[1] = {**rows[0]}  # an exact repetition
    rows[3] = {**rows[2], "age": "71", "at": "2025-03-01"}  # the same user, later
    rows[4] |= {"income": "not a number"}
    rows.append({**rows[5], "user": ""})
    shard = write_rows(tmp_path / "shard.csv", rows)
    summary = score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    lines = read_scores(tmp_path / "out.csv")
    assert [(line["row"], line["user"]) for line in lines] == [
        ("1", "u 00000"),
        ("4", "u 00002"),
        ("6", "u 00005"),
    ]
    assert (summary.rows, summary.scored, summary.rejected, summary.duplicates) == (7, 3, 2, 1)
    with (tmp_path / "out.rejects.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["row", "field", "reason"],
            ["5", "income", "not a number"],
            ["7", "user", "user id missing"],
        ]
    for name in ("out.csv", "out.rejects.csv"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_without_rejects_there_is_no_file_of_them_and_an_old_one_goes(
    released, tmp_path, rows_of, write_rows
):
    folder, _, _ = released({"train": ["wide"]})
    bad = [{**rows_of(1)[0], "income": "x"}, rows_of(2)[1]]
    shard, out = write_rows(tmp_path / "shard.csv", bad), tmp_path / "out"
    score_file(folder, shard, out, device="cpu")
    assert (tmp_path / "out.rejects.csv").exists()
    write_rows(shard, rows_of(2))
    score_file(folder, shard, out, device="cpu", overwrite=True)
    assert not (tmp_path / "out.rejects.csv").exists()
    assert len(read_scores(out)) == 2


def test_a_file_without_a_usable_row_gives_the_header_and_the_rejects(
    released, tmp_path, rows_of, write_rows
):
    folder, _, _ = released()
    shard = write_rows(tmp_path / "shard.csv", [{**rows_of(1)[0], "income": "x"}])
    summary = score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    assert (summary.scored, summary.rejected) == (0, 1)
    assert (tmp_path / "out.csv").read_text().splitlines() == ["row,user,pd,logit,points"]


@pytest.mark.parametrize("labels", [["1", "0", "", "maybe"], [None] * 4])
def test_no_label_is_needed_and_none_matters(released, tmp_path, labels, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    rows = rows_of(4)
    score_file(folder, write_rows(tmp_path / "a.csv", rows), tmp_path / "a.out", device="cpu")
    with_labels = [{**row, "defaulted": label} for row, label in zip(rows, labels, strict=True)]
    shard = write_rows(tmp_path / "b.csv", with_labels)
    score_file(folder, shard, tmp_path / "b.out", device="cpu")
    assert (tmp_path / "a.out").read_bytes() == (tmp_path / "b.out").read_bytes()


def test_ids_stand_as_they_do_in_the_file_under_the_contracts_name(
    released, tmp_path, rows_of, write_rows
):
    folder, _, _ = released({"train": ["wide"]})
    rows = rows_of(4)
    for row, user in zip(rows, ["007", ' a,"b" ', "大", "1e3"], strict=True):
        row["user"] = user
    shard = write_rows(tmp_path / "shard.csv", rows, user="KUNDE")
    mapping = ShardMapping(columns={"user": "KUNDE"})
    score_file(folder, shard, tmp_path / "out.csv", mapping=mapping, device="cpu")
    told = [line["user"] for line in read_scores(tmp_path / "out.csv")]
    assert told == ["007", ' a,"b" ', "大", "1e3"]


@pytest.mark.parametrize(("users", "told"), [([3, 12], ["3", "12"]), ([3.0, 12.0], ["3", "12"])])
def test_ids_of_typed_files_are_read_as_codes(released, tmp_path, users, told, rows_of):
    folder, _, _ = released({"train": ["wide"]})
    frame = pd.DataFrame(
        [{**row, "user": user} for row, user in zip(rows_of(2), users, strict=True)]
    )
    frame.to_parquet(tmp_path / "shard.parquet")
    score_file(folder, tmp_path / "shard.parquet", tmp_path / "out.csv", device="cpu")
    assert [line["user"] for line in read_scores(tmp_path / "out.csv")] == told


def test_classes_have_a_probability_each(released, tmp_path, rows_of, write_rows):
    folder, own, adapter = released({"layers": 2}, CLASSES)
    shard = write_rows(tmp_path / "shard.csv", rows_of(20))
    score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    lines = read_scores(tmp_path / "out.csv")
    assert list(lines[0]) == ["row", "user", "p_a", "p_b", "p_c"]
    shares = np.array([[float(line[f"p_{c}"]) for c in "abc"] for line in lines])
    assert np.abs(shares.sum(1) - 1).max() < 2e-6
    own.load_adapter(adapter)
    raw = engine_of(own).score(records_of(shard, own.contract)).astype(float)
    assert np.abs(shares - np.exp(raw) / np.exp(raw).sum(1, keepdims=True)).max() < 1e-5


def test_a_regression_is_told_in_its_own_unit(released, tmp_path, rows_of, write_rows):
    folder, own, adapter = released({}, VALUE)
    shard = write_rows(tmp_path / "shard.csv", rows_of(20))
    score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    assert list(read_scores(tmp_path / "out.csv")[0]) == ["row", "user", "value"]
    own.load_adapter(adapter)
    raw = engine_of(own).score(records_of(shard, own.contract))[:, 0]
    assert np.allclose(column(tmp_path / "out.csv", "value"), -50 + 200.0 * raw, atol=1e-3)


def test_the_limit_takes_the_first_records_of_the_file(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    shard = write_rows(tmp_path / "shard.csv", rows_of(30))
    score_file(folder, shard, tmp_path / "all.csv", device="cpu")
    summary = score_file(folder, shard, tmp_path / "ten.csv", device="cpu", limit=10)
    every = (tmp_path / "all.csv").read_text().splitlines()
    assert (tmp_path / "ten.csv").read_text().splitlines() == every[:11]
    assert (summary.rows, summary.scored) == (30, 10)
    for limit in (0, -3):
        with pytest.raises(ShardError, match=f"limit = {limit}"):
            score_file(folder, shard, tmp_path / "none.csv", device="cpu", limit=limit)


def test_progress_reaches_the_end(released, tmp_path, monkeypatch, rows_of, write_rows):
    folder, _, _ = released()
    monkeypatch.setattr(batch, "BLOCK", 50)
    shard = write_rows(tmp_path / "shard.csv", rows_of(ROWS + 40))
    seen = []
    out = tmp_path / "out.csv"
    score_file(folder, shard, out, device="cpu", on_progress=lambda *now: seen.append(now))
    assert [now[0] for now in seen] == sorted({now[0] for now in seen})
    assert {now[1] for now in seen} == {ROWS + 40}
    assert seen[-1] == (ROWS + 40, ROWS + 40)
    monkeypatch.setattr(batch, "BLOCK", 8192)
    score_file(folder, shard, tmp_path / "one-block.csv", device="cpu")
    assert out.read_bytes() == (tmp_path / "one-block.csv").read_bytes()


def test_the_shard_is_never_written_over(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    shard = write_rows(
        tmp_path / "a.rejects.csv", [{**rows_of(1)[0], "income": "x"}, rows_of(2)[1]]
    )
    before = shard.read_bytes()
    soft, hard = tmp_path / "soft.csv", tmp_path / "hard.csv"
    soft.symlink_to(shard)
    hard.hardlink_to(shard)
    for out in (shard, soft, hard, tmp_path / "release" / ".." / "a.rejects.csv"):
        with pytest.raises(ShardError, match="is the shard itself"):
            score_file(folder, shard, out, device="cpu", overwrite=True)
    with pytest.raises(ShardError, match=r"a\.rejects\.csv: is the shard itself"):
        score_file(folder, shard, tmp_path / "a.csv", device="cpu", overwrite=True)
    assert shard.read_bytes() == before
    assert not (tmp_path / "a.csv").exists()


def test_an_existing_file_is_replaced_only_on_demand(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    shard = write_rows(tmp_path / "shard.csv", rows_of(3))
    for name in ("out.csv", "out.rejects.csv"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ShardError, match=f"{name}: exists already"):
            score_file(folder, shard, tmp_path / "out.csv", device="cpu")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "out.csv").write_text("mine")
    score_file(folder, shard, tmp_path / "out.csv", device="cpu", overwrite=True)
    assert len(read_scores(tmp_path / "out.csv")) == 3
    (tmp_path / "folder").mkdir()
    with pytest.raises(ShardError, match="folder: is not a file"):
        score_file(folder, shard, tmp_path / "folder", device="cpu", overwrite=True)


def test_a_place_that_cannot_take_the_scores_is_told_first(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    shard = write_rows(tmp_path / "shard.csv", rows_of(3))
    with pytest.raises(ShardError, match="its folder does not exist"):
        score_file(folder, shard, tmp_path / "no" / "out.csv", device="cpu")
    with pytest.raises(ShardError, match="inside the release"):
        score_file(folder, shard, folder / "out.csv", device="cpu")
    open_release(folder)


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_breaks_off_leaves_what_was_there(
    released, tmp_path, after, rows_of, write_rows
):
    folder, _, _ = released({"train": ["wide"]})
    shard = write_rows(tmp_path / "shard.csv", rows_of(ROWS + 3))
    out = tmp_path / "out.csv"
    out.write_text("of yesterday")
    before = sorted(p.name for p in tmp_path.iterdir())
    calls = []

    def stop(done, all_):
        calls.append(done)
        if len(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(folder, shard, out, device="cpu", overwrite=True, on_progress=stop)
    assert out.read_text() == "of yesterday"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_leaves_what_was_there(
    released, tmp_path, monkeypatch, rows_of, write_rows
):
    folder, _, _ = released({"train": ["wide"]})
    shard = write_rows(tmp_path / "shard.csv", rows_of(3))
    before = sorted(p.name for p in tmp_path.iterdir())

    class Full:
        def __init__(self, file):
            self.file = file

        def writerow(self, cells):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink.csv, "writer", Full)
    with pytest.raises(ShardError, match=r"scores to .*out\.csv: No space left"):
        score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_file_that_changes_while_it_is_read_is_refused(
    released, tmp_path, monkeypatch, rows_of, write_rows
):
    folder, _, _ = released({"train": ["wide"]})
    shard, real = write_rows(tmp_path / "shard.csv", rows_of(5)), stream.Stream.blocks
    for rows in (rows_of(5)[::-1], rows_of(3), rows_of(6)):

        def changed(self, size, rows=rows):
            write_rows(shard, rows)
            return real(self, size)

        monkeypatch.setattr(stream.Stream, "blocks", changed)
        with pytest.raises(ShardError, match="has changed while it was read") as caught:
            score_file(folder, shard, tmp_path / "out.csv", device="cpu")
        assert "u 0" not in str(caught.value)
        monkeypatch.setattr(stream.Stream, "blocks", real)
        write_rows(shard, rows_of(5))
    assert not (tmp_path / "out.csv").exists()


def reseal(folder, name, content):
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "release.json").read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / "release.json").write_text(json.dumps(manifest))


def test_a_release_with_a_changed_file_scores_nothing(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released()
    shard = write_rows(tmp_path / "shard.csv", rows_of(3))
    with (folder / "head.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TrustError, match=r"head\.safetensors"):
        score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    assert not (tmp_path / "out.csv").exists()


def test_a_release_of_another_backbone_scores_nothing(released, tmp_path):
    folder, _, _ = released()
    manifest = json.loads((folder / "release.json").read_text())
    manifest["backbone"]["sha256"] = "0" * 64
    (folder / "release.json").write_text(json.dumps(manifest))
    with pytest.raises(TrustError, match="backbone of another SHA-256"):
        open_model(open_release(folder))


def test_layers_that_the_backbone_does_not_train_are_refused(released):
    folder, _, _ = released()
    tensors = load_file(folder / WEIGHTS_FILE)
    moved = {name.replace("layer.2", "layer.1"): array for name, array in tensors.items()}
    reseal(folder, WEIGHTS_FILE, save(moved))
    with pytest.raises(WireError, match=r"lora\.1"):
        open_model(open_release(folder))


def test_the_releases_own_fixed_factors_are_used(released, tmp_path, rows_of, write_rows):
    """Under ffa A is drawn from a public seed; a later torch may draw another one."""
    folder, own, _ = released({"factors": "ffa", "layers": 2})
    shard = write_rows(tmp_path / "shard.csv", rows_of(12))
    score_file(folder, shard, tmp_path / "a.csv", device="cpu")
    tensors = load_file(folder / WEIGHTS_FILE)
    other = {
        n: a[::-1].copy() * np.float32(1.5) if "lora_A" in n else a for n, a in tensors.items()
    }
    reseal(folder, WEIGHTS_FILE, save(other))
    score_file(folder, shard, tmp_path / "b.csv", device="cpu")
    theirs = peft_scores(folder, own.contract, records_of(shard, own.contract))[:, 0]
    assert np.abs(column(tmp_path / "b.csv", "logit") - theirs).max() < 1e-5
    apart = column(tmp_path / "a.csv", "logit") - column(tmp_path / "b.csv", "logit")
    assert np.abs(apart).max() > 1e-3


def test_no_error_quotes_a_value_of_the_file(released, tmp_path, rows_of, write_rows):
    folder, _, _ = released({"train": ["wide"]})
    rows = [{**row, "user": "SENTINEL", "income": "SENTINEL"} for row in rows_of(2)]
    shard = write_rows(tmp_path / "shard.csv", rows)
    score_file(folder, shard, tmp_path / "out.csv", device="cpu")
    assert "SENTINEL" not in (tmp_path / "out.rejects.csv").read_text()
    no_income = [{k: v for k, v in row.items() if k != "income"} for row in rows]
    with pytest.raises(CreditError, match="'income' is missing") as caught:
        score_file(folder, write_rows(shard, no_income), tmp_path / "x.csv", device="cpu")
    assert "SENTINEL" not in str(caught.value)
