"""Texts of several lengths -> arrays of one shape, each padded by its own length alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUCKET = 8
"""Texts are padded to the next multiple of this many tokens, by their own length alone."""


def bucket_length(tokens: int, longest: int) -> int:
    """Padded length of a text of `tokens` tokens."""
    return min(longest, -(-tokens // BUCKET) * BUCKET)


def padded(
    tokens: Sequence[NDArray[np.int64]], length: int, padding: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids (n, length) int64 and mask (n, length) bool, False at padding.

    Args:
        tokens: Ids of each text, at most `length` of them.
        length: Of every row.
        padding: The tokenizer's id for padding.
    """
    ids = np.full((len(tokens), length), padding, np.int64)
    mask = np.zeros((len(tokens), length), bool)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = own
        mask[row, : len(own)] = True
    return ids, mask
