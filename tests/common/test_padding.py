import numpy as np

from credit_common.padding import bucket_length, padded


def test_a_texts_padded_length_is_its_own_next_multiple_of_eight():
    assert [bucket_length(n, 128) for n in (1, 8, 9, 16, 121, 128)] == [8, 8, 16, 16, 128, 128]
    assert bucket_length(99, 100) == 100


def test_rows_are_filled_behind_their_own_tokens():
    ids, mask = padded([np.array([5, 6]), np.array([7, 8, 9])], 4, 1)
    assert ids.tolist() == [[5, 6, 1, 1], [7, 8, 9, 1]]
    assert mask.tolist() == [[True, True, False, False], [True, True, True, False]]
