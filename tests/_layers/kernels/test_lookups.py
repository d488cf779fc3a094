"""The gradient of a lookup on an NVIDIA GPU, against sums in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import cuda, hardware
from purestep._layers import parts

pytestmark = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")
CLOSE = {mx.float32: 1e-6, mx.bfloat16: 4e-3, mx.float16: 6e-4}


@pytest.fixture(autouse=True)
def allowed():
    """Use the kernel, as in a compiled step."""
    with cuda.kernels():
        yield


def gradient(table, indices, slope):
    return mx.vjp(lambda table: parts.lookup(table, indices), [table], [slope])[1][0]


def by_hand(indices, slope, rows):
    found = np.zeros((rows, slope.shape[-1]))
    flat = np.asarray(slope.astype(mx.float32), np.float64).reshape(-1, slope.shape[-1])
    np.add.at(found, np.asarray(indices).reshape(-1), flat)
    return found


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("rows", "width", "places"), [(50, 768, (4, 33)), (1000, 8, (3000,)), (7, 4096, (600,)), (3, 16, (1,))]
)
def test_gradient_is_the_sum_over_places(rows, width, places, dtype):
    keys = mx.random.split(mx.random.key(rows), 2)
    drawn = mx.random.uniform(shape=places, key=keys[0])
    indices = (rows * drawn**3).astype(mx.int32)  # some rows have many places, and some have none
    slope = mx.random.normal((*places, width), key=keys[1]).astype(dtype)
    found = gradient(mx.zeros((rows, width), dtype), indices, slope)
    want = by_hand(indices, slope, rows)
    assert found.dtype == dtype
    assert np.abs(np.asarray(found.astype(mx.float32)) - want).max() <= CLOSE[dtype] * np.abs(want).max()


def test_indices_from_the_end_and_of_other_dtypes():
    slope = mx.arange(32, dtype=mx.float32).reshape(4, 8)
    for indices in (
        mx.array([0, -1, 2, -1]),
        mx.array([0, 4, 2, 4], mx.uint32),
        mx.array([0, 4, 2, 4], mx.int64),
    ):
        want = by_hand(mx.array([0, 4, 2, 4]), slope, 5)
        assert np.array_equal(np.asarray(gradient(mx.zeros((5, 8)), indices, slope)), want)


def test_same_bits_in_every_run():
    slope, indices = mx.random.normal((5000, 64), key=mx.random.key(0)), mx.zeros(5000, mx.int32)
    first = gradient(mx.zeros((40, 64)), indices, slope)
    assert all(mx.array_equal(first, gradient(mx.zeros((40, 64)), indices, slope)).item() for _ in range(5))


def test_it_can_be_differentiated_twice():
    table, indices = mx.random.normal((5, 8), key=mx.random.key(1)), mx.array([1, 1, 3])

    def slope(table):
        return mx.square(mx.grad(lambda table: (parts.lookup(table, indices) ** 3).sum())(table)).sum()

    def plain(table):
        return mx.square(mx.grad(lambda table: (table[indices] ** 3).sum())(table)).sum()

    assert mx.allclose(mx.grad(slope)(table), mx.grad(plain)(table), rtol=1e-5).item()
