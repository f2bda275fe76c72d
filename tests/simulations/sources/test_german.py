import pandas as pd
import pytest

from credit_simulations.data import prepare


@pytest.mark.slow
def test_codes_stay_phrases_and_no_phrase_reads_as_missing():
    frame = pd.read_parquet(prepare("german"))
    assert "... < 0 DM" in set(frame["status_of_existing_checking_account"])
    texts = frame.select_dtypes(exclude="number")
    assert not texts.isin(["", "none", "NA", "nan"]).any(axis=None)
    assert not texts.isna().any(axis=None)
