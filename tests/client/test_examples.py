from functools import partial

import numpy as np
import pytest
import torch

from credit_client.cache import Cache
from credit_client.training.examples import Examples
from credit_client.training.hidden import Store
from credit_client.training.loop import score, train
from credit_client.training.randomness import SeededRandom
from credit_client.training.shapes import MOST_ROWS, rows_of_reads, rows_of_texts
from credit_common.padding import bucket_length
from credit_common.privacy import mechanism_plan
from credit_common.record import Record
from credit_common.text import record_text, wide_features


@pytest.fixture(scope="module")
def shop(variant, model_for, records, shaken):
    contract = variant(model={"layers": 2, "tokens": 40})
    model = model_for(contract)
    own = records(3 * MOST_ROWS + 7)
    return model, contract, own, Examples(model, contract, own), shaken(model)


def hidden_of(examples, row):
    """The kept output and mask of one example."""
    (batch,) = examples.batches(np.array([row]))
    return batch.hidden[0], batch.mask[0]


@torch.no_grad()
def plain_scores(model, contract, records):
    """One record at a time through the whole BERT, without cache or buckets."""
    out = []
    for record in records:
        (tokens,) = model.tokens([record_text(contract, record)])
        ids, mask = model.padded([tokens], len(tokens))
        cls = model.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0]
        features = (cls - model.reference) / model.reference.norm()
        wide = torch.from_numpy(wide_features(contract, record))[None]
        out.append(model.score(features * contract.model.text_scale, wide)[0].numpy())
    return np.stack(out)


def test_score_i_is_that_of_record_i(shop):
    model, contract, records, examples, adapter = shop
    ours = score(model, examples, adapter)
    plain = plain_scores(model, contract, records)
    assert ours.shape == plain.shape == (len(records), 1)
    assert np.abs(ours - plain).max() < 0.02  # the kept output is half precision
    assert plain.std() > 0.1
    order = np.random.default_rng(0).permutation(len(records))
    turned = Examples(model, contract, [records[i] for i in order])
    assert np.array_equal(score(model, turned, adapter), ours[order])
    assert np.array_equal(turned.labels, examples.labels[order])


def test_a_text_is_padded_by_its_own_length_alone(shop):
    model, contract, records, examples, _ = shop
    lengths = set()
    for row in range(0, len(records), 5):
        hidden, mask = hidden_of(examples, row)
        (tokens,) = model.tokens([record_text(contract, records[row])])
        assert len(mask) == len(hidden) == bucket_length(len(tokens), 40)
        assert mask.tolist() == [i < len(tokens) for i in range(len(mask))]
        lengths.add(len(mask))
    assert len(lengths) >= 3


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("n", [1, 2, MOST_ROWS, 150])
def test_the_rows_of_a_physical_batch_follow_from_its_length_alone(
    shop, variant, model_for, layers, n
):
    *_, own, examples, _ = shop
    contract = variant(model={"layers": layers, "tokens": 40})
    examples = Examples(model_for(contract), contract, own)
    rows = np.random.default_rng(n).choice(len(examples), n, replace=False)
    for expected in (10.0, 1000.0):
        seen = []
        for batch in examples.batches(rows, expected):
            length = batch.mask.shape[1]
            shape = partial(rows_of_texts, length) if layers > 1 else rows_of_reads
            most = shape("cpu", expected)
            shapes = {len(t) for t in (batch.hidden, batch.mask, batch.wide, batch.labels)}
            assert shapes == {most}
            assert layers > 1 or length == contract.model.tokens
            real = len(batch.rows)
            assert batch.weights.tolist() == [1.0] * real + [0.0] * (most - real)
            assert not batch.labels[real:].any()
            assert np.array_equal(batch.labels[:real], examples.labels[batch.rows])
            assert np.array_equal(batch.wide[:real], examples.wide[batch.rows])
            seen += batch.rows.tolist()
        assert sorted(seen) == sorted(rows.tolist())


def test_no_rows_make_no_batches(shop):
    *_, examples, _ = shop
    assert list(examples.batches(np.array([], np.intp))) == []


def test_what_is_kept_of_a_record_does_not_know_the_others(shop, records):
    model, contract, own, examples, _ = shop
    strangers = records(90, seed=9)
    for row in (0, 5, 11):
        hidden, mask = hidden_of(examples, row)
        for companions in ([], strangers, own[:row] + own[row + 1 :]):
            for place in (0, len(companions)):
                among = [*companions[:place], own[row], *companions[place:]]
                other, other_mask = hidden_of(Examples(model, contract, among), place)
                assert torch.equal(hidden, other)
                assert torch.equal(mask, other_mask)


