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
MOST_AXES = 8
"""Axes of an array that is taken without NumPy's parser; the largest of this project has 2."""
_HEADER_BYTES = 320
"""Where a header of so many axes has its shape."""
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
    if array.stype == _STYPE and dtype in types and dtype in SENT and _tells(data, shape):
        header = _header(dtype, tuple(shape))
        size = np.dtype(dtype).itemsize * math.prod(shape)
        if len(data) == len(header) + size and data.startswith(header):
            flat = np.frombuffer(data, dtype, offset=len(header))
            return flat.reshape(shape).copy()  # a view could not be written to
    try:
        with _PARSING:
            values = array.numpy()
    except Exception:  # of many kinds, from sizes that overflow to what is no Python at all
        raise WireError(f"array {name}: its bytes are not an array in NumPy's format") from None
    known = isinstance(values, np.ndarray) and values.dtype.isnative
    if not known or values.dtype.name not in types:
        raise WireError(f"array {name}: must be {' or '.join(types)}")
    return values


def _tells(data: bytes, shape: Sequence[int]) -> bool:
    """Whether a file is large enough for this shape and its own header tells it.

    Headers are made and kept for such shapes alone: any other is as large, or of as many axes, as
    whoever sent it likes. Empty arrays are not among them, so that no size is beyond the file's.
    """
    if len(shape) > MOST_AXES or not all(type(n) is int and 0 < n <= len(data) for n in shape):
        return False
    told = f"'shape': {tuple(shape)}, ".encode()
    return math.prod(shape) <= len(data) and data.find(told, 0, _HEADER_BYTES) >= 0


@functools.lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What `numpy.save` writes before the values of an array in C order."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, content)
    return file.getvalue()
