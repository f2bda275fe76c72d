import json
import time

import numpy as np
import pandas as pd
import pytest

from credit_client.shard import read_shard
from credit_common.contract import load_contract
from credit_common.errors import CreditError
from credit_common.metrics import auc_exact
from credit_common.record import make_record, parse_value
from credit_common.text import record_text, wide_features
from credit_simulations.data import contract_path, describe, prepare, write_parquet
from credit_simulations.partition import by_column, write_shards
from credit_simulations.simulated import shops
from credit_simulations.simulated.best import best_auc, expected_auc
from credit_simulations.simulated.shoppers import INTERCEPT, PARTS
from credit_simulations.simulated.shops import simulate_parts, simulate_shops, simulated_shops

SMALL = (7, 1000, 5)


@pytest.fixture(scope="module")
def small():
    return simulate_shops(*SMALL)


@pytest.fixture(scope="module")
def packaged():
    return simulated_shops()


@pytest.fixture(scope="module")
def contract():
    return load_contract(contract_path("simulated-shops"))


def moved(one, other):
    """Columns that differ between two frames of the same rows."""
    return {name for name in one.columns if not one[name].equals(other[name])}


def records(contract, frame):
    read = [f for f in contract.fields if f.kind not in ("identifier", "dropped")]
    return [
        make_record(contract, {f.name: parse_value(f, row[f.name]) for f in read}, row["default"])
        for row in frame.to_dict("records")
    ]


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(small, tmp_path):
    write_parquet(small, tmp_path / "one.parquet")
    write_parquet(simulate_shops(*SMALL), tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    other = simulate_shops(8, 1000, 5)
    assert len(other) == len(small)
    assert {"default", "true_pd", "purchases", "last_review"} <= moved(small, other)


def test_the_data_set_is_made_and_not_fetched(packaged, tmp_path, monkeypatch):
    monkeypatch.setenv("CREDIT_CACHE", str(tmp_path / "cache"))
    write_parquet(packaged, tmp_path / "again.parquet")
    assert prepare("simulated-shops").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert not (tmp_path / "cache" / "raw").exists()
    found = describe("simulated-shops")
    assert (found.rows, len(found.holders)) == (12_000, 10)
    assert 0.10 < found.event_rate < 0.14


def test_everything_is_named_as_simulated(packaged, contract):
    assert packaged["client_id"].str.startswith("simulated-").all()
    assert packaged["holder"].str.startswith("simulated-shop-").all()
    assert contract.federation.name.startswith("simulated-")
    assert "SIMULATED" in contract.federation.description


def test_merchants_are_skewed_in_size_default_rate_and_departments(packaged):
    by = packaged.groupby("holder")
    sizes, risks = by.size(), by["true_pd"].mean()
    assert sizes.max() > 2 * sizes.min()
    assert sizes.min() >= 250
    assert risks.max() > 1.5 * risks.min()
    groceries = by["main_department"].agg(lambda names: (names == "grocery").mean())
    assert groceries.max() - groceries.min() > 0.2


def test_a_shared_user_is_one_person_with_one_default(packaged):
    by = packaged.groupby("client_id")
    assert by.size().value_counts().to_dict() == {1: 8500, 2: 1000, 3: 500}
    assert not packaged.duplicated(["client_id", "holder"]).any()
    for name in ("default", "true_pd", "age_band", "sex"):
        assert (by[name].nunique() == 1).all()
    shared = packaged[packaged["client_id"].map(by.size()) > 1]
    others = shared.groupby("client_id")[["purchases", "applied_at"]].nunique()
    assert (others.mean() > 1.9).all()  # histories are each merchant's own


def test_labels_leak_into_no_other_column(small, monkeypatch):
    drawn = shops.draw_defaults
    permute = np.random.default_rng(0).permutation
    monkeypatch.setattr(shops, "draw_defaults", lambda seed, pd_: permute(drawn(seed, pd_)))
    permuted = simulate_shops(*SMALL)
    assert moved(small, permuted) == {"default"}
    leaky = [
        f.assign(night_share=f["night_share"] + 1e-6 * f["default"]) for f in (small, permuted)
    ]
    assert moved(*leaky) == {"default", "night_share"}  # the check can fail


def test_columns_are_what_the_histories_say(small):
    for row in small.head(300).to_dict("records"):
        bought, viewed = json.loads(row["purchases"]), json.loads(row["visits"])
        assert len(bought) == row["baskets_26w"]
        assert len(viewed) == row["sessions_8w"]
        assert len(json.loads(row["returns"])) <= len(bought)
        if bought:
            values = [event["value"] for event in bought]
            assert row["mean_basket"] == pytest.approx(np.mean(values), abs=0.006)
            assert row["largest_basket"] == max(values)
        if viewed:
            dwell = np.mean([event["value"] for event in viewed])
            assert row["mean_dwell_seconds"] == pytest.approx(dwell, abs=0.06)
        opened = pd.Timestamp(row["applied_at"]) - pd.Timedelta(days=row["account_age_days"] + 1)
        times = [pd.Timestamp(event["time"]) for event in bought + viewed]
        assert all(opened <= time < pd.Timestamp(row["applied_at"]) for time in times)


def test_the_contract_reads_every_row_and_declares_every_column(small, contract, tmp_path):
    assert set(small.columns) == {f.name for f in contract.fields} | {contract.task.label}
    rows = 0
    for path in write_shards(by_column(small, "holder"), tmp_path).values():
        shard = read_shard(path, contract)
        assert (shard.rejects, shard.duplicates, shard.ignored_columns) == ((), 0, ())
        for example in (*shard.train, *shard.holdout):
            assert not {"true_pd", "default", "holder"} & set(example.record.values)
        rows += shard.users
    assert rows == len(small)


def test_a_shared_user_is_held_out_at_all_merchants_or_at_none(small, contract, tmp_path):
    parts: dict[str, set[str]] = {}
    for path in write_shards(by_column(small, "holder"), tmp_path).values():
        shard = read_shard(path, contract)
        for part, examples in (("train", shard.train), ("holdout", shard.holdout)):
            for example in examples:
                parts.setdefault(example.key, set()).add(part)
    assert max(map(len, parts.values())) == 1


def test_vocabularies_cover_the_data(packaged, contract):
    for field in contract.fields:
        if field.kind in ("category", "protected"):
            assert set(packaged[field.name]) <= set(field.values), field.name
    assert set(packaged["default"].astype(str)) == {"0", "1"}


def test_numbers_lie_in_their_ranges_and_bins_are_used(packaged, contract):
    for field in contract.fields:
        if field.kind == "number":
            known = packaged[field.name].dropna()
            assert known.between(*field.range).all(), field.name
            shares = np.bincount(np.digitize(known, field.edges)) / len(known)
            assert len(shares) == field.bins, field.name
            assert shares.max() < 0.9, field.name


def test_parts_add_up_to_the_true_pd(small):
    parts = simulate_parts(*SMALL).set_index("client_id")
    logit = INTERCEPT + parts[list(PARTS)].sum(axis=1)
    pd_ = 1 / (1 + np.exp(-logit))
    assert np.allclose(pd_[small["client_id"]], small["true_pd"], atol=1e-12)


def test_each_kind_of_column_shows_its_own_part(packaged):
    parts = simulate_parts(shops.SEED, shops.USERS, shops.MERCHANTS).set_index("client_id")
    part = {name: parts.loc[packaged["client_id"], name].to_numpy() for name in PARTS}

    def shows(name, column):
        known = np.isfinite(column)
        return abs(np.corrcoef(part[name][known], column[known])[0, 1])

    numbers = packaged.select_dtypes("number").drop(columns=["default", "true_pd"])
    assert {"night_share", "linked_late_share", "mean_dwell_seconds"} <= set(numbers)
    for column in numbers:  # rows of shared users are not independent: some 10,000 are
        bound = 5.1 / np.sqrt(packaged[column].notna().sum() / 1.2)
        assert shows("text", packaged[column].to_numpy(float)) < bound, column
    assert shows("numbers", packaged["night_share"].to_numpy(float)) > 0.2
    assert shows("links", packaged["linked_late_share"].to_numpy(float)) > 0.1
    worried = packaged["last_review"].str.contains("next bill|reminder|borrowed|overdue|I owe")
    assert shows("text", worried.to_numpy(float)) > 0.3
    spent = [json.loads(text) for text in packaged["purchases"]]
    half = pd.to_datetime(packaged["applied_at"]) - pd.Timedelta(days=91)
    at = half.dt.strftime("%Y-%m-%dT%H:%M")
    newer = np.array(
        [np.mean([e["time"] > t for e in events]) if events else np.nan
         for events, t in zip(spent, at, strict=True)]
    )  # fmt: skip
    assert shows("events", newer) > 0.2


@pytest.mark.parametrize(("users", "merchants"), [(9, 3), (100, 0)])
def test_sizes_out_of_range_are_refused(users, merchants):
    with pytest.raises(CreditError, match=r"users = \d+, merchants = \d+: at least 10 and 1"):
        simulate_shops(0, users, merchants)


def test_the_smallest_simulation_has_every_column(contract):
    frame = simulate_shops(0, 10, 1)
    assert len(frame) == 10
    assert set(frame.columns) == {f.name for f in contract.fields} | {contract.task.label}


@pytest.mark.slow
def test_twelve_thousand_rows_take_less_than_twenty_seconds():
    start = time.process_time()
    assert len(simulated_shops()) == 12_000
    assert time.process_time() - start < 20


@pytest.mark.slow
def test_a_regression_is_below_the_best_and_text_brings_it_nearer(packaged, contract):
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    some = packaged.iloc[::2].reset_index(drop=True)
    made = records(contract, some)
    labels, pd_ = some["default"].to_numpy(), some["true_pd"].to_numpy()
    out = np.array([int(name[-1]) < 4 for name in some["client_id"]])  # the last digit: by user
    wide = csr_matrix(np.array([wide_features(contract, record) for record in made]))
    texts = [record_text(contract, record) for record in made]
    words = TfidfVectorizer(min_df=5, sublinear_tf=True).fit_transform(texts)

    def held_out(features, strength):
        model = LogisticRegression(C=strength, max_iter=500).fit(features[~out], labels[~out])
        return model.decision_function(features[out])

    def expected(score):
        """Against the PDs instead of the labels, which takes most of the chance away."""
        order = np.argsort(score)
        p = pd_[out][order]
        good = np.cumsum(1 - p) - (1 - p)
        return (p * good).sum() / (p.sum() * (1 - p).sum() - (p * (1 - p)).sum())

    best = expected_auc(pd_[out])
    alone = expected(held_out(wide, 0.3))
    together = expected(held_out(hstack([3 * wide, words]).tocsr(), 0.3))
    assert 0.78 < best < 0.85
    assert 0.66 < alone < best - 0.06
    assert alone + 0.01 < together < best - 0.03
    assert auc_exact(pd_[out], labels[out]) == pytest.approx(best, abs=0.05)


def test_the_packaged_set_has_the_best_auc_that_is_documented(packaged):
    assert expected_auc(packaged["true_pd"]) == pytest.approx(0.815, abs=0.01)
    assert best_auc(packaged) == pytest.approx(0.815, abs=0.03)
