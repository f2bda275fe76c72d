"""How a trained adapter leaves a holder: as it is, or as rounded changes of the request's adapter.

The contract's `training.upload` says which; a request has no say in it. Changes are taken after the
noise, so that rounding them is post-processing and costs no privacy. A reply is always to a
request, whose adapter both sides know, so that the coordinator adds the changes to what it sent.

    float32   the adapter itself
    bfloat16  NAME: uint16, the upper half of the float32 change, rounded to the nearest, ties to
              even; the relative error is at most 2^-8
    int8      NAME: int8 q in -127..127, and NAME.scale: float32 s >= 0, one for each index of the
              array's shortest axis (a rank of A and B, an output of head and wide part). The change
              is s q, by stochastic rounding: without bias, off by less than s (QSGD, Alistarh et
              al. 2017)
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.errors import WireError
from credit_common.sections import Upload

FloatArrays = Mapping[str, NDArray[np.float32]]
Encoded = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]
Uniform = Callable[[int], NDArray[np.float64]]
"""Draws n numbers uniform in (0, 1), as `RandomSource.uniform` does."""

DTYPES: Mapping[Upload, tuple[str, ...]] = {
    "float32": ("float32",),
    "bfloat16": ("uint16",),
    "int8": ("int8", "float32"),
}
"""Types of an upload's arrays."""
SCALE = ".scale"
STEPS = 127
"""Largest int8 that stands for a change."""
LARGEST = 2.0**100
"""Bound of a change. Even twice of it is below half the distance between the two largest float32,
so that every float32 stays finite when it is added."""


def upload_schema(kind: Upload, shapes: Shapes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> type and shape of every array of an upload, for an adapter of these shapes."""
    if kind != "int8":
        return {name: (DTYPES[kind][0], shape) for name, shape in shapes.items()}
    schema = {}
    for name, shape in shapes.items():
        schema[name] = ("int8", shape)
        schema[name + SCALE] = ("float32", (min(shape),))
    return schema


def blank_upload(kind: Upload, shapes: Shapes) -> Encoded:
    """An upload of zeros: as large as any."""
    schema = upload_schema(kind, shapes)
    return {name: np.zeros(shape, dtype) for name, (dtype, shape) in schema.items()}


def upload_bytes(kind: Upload, shapes: Shapes) -> int:
    """Bytes of the numbers in an upload."""
    return sum(
        np.dtype(dtype).itemsize * math.prod(shape)
        for dtype, shape in upload_schema(kind, shapes).values()
    )


def encode(kind: Upload, trained: FloatArrays, base: FloatArrays, uniform: Uniform) -> Encoded:
    """What leaves for a trained adapter.

    It never fails on a number: one that is not finite is no change (nan) or the largest one, since
    a refusal would tell of a release that nobody charged.

    Args:
        kind: The contract's.
        trained: After the noise.
        base: The adapter of the request, finite.
        uniform: Draws what "int8" rounds by; otherwise it is not called.
    """
    if kind == "float32":
        return {name: array.copy() for name, array in trained.items()}
    out: Encoded = {}
    for name, array in trained.items():
        change = _float64(array) - base[name]
        change = np.clip(np.nan_to_num(change, nan=0.0), -LARGEST, LARGEST)
        if kind == "bfloat16":
            out[name] = _upper_half(change.astype(np.float32))
        else:
            out[name], out[name + SCALE] = _rounded(change, uniform)
    return out


def decode(kind: Upload, arrays: Mapping[str, NDArray[Any]], base: FloatArrays) -> Encoded:
    """The adapter that an upload stands for, float32, finite.

    Args:
        kind: The contract's.
        arrays: As they came.
        base: The adapter of the request that they answer.

    Raises:
        WireError: As `check_upload`.
    """
    check_upload(kind, {name: array.shape for name, array in base.items()}, arrays)
    if kind == "float32":
        return {name: arrays[name] for name in base}
    return {
        name: (array.astype(np.float64) + _change(kind, name, arrays)).astype(np.float32)
        for name, array in base.items()
    }


def check_upload(kind: Upload, shapes: Shapes, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that are no upload of an adapter of these shapes.

    Raises:
        WireError: Naming the array and what is wrong with it: missing or unknown, of another type
            or shape, not finite, a negative scale, an int8 of -128, or a change beyond `LARGEST`.
    """
    schema = upload_schema(kind, shapes)
    if set(arrays) != set(schema):
        odd = sorted(set(arrays) ^ set(schema))
        raise WireError(f"adapter arrays {odd} are missing or not in the schema")
    for name, (dtype, shape) in schema.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise WireError(
                f"adapter array {name}: {array.dtype} {array.shape}, must be {dtype} {shape}"
            )
        if dtype == "float32" and not np.isfinite(array).all():
            raise WireError(
                f"adapter array {name}: has values that are not finite", reason="not-finite"
            )
    for name in shapes if kind != "float32" else ():
        if kind == "int8" and (arrays[name + SCALE] < 0).any():
            raise WireError(f"adapter array {name}{SCALE}: has a negative scale")
        if kind == "int8" and (arrays[name] < -STEPS).any():
            raise WireError(f"adapter array {name}: has numbers below {-STEPS}")
        # As it is written, nan is refused too. Twice: the writer rounds its scales up.
        if not (np.abs(_change(kind, name, arrays)) <= 2 * LARGEST).all():
            raise WireError(
                f"adapter array {name}: has changes that are too large, or no numbers",
                reason="not-finite",
            )


def _change(kind: Upload, name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    array = arrays[name]
    if kind == "bfloat16":
        return _float64((array.astype(np.uint32) << 16).view(np.float32))
    scale = arrays[name + SCALE].astype(np.float64)
    axis = _axis(array.shape)
    along = tuple(n if i == axis else 1 for i, n in enumerate(array.shape))
    return array * scale.reshape(along)


def _float64(array: NDArray[np.float32]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a signalling nan is a nan like any other
        return array.astype(np.float64)


def _upper_half(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _rounded(
    change: NDArray[np.float64], uniform: Uniform
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    axis = _axis(change.shape)
    others = tuple(i for i in range(change.ndim) if i != axis)
    largest = np.abs(change).max(axis=others, keepdims=True)
    scale = (largest / STEPS).astype(np.float32)
    low = scale.astype(np.float64) * STEPS < largest  # no change may be beyond the largest step
    scale = np.where(low, np.nextafter(scale, np.float32(np.inf)), scale)
    steps = change / np.where(scale > 0, scale, 1).astype(np.float64)
    draws = uniform(change.size).reshape(change.shape)
    # 127 and the largest draw below 1 are 128 in float64.
    return np.minimum(np.floor(steps + draws), STEPS).astype(np.int8), scale.ravel()


def _axis(shape: tuple[int, ...]) -> int:
    """The shortest axis, which has a scale for each of its indices."""
    return shape.index(min(shape))
