import dataclasses

import numpy as np
import pytest

from credit_client.scoring.engine import Engine
from credit_client.scoring.reasons import (
    Attribution,
    adverse,
    attributions,
    scored_fields,
    words,
)
from credit_client.scoring.reference import engine_of, open_model, open_reference
from credit_client.shard import read_shard
from credit_common.contract import parse_contract
from credit_common.decision import Reason
from credit_common.errors import ContractError
from credit_common.release import open_release
from credit_common.text import reference_record

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.fixture
def scored(released, tmp_path, rows_of, write_rows):
    """An engine and records."""

    def make(model=None, users=30):
        folder, own, _ = released(model or {"layers": 2})
        path = write_rows(tmp_path / "shard.csv", rows_of(users))
        read = read_shard(path, own.contract, require_label=False)
        engine = open_reference(open_release(folder))
        return engine, [example.record for example in (*read.train, *read.holdout)]

    return make


def test_a_share_is_what_the_score_loses_with_the_field_at_the_reference(scored):
    engine, records = scored()
    told = attributions(engine, records)
    reference = reference_record(engine.contract)
    whole = engine.score(records)[:, 0]
    for name in ("age", "note", "home"):
        turned = [
            dataclasses.replace(r, values={**r.values, name: reference.values.get(name)})
            for r in records
        ]
        lost = whole - engine.score(turned)[:, 0]
        shares = [one.share for every in told for one in every if one.field == name]
        assert np.abs(lost - shares).max() < 1e-6
        assert np.abs(lost).max() > 1e-4


def test_events_are_one_field_and_the_reference_applicant_has_no_reasons(scored):
    engine, _ = scored()
    contract = engine.contract
    assert "orders" in scored_fields(contract)
    assert not [name for name in scored_fields(contract) if name.startswith("orders_")]
    assert not {"user", "sex", "at"} & set(scored_fields(contract))
    (told,) = attributions(engine, [reference_record(contract)])
    assert [one.share for one in told] == [0.0] * len(scored_fields(contract))
    assert adverse(told) == []


def test_rounding_is_no_reason():
    shares = {"real": 0.02, "rounding": 2.4e-7, "lowers": -0.5}
    told = [Attribution(field=name, share=share) for name, share in shares.items()]
    assert [one.field for one in adverse(told, 4)] == ["real"]


def test_a_field_that_is_as_the_reference_has_it_takes_no_row(scored):
    engine, records = scored()
    rows = []

    def forward(ids, mask, wide):
        rows.append(len(ids))
        return engine.forward(ids, mask, wide)

    counting = dataclasses.replace(engine, forward=forward)
    reference = reference_record(engine.contract)
    other = dataclasses.replace(reference, values={**reference.values, "age": 99.0})
    (told,) = attributions(counting, [other], filled=False)
    assert sum(rows) == 2  # its own, and without the age
    assert [one.field for one in told if one.share != 0.0] == ["age"]
    rows.clear()
    scores = engine.score(records)
    told = attributions(counting, records, scores, filled=False)
    assert 0 < sum(rows) <= len(records) * len(scored_fields(engine.contract))
    whole = attributions(engine, records)
    shares = [[[one.share for one in every] for every in each] for each in (told, whole)]
    assert np.abs(np.subtract(*shares)).max() < 1e-5


def test_shares_of_the_wide_part_add_up_to_the_score(scored):
    engine, records = scored({"train": ["wide"]})
    base = engine.score([reference_record(engine.contract)])[0, 0]
    sums = [sum(one.share for one in every) for every in attributions(engine, records)]
    assert np.abs(base + sums - engine.score(records)[:, 0]).max() < 1e-5


def test_repeated_calls_in_any_company_say_the_same(scored):
    engine, records = scored()
    once = attributions(engine, records)
    assert attributions(engine, records) == once
    assert attributions(engine, records[7:8]) == once[7:8]
    assert attributions(engine, records[::-1]) == once[::-1]


def test_removing_the_reasons_together_lowers_the_pd_more_than_removing_others(scored):
    """Shares are of one field at a time; here two go at once, text and wide part alike."""
    engine, records = scored(users=200)
    draw, named, other = np.random.default_rng(0), [], []
    whole = engine.score(records)[:, 0]
    reference = reference_record(engine.contract).values
    names = scored_fields(engine.contract)
    keys = {n: [k for k in records[0].values if k.startswith(n)] for n in names}
    for record, every, score in zip(records, attributions(engine, records), whole, strict=True):
        main = [one.field for one in adverse(every, 2)]
        rest = [name for name in names if name not in main]
        for moved, gone in ((named, main), (other, draw.choice(rest, len(main), replace=False))):
            at_reference = {key: reference.get(key) for name in gone for key in keys[name]}
            turned = dataclasses.replace(record, values={**record.values, **at_reference})
            moved.append(score - float(engine.score([turned], filled=False)[0, 0]))
    assert np.mean(named) > 0.05
    assert np.mean(named) > np.mean(other) + 0.1


def test_only_what_raises_the_pd_is_adverse_the_most_first(scored):
    engine, records = scored()
    for every in attributions(engine, records):
        shares = [one.share for one in adverse(every, 3)]
        assert shares == sorted((o.share for o in every if o.share > 0), reverse=True)[:3]


def test_words_are_the_contracts_or_the_fields_name(federation_file):
    said = {"en": "Income too low", "zh": "收入偏低"}
    contract = parse_contract(federation_file(reasons={"income": said}))
    assert contract.reasons == (("income", Reason(**said)),)
    assert words(contract, "income", "en") == "Income too low"
    assert words(contract, "income", "zh") == "收入偏低"
    assert words(contract, "late_fees", "en") == "Information on: late fees"
    assert "late fees" in words(contract, "late_fees", "zh")


def test_another_task_has_no_reasons(released):
    folder, _, _ = released(
        {"train": ["wide"]},
        {"kind": "regression", "positive": None, "negative": None, "range": [0.0, 1.0]},
    )
    engine = engine_of(open_model(open_release(folder)))
    with pytest.raises(ContractError, match="reasons are of a binary task"):
        attributions(engine, [reference_record(engine.contract)])
    assert isinstance(engine, Engine)