@pytest.mark.parametrize("mean_weight", [0.0, 1.0])
def test_at_cls_is_the_frozen_bert(shop, variant, model_for, mean_weight):
    _, contract, records, examples, adapter = shop
    read = {"layers": 2, "tokens": 40, "mean_weight": mean_weight}
    model = model_for(variant(model=read))
    model.load_adapter(adapter)  # what is trained has no part in it
    kept = examples.at_cls(model)
    frozen = model_for(variant(model={**read, "train": ("head", "wide")}))
    fresh = Examples(frozen, frozen.contract, records)
    for row in range(0, len(records), 9):
        (mine,), (theirs,) = hidden_of(kept, row)[0], hidden_of(fresh, row)[0]
        assert (mine - theirs).abs().max() < 0.02
        (tokens,) = model.tokens([record_text(contract, records[row])])
        ids, mask = model.padded([tokens], len(tokens))
        assert (theirs - frozen.frozen(ids, mask)[0, 0]).abs().max() < 0.005
    start = frozen.initial_adapter()
    start["head.weight"] = start["head.weight"] * 20
    apart = np.abs(score(frozen, kept, start) - score(frozen, fresh, start))
    assert apart.max() < 0.05


def test_without_text_only_the_wide_features_are_left(shop, variant, model_for, shaken):
    _, _, records, examples, _ = shop
    wide_model = model_for(variant(model={"train": ("wide",)}))
    adapter = shaken(wide_model)
    fresh = Examples(wide_model, wide_model.contract, records)
    bare = examples.without_text()
    for batch in bare.batches(np.arange(70)):
        assert batch.hidden is None
        assert batch.mask is None
    expected = score(wide_model, fresh, adapter)
    assert np.array_equal(score(wide_model, bare, adapter), expected)
    assert len({round(float(x), 5) for x in expected[:, 0]}) > 20
    assert hidden_of(examples, 0)[0] is not None  # the original keeps its text


def test_a_record_without_a_label_can_be_scored(shop):
    model, contract, records, _, adapter = shop
    nameless = [Record(values=r.values, protected=r.protected, label=None) for r in records[:3]]
    known, unknown = Examples(model, contract, records[:3]), Examples(model, contract, nameless)
    assert unknown.labels.tolist() == [0.0, 0.0, 0.0]
    assert np.array_equal(score(model, known, adapter), score(model, unknown, adapter))


def test_no_records_make_no_examples(shop, variant, model_for):
    model, contract, *_, adapter = shop
    assert score(model, Examples(model, contract, []), adapter).shape == (0, 1)
    text_alone = model_for(variant(model={"train": ("lora", "head")}))
    with pytest.raises(ValueError, match="no wide features"):
        _ = Examples(text_alone, text_alone.contract, []).wide


KEPT = {"memory, nothing": 0, "memory, a third": 1 / 3, "file, nothing": 0, "file, a third": 1 / 3}
KEPT |= {"memory, all": 1, "file, all": None}


@pytest.fixture(scope="module", params=KEPT)
def elsewhere(request, shop, tmp_path_factory):
    """The shop's examples, kept in another place or in part, by another store."""
    model, contract, records, examples, _ = shop
    kind, share = request.param.split(",")[0], KEPT[request.param]
    whole = sum(
        batch.hidden[0].numel() * 2 * len(batch.rows)
        for batch in examples.batches(np.arange(len(examples)))
    )
    limit = None if share is None else int(share * whole)
    folder = tmp_path_factory.mktemp("home")
    with Store(Cache(kind=kind, folder=folder, limit=limit)) as store:
        kept = Examples(model, contract, records, store)
        rows = round((1 if share is None else share) * len(records))
        assert abs(store.kept - rows) < 0.1 * len(records)
        assert (store.kept == len(records)) == (share in (1, None))
        assert any(folder.iterdir()) == (kind == "file" and share != 0)
        yield kept


def test_what_is_kept_and_where_changes_no_bit(shop, elsewhere):
    model, _, _, examples, adapter = shop
    rows = np.random.default_rng(3).permutation(len(examples))[: 2 * MOST_ROWS + 9]
    for mine, theirs in zip(elsewhere.batches(rows), examples.batches(rows), strict=True):
        assert torch.equal(mine.hidden, theirs.hidden)
        assert torch.equal(mine.mask, theirs.mask)
    assert np.array_equal(score(model, elsewhere, adapter), score(model, examples, adapter))


