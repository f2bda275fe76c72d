import numpy as np
import pytest
import torch

from credit_client.training.examples import Examples
from credit_client.training.loop import score
from credit_client.training.shapes import MOST_ROWS, rows_of_reads, rows_of_texts
from credit_common.model import bucket_length
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
            most = rows_of_texts(length, "cpu") if layers > 1 else rows_of_reads(expected, "cpu")
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


def test_at_cls_is_the_frozen_bert(shop, variant, model_for):
    model, contract, records, examples, adapter = shop
    model.load_adapter(adapter)  # what is trained has no part in it
    kept = examples.at_cls(model)
    frozen = model_for(variant(model={"tokens": 40, "train": ("head", "wide")}))
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
