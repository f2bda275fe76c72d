import math
import subprocess
import sys
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from credit_common import upload
from credit_common.errors import WireError
from credit_common.sections import Upload
from credit_common.upload import DTYPES, LARGEST, SCALE, decode, encode
from credit_common.wire import pack, unpack

KINDS: tuple[Upload, ...] = get_args(Upload)
SHAPES = {
    "lora.5.query.A": (4, 32),
    "lora.5.query.B": (32, 4),
    "head.weight": (1, 32),
    "head.bias": (1,),
    "wide.weight": (3, 17),
}
MOST = float(np.finfo(np.float32).max)
Adapter = dict[str, NDArray[np.float32]]


def drawn(seed: int) -> upload.Uniform:
    return np.random.default_rng(seed).random


def never(n: int) -> NDArray[np.float64]:
    raise AssertionError("no randomness is needed")


def adapter(seed: int, scale: float = 1.0) -> Adapter:
    draw = np.random.default_rng(seed)
    return {
        name: (scale * draw.standard_normal(shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def trained(base: Adapter, scale: float = 1e-2) -> Adapter:
    """An adapter nearby; its slices move by different amounts."""
    change = adapter(1, scale)
    change["lora.5.query.A"][2] *= 300
    change["wide.weight"][1] *= 1e-6
    return {name: values + change[name] for name, values in base.items()}


def bits(arrays: dict[str, NDArray[Any]]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def last_place(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """What rounding to float32 may add to the error of a sum."""
    return np.spacing(np.maximum(np.abs(one), np.abs(other)))


def test_float32_is_the_adapter_itself_whatever_the_request_had() -> None:
    base = adapter(0)
    after = trained(base)
    sent = encode("float32", after, base, never)
    assert bits(sent) == bits(after)
    assert bits(decode("float32", sent, adapter(7))) == bits(after)


def test_a_bfloat16_change_is_off_by_one_part_in_256_at_most() -> None:
    base = adapter(0)
    after = trained(base)
    back = decode("bfloat16", encode("bfloat16", after, base, never), base)
    for name, values in after.items():
        change = np.abs(values.astype(np.float64) - base[name])
        error = np.abs(back[name].astype(np.float64) - values)
        assert (error <= change / 256 + last_place(values, base[name])).all()
        assert error.max() > 0  # it is rounded indeed


@pytest.mark.parametrize("scale", [1e-40, 1e-3, 1.0, 1e20])
def test_bfloat16_rounds_as_torch_does(scale: float) -> None:
    import torch

    values = (scale * np.random.default_rng(3).standard_normal(5000)).astype(np.float32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x80000000], np.uint32).view(np.float32)
    values = np.concatenate((values, ties))
    zero = np.zeros_like(values)
    sent = encode("bfloat16", {"w": values}, {"w": zero}, never)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(sent["w"], expected)


@pytest.mark.parametrize("seed", range(5))
def test_an_int8_change_is_off_by_less_than_a_step_of_its_own_slice(seed: int) -> None:
    base = adapter(0)
    after = trained(base)
    sent = encode("int8", after, base, drawn(seed))
    back = decode("int8", sent, base)
    for name, values in after.items():
        change = values.astype(np.float64) - base[name]
        axis = values.shape.index(min(values.shape))
        largest = np.abs(change).max(axis=tuple(i for i in range(values.ndim) if i != axis))
        np.testing.assert_allclose(sent[name + SCALE], largest / 127, rtol=3e-7)
        step = (largest / 127).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        error = np.abs(back[name].astype(np.float64) - values)
        assert (error <= step * (1 + 1e-6) + last_place(values, base[name])).all()
        assert np.abs(sent[name].astype(int)).max() == 127  # no bit is left unused


def mean_error(round_: Any, draws: int) -> NDArray[np.float64]:
    """Mean error of 40 changes over draws, in steps; they lie at all parts of a step."""
    change = np.append(np.linspace(-3.0, 3.0, 39), 127.0).astype(np.float32)[None]
    base = {"w": np.zeros_like(change)}
    total = np.zeros(40)
    for _ in range(draws):
        total += decode("int8", round_({"w": change}, base), base)["w"][0]
    return total / draws - change[0]


def test_int8_rounds_without_bias() -> None:
    """By Hoeffding, errors in (-1, 1) of 40 changes are all within the bound but for 1e-7."""
    draws, uniform = 4000, drawn(11)
    bound = math.sqrt(2 * math.log(2 * 40 / 1e-7) / draws)
    assert bound < 0.11
    assert np.abs(mean_error(lambda a, b: encode("int8", a, b, uniform), draws)).max() < bound

    def nearest(n: int) -> NDArray[np.float64]:
        return np.full(n, 0.5)

    found = mean_error(lambda a, b: encode("int8", a, b, nearest), 1)
    assert np.abs(found).max() > 2 * bound  # rounding to the nearest would be caught


@pytest.mark.parametrize("draw", [2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("largest", [127.0, 1.0, 1e-30])
def test_no_draw_takes_a_change_beyond_the_largest_step(draw: float, largest: float) -> None:
    change = np.array([[largest, -largest, 0.0]], np.float32)
    base = {"w": np.zeros_like(change)}
    sent = encode("int8", {"w": change}, base, lambda n: np.full(n, draw))
    assert sent["w"][0, 0] in (126, 127)
    assert sent["w"][0, 1] in (-127, -126)
    back = decode("int8", sent, base)["w"]
    assert np.abs(back - change).max() <= largest / 126


def test_int8_is_repeated_by_the_same_draws_alone() -> None:
    base = adapter(0)
    after = trained(base)
    first, again, other = (encode("int8", after, base, drawn(seed)) for seed in (1, 1, 2))
    assert bits(first) == bits(again)
    assert bits(first) != bits(other)


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_is_no_change(kind: Upload) -> None:
    base = adapter(0)
    assert bits(decode(kind, encode(kind, base, base, drawn(0)), base)) == bits(base)


words = st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(("bfloat16", "int8")), after=words, before=words)
@example(kind="bfloat16", after=[0x7F800001] * 6, before=[0] * 6)  # a signalling nan
@example(kind="int8", after=[0x7F800001] * 6, before=[0] * 6)
def test_whatever_was_trained_is_sent_as_finite_numbers(
    kind: Upload, after: list[int], before: list[int]
) -> None:
    """Of any bits: nan, infinity, -0, subnormal, the largest; a holder has nothing to refuse."""

    def floats(bits: list[int]) -> NDArray[np.float32]:
        return np.array(bits, np.uint32).view(np.float32).reshape(2, 3)

    base = {"w": np.nan_to_num(floats(before), nan=-MOST)}  # requests are finite
    back = decode(kind, encode(kind, {"w": floats(after)}, base, drawn(0)), base)["w"]
    assert np.isfinite(back).all()
    assert back.dtype == np.float32
    unknown = np.isnan(floats(after))
    assert np.array_equal(back[unknown], base["w"][unknown])


def test_a_signalling_nan_from_the_wire_is_refused_without_a_warning() -> None:
    base = {"w": np.zeros((2, 3), np.float32)}
    with pytest.raises(WireError, match="too large, or no numbers"):
        decode("bfloat16", {"w": np.full((2, 3), 0x7F81, np.uint16)}, base)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_change_keeps_the_largest_float32_finite(kind: Upload, sign: int) -> None:
    base = {"w": np.array([[sign * MOST, 0, 1]], np.float32)}
    after = {"w": np.full((1, 3), sign * np.inf, np.float32)}
    back = decode(kind, encode(kind, after, base, drawn(0)), base)["w"]
    np.testing.assert_allclose(back, [[sign * MOST, sign * LARGEST, sign * LARGEST]], rtol=1e-2)


def sent(kind: Upload) -> dict[str, NDArray[Any]]:
    base = adapter(0)
    return encode(kind, trained(base), base, drawn(0))


Q = "lora.5.query.A"
MALFORMED: dict[str, tuple[Upload, dict[str, Any], str]] = {
    "int8: the adapter itself": ("int8", {Q: np.ones((4, 32), np.float32)}, "must be int8"),
    "int8: no sign": ("int8", {Q: np.ones((4, 32), np.uint8)}, "must be int8"),
    "int8: turned": ("int8", {Q: np.ones((32, 4), np.int8)}, r"must be int8 \(4, 32\)"),
    "int8: flat": ("int8", {Q: np.ones(128, np.int8)}, r"must be int8 \(4, 32\)"),
    "int8: no scale": ("int8", {Q + SCALE: None}, "missing"),
    "int8: nothing but the scale": ("int8", {Q: None}, "missing"),
    "int8: one scale": ("int8", {Q + SCALE: np.ones(1, np.float32)}, r"float32 \(4,\)"),
    "int8: more scales": ("int8", {Q + SCALE: np.ones(5, np.float32)}, r"float32 \(4,\)"),
    "int8: double scale": ("int8", {Q + SCALE: np.ones(4)}, "must be float32"),
    "int8: nan": ("int8", {Q + SCALE: np.full(4, np.nan, np.float32)}, "not finite"),
    "int8: infinity": ("int8", {Q + SCALE: np.full(4, np.inf, np.float32)}, "not finite"),
    "int8: negative": ("int8", {Q + SCALE: np.full(4, -1, np.float32)}, "negative"),
    "int8: huge": ("int8", {Q + SCALE: np.full(4, 1e30, np.float32)}, "too large"),
    "int8: the largest": ("int8", {Q + SCALE: np.full(4, MOST, np.float32)}, "too large"),
    "int8: -128": ("int8", {Q: np.full((4, 32), -128, np.int8)}, "numbers below -127"),
    "int8: more": ("int8", {"users": np.ones(1, np.float32)}, "not in the schema"),
    "bfloat16: the adapter itself": ("bfloat16", {Q: np.ones((4, 32), np.float32)}, "uint16"),
    "bfloat16: signed": ("bfloat16", {Q: np.ones((4, 32), np.int16)}, "must be uint16"),
    "bfloat16: nan": ("bfloat16", {Q: np.full((4, 32), 0x7FC0, np.uint16)}, "no numbers"),
    "bfloat16: infinity": ("bfloat16", {Q: np.full((4, 32), 0xFF80, np.uint16)}, "too large"),
    "bfloat16: huge": ("bfloat16", {Q: np.full((4, 32), 0x7F00, np.uint16)}, "too large"),
    "bfloat16: less": ("bfloat16", {Q: None}, "missing"),
    "float32: nan": ("float32", {Q: np.full((4, 32), np.nan, np.float32)}, "not finite"),
    "float32: double": ("float32", {Q: np.ones((4, 32))}, "must be float32"),
    "float32: a half": ("float32", {Q: np.ones((4, 32), np.uint16)}, "must be float32"),
    "float32: a scale": ("float32", {Q + SCALE: np.ones(4, np.float32)}, "not in the schema"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_upload_is_refused_by_the_name_of_the_array(what: str) -> None:
    kind, change, says = MALFORMED[what]
    base = adapter(0)
    decode(kind, sent(kind), base)
    wrong = {name: a for name, a in {**sent(kind), **change}.items() if a is not None}
    with pytest.raises(WireError, match=says) as caught:
        decode(kind, wrong, base)
    assert next(iter(change)).removesuffix(SCALE) in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_no_encoding_passes_for_another(kind: Upload, other: Upload) -> None:
    if kind == other:
        upload.check_upload(kind, SHAPES, sent(kind))
        return
    with pytest.raises(WireError):
        decode(kind, sent(other), adapter(0))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_any_upload(kind: Upload) -> None:
    arrays = sent(kind)
    assert {a.dtype.name for a in arrays.values()} == set(DTYPES[kind])
    assert upload.upload_bytes(kind, SHAPES) == sum(a.nbytes for a in arrays.values())
    assert len(pack(upload.blank_upload(kind, SHAPES))) == len(pack(arrays))


def test_a_change_takes_a_half_or_a_quarter_of_the_bytes_and_its_scales() -> None:
    numbers = sum(math.prod(shape) for shape in SHAPES.values())
    assert upload.upload_bytes("float32", SHAPES) == 4 * numbers
    assert upload.upload_bytes("bfloat16", SHAPES) == 2 * numbers
    assert upload.upload_bytes("int8", SHAPES) == numbers + 4 * (4 + 4 + 1 + 1 + 3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_is_the_same_bits_after_the_wire(kind: Upload) -> None:
    arrays = sent(kind)
    back = unpack(pack(arrays))
    assert bits(back) == bits({name: arrays[name] for name in back})
    assert pack(back) == pack(arrays)


def test_an_upload_is_read_without_torch_or_flwr() -> None:
    check = "import sys, credit_common.upload; print({'torch', 'flwr'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
    assert found.stdout.decode().strip() == "set()"
