import io
import json

import pandas as pd
import pytest

from credit_common.contract import load_contract
from credit_common.fetch import cache_folder
from credit_common.record import aggregate_events, parse_value
from credit_simulations.data import contract_path, prepare
from credit_simulations.sources.completejourney import AS_OF, SOURCE, holder_of

PRODUCTS = [(1, "National", "BANANAS"), (2, "Private", "EGGS"), (3, "National", None)]
OF_NOVEMBER = [  # household, store, basket, product, USD, discount, time
    (7, 300, 1, 1, 1.0, 0.0, "2017-03-01 10:00"),
    (7, 300, 1, 2, 2.0, 1.0, "2017-03-01 10:00"),
    (7, 300, 2, 1, 1.5, 0.0, "2017-03-01 19:00"),
    (7, 440, 3, 2, 0.1, 0.4, "2017-03-05 09:00"),
    (7, 440, 4, 1, 0.2, 0.0, "2017-11-30 23:59"),
    (7, 440, 4, 3, 9.0, 0.0, "2017-11-30 23:59"),
    (8, 31782, 5, 2, 4.0, 0.0, "2017-06-01 12:00"),
]
OF_DECEMBER = [
    (7, 31782, 6, 2, 5.0, 5.0, "2017-12-01 00:00"),
    (7, 31782, 7, 2, 5.0, 5.0, "2017-12-20 12:00"),
    (7, 31782, 8, 2, 5.0, 5.0, "2017-12-21 12:00"),
    (9, 300, 9, 1, 1.0, 0.0, "2017-12-24 12:00"),
]


def raw(*bought):
    items = ["household_id", "store_id", "basket_id", "product_id", "sales_value"]
    times = ["transaction_timestamp", "start_date", "redemption_date"]
    person = ["age", "income", "home_ownership", "marital_status", "household_size", "kids_count"]
    tables = {
        "transactions": (bought, [*items, "retail_disc", "transaction_timestamp"]),
        "products": (PRODUCTS, ["product_id", "brand", "product_type"]),
        "demographics": (
            [(8, "65+", "250K+", None, "Married", "2", "0")],
            ["household_id", *person],
        ),
        "campaigns": ([(1, 7), (2, 7), (1, 9)], ["campaign_id", "household_id"]),
        "campaign_descriptions": (
            [(1, "2017-11-30"), (2, "2017-12-01")],
            ["campaign_id", "start_date"],
        ),
        "coupon_redemptions": (
            [(7, "2017-11-30"), (7, "2017-12-02"), (8, "2017-01-01")],
            ["household_id", "redemption_date"],
        ),
    }
    files = {}
    for name, (rows, columns) in tables.items():
        frame = pd.DataFrame(rows, columns=columns)
        for column in frame.columns.intersection(times):
            frame[column] = pd.to_datetime(frame[column])
        out = io.BytesIO()
        frame.to_parquet(out)
        files[f"completejourney-{name}.parquet"] = out.getvalue()
    return files


@pytest.fixture(scope="module")
def frame():
    return pd.read_parquet(prepare("completejourney"))


@pytest.mark.parametrize(
    ("store", "holder"),
    [
        (279, "other-stores"),
        (280, "stores-280-299"),
        (299, "stores-280-299"),
        (300, "stores-300-319"),
        (459, "stores-440-459"),
        (460, "other-stores"),
        (31_782, "other-stores"),
    ],
)
def test_holders_are_half_open_bands_of_store_numbers(store, holder):
    assert holder_of(store) == holder


def test_a_household_is_its_purchases_up_to_november():
    frame = SOURCE.read(raw(*OF_NOVEMBER, *OF_DECEMBER)).set_index("client_id")
    seven = frame.loc["household-0007"]
    assert json.loads(seven["baskets"]) == [
        {"time": "2017-03-01", "value": 3.0},
        {"time": "2017-03-01", "value": 1.5},
        {"time": "2017-03-05", "value": 0.1},
        {"time": "2017-11-30", "value": 9.2},
    ]
    assert seven["products"] == "bananas, eggs"  # three baskets, two
    assert seven["days_between_baskets"] == (4 + 270) / 2  # two baskets of a day are one
    assert (seven["stores"], seven["items_per_basket"]) == (2, 1.5)
    assert seven["discount_share"] == round(1.4 / (13.8 + 1.4), 4)
    assert seven["private_brand_share"] == round(2 / 6, 4)
    assert (seven["campaigns"], seven["coupons_redeemed"]) == (1, 1)
    assert seven["holder"] == "stores-300-319"  # of two stores with as many baskets, the lower
    assert (seven["age"], seven["lapsed"]) == ("", 0)
    eight = frame.loc["household-0008"]
    assert (eight["age"], eight["home_ownership"], eight["lapsed"]) == ("65+", "", 1)
    assert (eight["holder"], eight["campaigns"], eight["coupons_redeemed"]) == (
        "other-stores",
        0,
        1,
    )
    assert pd.isna(eight["days_between_baskets"])
    assert list(frame.index) == ["household-0007", "household-0008"]  # 9 first came in December


def test_nothing_but_the_label_knows_december():
    whole = SOURCE.read(raw(*OF_NOVEMBER, *OF_DECEMBER))
    blind = SOURCE.read(raw(*OF_NOVEMBER))
    pd.testing.assert_frame_equal(whole.drop(columns="lapsed"), blind.drop(columns="lapsed"))
    assert blind["lapsed"].tolist() == [1, 1]


@pytest.mark.slow
def test_the_label_and_the_histories_are_those_of_the_raw_purchases(frame):
    columns = ["household_id", "basket_id", "transaction_timestamp"]
    file = cache_folder() / "raw" / "completejourney-transactions.parquet"
    bought = pd.read_parquet(file, columns=columns)
    assert bought["household_id"].nunique() == 2_469
    first = bought.groupby("household_id")["transaction_timestamp"].min()
    last = bought.groupby("household_id")["transaction_timestamp"].max()
    customers = first[first < AS_OF].index
    assert frame["client_id"].tolist() == [f"household-{number:04d}" for number in customers]
    assert frame["lapsed"].tolist() == (last[customers] < AS_OF).astype(int).tolist()
    before = bought[bought["transaction_timestamp"] < AS_OF]
    baskets = before.groupby("household_id")["basket_id"].nunique()
    histories = frame["baskets"].map(json.loads)
    assert histories.map(len).tolist() == baskets.tolist()
    assert max(event["time"] for events in histories for event in events) < AS_OF


@pytest.mark.slow
def test_the_contracts_windows_take_in_a_whole_history(frame):
    fields = {f.name: f for f in load_contract(contract_path("completejourney")).fields}
    row = max(range(len(frame)), key=lambda i: len(frame["baskets"][i]))
    events = parse_value(fields["baskets"], frame["baskets"][row])
    until = parse_value(fields["as_of"], frame["as_of"][row])
    numbers = aggregate_events(fields["baskets"], events, until)
    assert numbers["baskets_count_364d"] == len(events) > 500
    paid = [event["value"] for event in json.loads(frame["baskets"][row])]
    assert numbers["baskets_sum_364d"] == pytest.approx(sum(paid))


@pytest.mark.slow
def test_a_text_names_what_is_bought_and_ten_products_at_most(frame):
    said = frame["products"].str.split(", ")
    assert said.map(len).between(1, 10).all()
    assert frame["products"].str.contains("fluid milk white only").mean() > 0.5
    assert not frame["products"].str.contains("nan,").any()
