import pandas as pd
import pytest

from credit_simulations.data import prepare
from credit_simulations.sources.taiwan import holder_of


@pytest.mark.slow
def test_codes_come_back_from_their_indicator_columns():
    frame = pd.read_parquet(prepare("taiwan"))
    education = frame["EDUCATION"].value_counts().to_dict()
    assert education == {2: 14_030, 1: 10_585, 3: 4_917, 5: 280, 4: 123, 6: 51, 0: 14}
    marriage = frame["MARRIAGE"].value_counts().to_dict()
    assert marriage == {2: 15_964, 1: 13_659, 3: 323, 0: 54}
    first = frame.iloc[0]
    assert (first["EDUCATION"], first["MARRIAGE"], first["LIMIT_BAL"]) == (2, 1, 20_000)
    assert first["holder"] == "university-under-100k"


@pytest.mark.parametrize(
    ("education", "limit", "holder"),
    [
        (1, 99_999, "graduate-school-under-100k"),
        (1, 100_000, "graduate-school-100k-200k"),
        (2, 299_999, "university-200k-300k"),
        (3, 300_000, "high-school-300k-and-more"),
        (0, 10_000, "other-education"),
        (5, 900_000, "other-education"),
    ],
)
def test_holders_are_half_open_limit_bands(education, limit, holder):
    assert holder_of(education, limit) == holder
