"""Shapes of physical batches: a row's own length and public constants, nothing else.

A row's rounding may depend on the shapes that it is computed in. Were they to follow from the other
rows, adding a user could move the others' clipped gradients, which the sensitivity does not count
(privacy specification, row 16). So a physical batch always has the rows that are set here, and what
the data leaves empty is filled up at weight zero. They are powers of two: with six rows of 40
tokens, a row's last bits were seen to depend on its place in the batch, with four or eight not.
"""

MOST_ROWS = 64
"""Most rows of a physical batch on a CPU."""
_ACCELERATOR_ROWS = 256
# Whole texts go through a layer in batches of about as many tokens. On a CPU, 256 keep its matrix
# units as busy as thousands do, and leave little to fill up; an accelerator wants more at once.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 256, 16_384
_FEW_ROWS = 32
_FEW_EXPECTED = 128.0


def rows_of_texts(length: int, device: str) -> int:
    """Rows of a batch of whole texts on a device type ("cpu", "cuda"...): a power of two.

    Args:
        length: In tokens, at least 1.
        device: Device type.
    """
    tokens, most = (
        (_CPU_TOKENS, MOST_ROWS) if device == "cpu" else (_ACCELERATOR_TOKENS, _ACCELERATOR_ROWS)
    )
    return min(most, 1 << max(0, (tokens // length).bit_length() - 1))


def rows_of_reads(expected: float, device: str) -> int:
    """Rows of a batch of which only [CLS] is computed.

    Such a row costs little beside the weights that each batch reads, so that batches are large; but
    not so large that the filling of a small logical batch costs more.

    Args:
        expected: Public expected size of the logical batch.
        device: Device type.
    """
    if device != "cpu":
        return _ACCELERATOR_ROWS
    return _FEW_ROWS if expected < _FEW_EXPECTED else MOST_ROWS
