import pandas as pd
import pytest

from credit_simulations.data import prepare


@pytest.mark.slow
def test_ids_number_the_raw_rows_and_misaligned_rows_are_gone():
    frame = pd.read_parquet(prepare("pakdd2009"))
    numbers = set(frame["client_id"].str.removeprefix("pakdd-").astype(int))
    gone = set(range(1, 40_001)) - numbers
    assert len(gone) == 12
    assert {895, 2725, 37349} <= gone  # rows of the raw file labelled N, counted from 1
    assert set(frame["FLAG_MOBILE_PHONE"]) == {"N"}  # names stood here
    assert frame["TARGET_LABEL_BAD=1"].dtype == "int64"
