import math

import pytest

from credit_client.training.shapes import MOST_ROWS, rows_of_reads, rows_of_texts

DEVICES = ("cpu", "cuda", "mps")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("expected", [1.0, 64.0, 127.9, 128.0, 1e6, math.inf])
def test_rows_are_powers_of_two_so_that_a_rows_place_does_not_matter(device, expected):
    for length in range(1, 513):
        rows = rows_of_texts(length, device, expected)
        assert rows & (rows - 1) == 0
        assert 1 <= rows <= (MOST_ROWS if device == "cpu" else 256)
        assert rows_of_texts(length + 1, device, expected) <= rows
    reads = rows_of_reads(device, expected)
    assert reads & (reads - 1) == 0


def test_a_small_logical_batch_is_not_filled_up_as_far():
    assert rows_of_texts(56, "cpu", 64.0) < rows_of_texts(56, "cpu", 600.0)
    assert rows_of_reads("cpu", 64.0) < rows_of_reads("cpu", 600.0)


def test_an_accelerator_gets_more_at_once():
    assert rows_of_texts(128, "cuda") > 8 * rows_of_texts(128, "cpu")
    assert rows_of_reads("cuda", 10.0) > rows_of_reads("cpu")