def test_training_ends_in_the_same_bits_whatever_is_kept(shop, elsewhere, variant):
    model, _, _, examples, adapter = shop
    plan = mechanism_plan(variant(private=False, training={"sampling_rate": 0.3}), "small")
    ended = []
    for kept in (examples, elsewhere):
        source = SeededRandom(4, plan)
        ended.append(train(model, kept, plan, adapter, sampling=source, noise=source))
    assert all(np.array_equal(ended[0][name], ended[1][name]) for name in adapter)
    assert any((ended[0][name] != adapter[name]).any() for name in adapter if "lora" in name)


def test_copies_of_examples_are_the_same_whatever_is_kept(shop, elsewhere):
    model, contract, _, examples, _ = shop
    rows = np.arange(0, len(examples), 3)
    for copied in (lambda e: e.at_cls(model), lambda e: e.under(contract)):
        for mine, theirs in zip(
            copied(elsewhere).batches(rows), copied(examples).batches(rows), strict=True
        ):
            assert torch.equal(mine.hidden, theirs.hidden)
            assert torch.equal(mine.wide, theirs.wide)
    assert next(elsewhere.without_text().batches(rows)).hidden is None


def test_rows_past_the_limit_run_in_the_fixed_shapes_of_the_build(shop, monkeypatch):
    model, contract, records, *_ = shop
    shapes = []
    frozen = model.frozen
    monkeypatch.setattr(model, "frozen", lambda *inputs: shapes.append(inputs) or frozen(*inputs))
    examples = Examples(model, contract, records, Store(Cache(limit=0)))
    assert shapes == []  # nothing is kept, so nothing runs before it is used
    for n in (1, 5, MOST_ROWS):
        list(examples.batches(np.arange(n)))
    assert len(shapes) > 3
    assert all(len(ids) == rows_of_texts(ids.shape[1], "cpu") for ids, _ in shapes)


def test_one_layer_of_minilm_gives_the_same_bits_run_anew(minilm_model, records):
    contract, own = minilm_model.contract, records(3)
    rows = np.array([2, 0, 1])
    kept, late = (
        Examples(minilm_model, contract, own, Store(Cache(limit=limit))) for limit in (None, 0)
    )
    for mine, theirs in zip(late.batches(rows), kept.batches(rows), strict=True):
        assert torch.equal(mine.hidden, theirs.hidden)


def test_without_lora_what_is_kept_is_one_vector_a_row(variant, model_for, records, tmp_path):
    model = model_for(variant(model={"tokens": 40, "train": ("head", "wide")}))
    adapter = model.initial_adapter()
    scores = []
    for limit in (None, 7 * (model.hidden * 2 + 16), 0):
        with Store(Cache(kind="file", folder=tmp_path, limit=limit)) as store:
            examples = Examples(model, model.contract, records(20), store)
            assert store.kept == {None: 20, 0: 0}.get(limit, 7)
            scores.append(score(model, examples, adapter))
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


def test_a_subset_scores_as_it_does_among_all(shop):
    model, contract, records, examples, adapter = shop
    rows = np.random.default_rng(3).choice(len(examples), 50, replace=False)
    part = examples.subset(rows)
    assert len(part) == 50
    assert np.array_equal(part.labels, examples.labels[rows])
    assert np.array_equal(part.wide, examples.wide[rows])
    assert np.array_equal(score(model, part, adapter), score(model, examples, adapter)[rows])
    again = part.subset(np.array([7, 3]))
    assert np.array_equal(score(model, again, adapter), score(model, part, adapter)[[7, 3]])
    fresh = Examples(model, contract, [records[i] for i in rows])
    assert np.array_equal(score(model, fresh, adapter), score(model, part, adapter))
    cls = part.at_cls(model).cls_vectors()
    assert np.array_equal(cls, examples.at_cls(model).cls_vectors()[rows])


def test_frozen_output_handed_on_is_the_same_bits_and_nothing_runs(shop, monkeypatch):
    model, contract, records, examples, adapter = shop
    expected = score(model, examples, adapter)
    given, cls = examples.frozen(), examples.at_cls(model).frozen()
    monkeypatch.setattr(model, "frozen", lambda *inputs: pytest.fail("ran again"))
    other = Examples(model, contract, records, frozen=given)
    assert np.array_equal(score(model, other, adapter), expected)
    read = other.with_cls(cls).cls_vectors()
    assert np.array_equal(read, examples.at_cls(model).cls_vectors())
    assert other.cache_bytes == examples.cache_bytes


def test_without_wide_features_text_is_left(shop):
    _, _, _, examples, _ = shop
    (batch,) = examples.without_wide().batches(np.array([4]))
    assert batch.wide is None
    assert torch.equal(batch.hidden[0], hidden_of(examples, 4)[0])
    assert examples.wide.any()  # the original keeps them
