"""Shapes of physical batches: a row's own length and public constants, nothing else.

A row's rounding may depend on the shapes that it is computed in. Were they to follow from the other
rows, adding a user could move the others' clipped gradients, which the sensitivity does not count
(privacy specification, row 16). So a physical batch always has the rows that are set here, and what
the data leaves empty is filled up at weight zero. They are powers of two: with five or six rows, a
row's last bits were seen to depend on its place in the batch, with powers of two never.
"""

import math

MOST_ROWS = 64
"""Most rows of a physical batch on a CPU."""
_ACCELERATOR_ROWS = 256
_FEW = 128.0
"""Below this many expected rows, what a physical batch leaves empty costs more than it saves."""
# Whole texts go through a layer in batches of at most so many tokens. That keeps a CPU's matrix
# units about as busy as ten times as many do; an accelerator wants more at once.
_TOKENS_OF_FEW, _TOKENS, _ACCELERATOR_TOKENS = 384, 768, 16_384
_READS_OF_FEW = 32


def rows_of_texts(length: int, device: str, expected: float = math.inf) -> int:
    """Rows of a batch of whole texts: a power of two.

    Args:
        length: In tokens, at least 1.
        device: Device type, as "cpu" or "cuda".
        expected: Public expected size of the logical batch.
    """
    tokens, most = _ACCELERATOR_TOKENS, _ACCELERATOR_ROWS
    if device == "cpu":
        tokens, most = _TOKENS_OF_FEW if expected < _FEW else _TOKENS, MOST_ROWS
    return min(most, 1 << max(0, (tokens // length).bit_length() - 1))


def rows_of_reads(device: str, expected: float = math.inf) -> int:
    """Rows of a batch of which only [CLS] is computed.

    Such a row costs little beside the weights that each batch reads.

    Args:
        device: Device type.
        expected: Public expected size of the logical batch.
    """
    if device != "cpu":
        return _ACCELERATOR_ROWS
    return _READS_OF_FEW if expected < _FEW else MOST_ROWS
