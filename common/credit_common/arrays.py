"""float32 arrays as Flower's `Array` and back, the same bytes without NumPy's parser of headers.

Flower keeps an array as the file that `numpy.save` makes, whose header is a Python literal that
`numpy.load` parses with `ast`: most of what a round of small adapters costs, and not safe between
threads in CPython 3.11 ("SystemError: AST constructor recursion depth mismatch"). What this project
sends is float32 in C order, and its header follows from the shape; so it is made once a shape, and
compared instead of parsed. All other files go NumPy's way.
"""

import functools
import io
import math
import threading
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from credit_common.errors import WireError

_PARSING = threading.Lock()
_STYPE = "numpy.ndarray"
"""Flower's word for the format."""


def to_array(values: NDArray[np.floating[Any]]) -> Array:
    """Flower's Array of an array, as `Array(values)` makes it in C order."""
    values = np.asarray(values, order="C")
    if values.dtype != np.float32:
        return Array(values)
    return Array("float32", values.shape, _STYPE, _header(values.shape) + values.tobytes())


def from_array(name: str, array: Array) -> NDArray[np.float32]:
    """The array in a Flower Array; pickles are not opened.

    Raises:
        WireError: Naming the array, if its bytes are not float32 in NumPy's own format. The
            record's own word for type and shape proves nothing: what counts is what the bytes say.
    """
    data, shape = array.data, array.shape
    if array.stype == _STYPE and all(type(size) is int and size >= 0 for size in shape):
        header = _header(tuple(shape))
        if len(data) == len(header) + 4 * math.prod(shape) and data.startswith(header):
            flat = np.frombuffer(data, np.float32, offset=len(header))
            return flat.reshape(shape).copy()  # a view could not be written to
    try:
        with _PARSING:
            values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError, MemoryError):
        raise WireError(f"array {name}: its bytes are not an array in NumPy's format") from None
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        raise WireError(f"array {name}: must be float32")
    return values


@functools.lru_cache(maxsize=256)
def _header(shape: tuple[int, ...]) -> bytes:
    """What `numpy.save` writes before the values of a float32 array in C order."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, content)
    return file.getvalue()
