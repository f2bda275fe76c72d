import io
import threading

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes

from credit_common import arrays
from credit_common.arrays import from_array, to_array
from credit_common.errors import WireError

SHAPES = shapes.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def file_of(values, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **options)
    return file.getvalue()


def as_told(data, shape=(2, 3), dtype="float32", stype="numpy.ndarray"):
    return Array(dtype, shape, stype, data)


@given(shapes.arrays(np.float32, SHAPES))
def test_an_array_is_the_one_that_flower_makes(values):
    ours, flowers = to_array(values), Array(values)
    assert ours.data == flowers.data
    assert (ours.dtype, ours.shape, ours.stype) == (flowers.dtype, flowers.shape, flowers.stype)


@given(shapes.arrays(np.float32, SHAPES))
def test_an_array_comes_back_bit_by_bit(values):
    back = from_array("a", Array(values))
    assert (back.dtype, back.shape) == (values.dtype, values.shape)
    assert back.tobytes() == values.tobytes()
    assert back.flags.writeable


@pytest.mark.parametrize("odd", ["turned", "strided", "backwards"])
def test_a_view_is_sent_in_c_order(odd):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    view = {"turned": whole.T, "strided": whole[::2, ::3], "backwards": whole[:, ::-1]}[odd]
    np.testing.assert_array_equal(from_array("a", to_array(view)), view)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_, ">f4"])
def test_another_type_is_sent_as_flower_does_and_refused_when_it_comes(dtype):
    values = np.ones((2, 3), dtype)
    assert to_array(values).data == Array(values).data
    with pytest.raises(WireError, match="array a: must be float32"):
        from_array("a", as_told(file_of(values)))


FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (file_of(FLOATS, version=(2, 0)), (2, 3)),  # a longer header
        (file_of(np.asfortranarray(FLOATS)), (2, 3)),
        (file_of(FLOATS), (3, 2)),  # what is told of the shape is not what the bytes say
        (file_of(FLOATS), (6,)),
        (file_of(FLOATS), ()),
    ],
)
def test_what_the_bytes_say_counts(data, shape):
    np.testing.assert_array_equal(from_array("a", as_told(data, shape)), FLOATS)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4), (2**40, 2**40), (-2, -3), (0,), ()])
@pytest.mark.parametrize("cut", [1, 4, 25, 100])
def test_a_file_that_ends_early_is_refused(shape, cut):
    with pytest.raises(WireError, match="array a: its bytes are not"):
        from_array("a", as_told(file_of(FLOATS)[:-cut], shape))


def file_that_says(shape):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + len(head).to_bytes(4, "little") + head + FLOATS.tobytes()


ODD = {
    "many axes": (1,) * 40_000,
    "one axis more than an array can have": (1,) * 65,
    "more digits than Python prints": (10**5000,),
    "beyond int64": (2**70,),
    "beyond int64, empty": (0, 2**70),
    "beyond the address space, empty": (0, 2**62),
    "a product beyond int64, empty": (0, *[400] * 9),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_shape_of_any_size_is_refused_as_an_array(odd):
    shape = ODD[odd]
    told = f"({', '.join('9' * 5001 if n > 2**90 else str(n) for n in shape)},)"
    for data in (file_that_says(told), file_that_says(told)[: -FLOATS.nbytes]):
        with pytest.raises(WireError, match="array a: its bytes are not"):
            from_array("a", as_told(data, shape))
    with pytest.raises(WireError, match="array a: its bytes are not"):
        from_array("a", as_told(b"", shape))


@pytest.mark.parametrize("told", ["(" * 3000, "('a',)", "(-6,)", "[6]", "6", "(6,) + ()"])
def test_a_header_that_is_no_shape_is_refused(told):
    with pytest.raises(WireError, match="array a: its bytes are not"):
        from_array("a", as_told(file_that_says(told), (6,)))


def test_shapes_that_are_only_told_are_not_kept():
    data = file_of(FLOATS)
    from_array("a", as_told(data, (2, 3)))
    before = arrays._header.cache_info()
    for n in range(1, 50):
        for shape in ((n,), (0, n), (1,) * n, (n, 2**40), (n, 1), (3, 2, n)):
            np.testing.assert_array_equal(from_array("a", as_told(data, shape)), FLOATS)
    assert arrays._header.cache_info() == before
    from_array("a", as_told(data, (2, 3)))
    assert arrays._header.cache_info().hits == before.hits + 1  # one that comes is kept


@given(st.binary(max_size=200), shapes.array_shapes(min_dims=0, max_dims=2))
def test_other_bytes_are_refused(data, shape):
    with pytest.raises(WireError, match="array a"):
        from_array("a", as_told(data, shape))


def test_threads_may_take_arrays_of_other_headers_at_once():
    data = [as_told(file_of(np.zeros(n, np.float32), version=(2, 0)), (n,)) for n in range(1, 40)]
    failed = []

    def take():
        try:
            for _ in range(20):
                for array in data:
                    from_array("a", array)
        except BaseException as error:  # it is the test's result
            failed.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
