"""Arrays as Flower's `Array` and back, the same bytes without NumPy's parser of headers.

Flower keeps an array as the file that `numpy.save` makes, whose header is a Python literal that
`numpy.load` parses with `ast`: most of what a round of small adapters costs, and not safe between
threads in CPython 3.11 ("SystemError: AST constructor recursion depth mismatch"). What this project
sends has one of three types, in C order, and its header follows from type and shape; so it is made
once, and compared instead of parsed. All other files go NumPy's way.
"""

import functools
import io
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from credit_common.errors import WireError

SENT = ("float32", "int8", "uint16")
"""Types of the arrays that cross the wire."""
_PARSING = threading.Lock()
_STYPE = "numpy.ndarray"
"""Flower's word for the format."""


def to_array(values: NDArray[Any]) -> Array:
    """Flower's Array of an array, as `Array(values)` makes it in C order."""
    values, dtype = np.asarray(values, order="C"), values.dtype.name
    if dtype not in SENT or not values.dtype.isnative:
        return Array(values)
    return Array(dtype, values.shape, _STYPE, _header(dtype, values.shape) + values.tobytes())


def from_array(name: str, array: Array, types: Sequence[str] = ("float32",)) -> NDArray[Any]:
    """The array in a Flower Array; pickles are not opened.

    Args:
        name: For the error.
        array: As it came.
        types: What it may hold.

    Raises:
        WireError: Naming the array, if its bytes are not of such a type in NumPy's own format. The
            record's own word for type and shape proves nothing: what counts is what the bytes say.
    """
    data, shape, dtype = array.data, array.shape, array.dtype
    whole = all(type(size) is int and size >= 0 for size in shape)
    if array.stype == _STYPE and whole and dtype in types and dtype in SENT:
        header = _header(dtype, tuple(shape))
        size = np.dtype(dtype).itemsize * math.prod(shape)
        if len(data) == len(header) + size and data.startswith(header):
            flat = np.frombuffer(data, dtype, offset=len(header))
            return flat.reshape(shape).copy()  # a view could not be written to
    try:
        with _PARSING:
            values = array.numpy()
    except (ValueError, TypeError, EOFError, OSError, MemoryError):
        raise WireError(f"array {name}: its bytes are not an array in NumPy's format") from None
    known = isinstance(values, np.ndarray) and values.dtype.isnative
    if not known or values.dtype.name not in types:
        raise WireError(f"array {name}: must be {' or '.join(types)}")
    return values


@functools.lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What `numpy.save` writes before the values of an array in C order."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, content)
    return file.getvalue()
