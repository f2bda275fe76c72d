from bisect import bisect_right

import pandas as pd
import pytest

from credit_common.contract import load_contract
from credit_simulations.data import contract_path, prepare
from credit_simulations.sources.gmsc import BANDS, holder_of

LATE = (
    "NumberOfTime30-59DaysPastDueNotWorse",
    "NumberOfTime60-89DaysPastDueNotWorse",
    "NumberOfTimes90DaysLate",
)


@pytest.fixture(scope="module")
def frame():
    return pd.read_parquet(prepare("gmsc"))


@pytest.mark.parametrize(
    ("age", "holder"),
    [
        (0, "age-under-25"),
        (24, "age-under-25"),
        (25, "age-25-29"),
        (29, "age-25-29"),
        (30, "age-30-34"),
        (64, "age-60-64"),
        (65, "age-65-and-over"),
        (109, "age-65-and-over"),
    ],
)
def test_holders_are_half_open_bands_of_age(age, holder):
    assert holder_of(age) == holder


@pytest.mark.slow
def test_every_band_has_borrowers_and_they_default_unalike(frame):
    sizes = frame["holder"].value_counts()
    assert set(sizes.index) == {f"age-{band}" for band in BANDS}
    assert len(BANDS) == 10
    assert sizes.min() == sizes["age-under-25"] == 2_075
    rates = frame.groupby("holder")["SeriousDlqin2yrs"].mean()
    assert rates["age-25-29"] > 0.12
    assert rates["age-65-and-over"] < 0.03


@pytest.mark.slow
def test_borrowers_with_the_same_row_stay_borrowers_of_their_own(frame):
    said = frame.columns.difference(["client_id", "id"]).tolist()
    assert frame.duplicated(said).sum() == 609
    assert frame["id"].tolist() == list(range(1, 150_001))
    assert frame["client_id"].iloc[-1] == "gmsc-150000"


@pytest.mark.slow
def test_missing_incomes_and_dependents_stay_missing(frame):
    missing = frame.isna().sum()
    assert missing[missing > 0].to_dict() == {"MonthlyIncome": 29_731, "NumberOfDependents": 3_924}


@pytest.mark.slow
def test_the_two_codes_among_the_counts_have_a_bin_without_a_count(frame):
    codes = frame[list(LATE)].isin([96, 98])
    assert codes.sum().tolist() == [269, 269, 269]
    assert codes.all(axis=1).sum() == 269  # always in all three
    fields = {f.name: f for f in load_contract(contract_path("gmsc")).fields}
    for name in LATE:
        edges = fields[name].edges
        most = frame.loc[~codes[name], name].max()
        assert most <= 17
        apart = {bisect_right(edges, code) for code in (96, 98)}
        assert apart == {len(edges)}
        assert bisect_right(edges, most) < len(edges)


@pytest.mark.slow
def test_debts_without_an_income_fall_into_the_bins_above_the_ratios(frame):
    edges = {f.name: f for f in load_contract(contract_path("gmsc")).fields}["DebtRatio"].edges
    assert 10 in edges
    without = frame["MonthlyIncome"].isna()
    assert (frame.loc[without, "DebtRatio"] >= 10).mean() > 0.85
    assert (frame.loc[~without, "DebtRatio"] >= 10).mean() < 0.02
