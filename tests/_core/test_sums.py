"""Sums and means against float64, at sizes for which one long float32 sum loses digits."""

import math

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import sums

LONG = 2**26


@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 0.77])
def test_many_equal_numbers(value):
    exact = float(np.float32(value))
    assert sums.total(mx.full((LONG,), value)).item() / LONG == pytest.approx(exact, rel=1e-6)
    assert sums.mean(mx.full((LONG,), value)).item() == pytest.approx(exact, rel=1e-6)


def test_many_random_numbers():
    x = np.random.default_rng(0).standard_normal(LONG, dtype=np.float32)
    signs = np.where(x > 0, np.float32(1), np.float32(-1))
    np.square(x, out=x)
    assert sums.total(mx.array(x)).item() == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)
    assert sums.total(mx.array(signs)).item() == int(signs.sum(dtype=np.int64))


@pytest.mark.parametrize(
    "shape",
    [(), (0,), (3, 0), (1,), (33,), (64,), (1009,), (3, 4099), (2, 37, 1000), (5, 2, 3, 2, 3, 2), (97, 89)],
)
def test_every_shape_over_every_axis(shape):
    values = np.random.default_rng(1).uniform(1, 2, shape).astype(np.float32)
    wide, x = values.astype(np.float64), mx.array(values)
    axes = [None, *range(len(shape)), *range(-len(shape), 0), tuple(range(len(shape))), (0, -1)]
    for axis in axes if len(shape) > 1 else axes[:-1]:
        for keepdims in (False, True):
            found = sums.total(x, axis, keepdims=keepdims)
            right = wide.sum(axis=axis, keepdims=keepdims)
            assert found.shape == right.shape
            np.testing.assert_allclose(np.array(found), right, rtol=5e-7)
            if x.size:
                average = sums.mean(x, axis, keepdims=keepdims)
                np.testing.assert_allclose(
                    np.array(average), wide.mean(axis=axis, keepdims=keepdims), rtol=5e-7
                )


def test_a_transposed_matrix_and_every_dtype():
    x = np.full((1030, 4000), 0.1, np.float32)
    assert sums.total(mx.array(x).T).item() == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)
    assert sums.total(mx.full((2**20,), 0.5, mx.bfloat16)).item() == 2**19
    assert sums.total(mx.ones((2**25 + 1,), mx.bool_)[: 2**25]).item() == 2**25
    assert sums.mean(mx.full((2**17,), 7, mx.int32)).dtype == mx.float32


def test_the_gradient_is_that_of_a_plain_sum():
    weights = mx.random.normal((67, 1009), key=mx.random.key(0))
    slope = mx.grad(lambda x: (sums.total(x, axis=1) * weights[:, 0]).sum())(weights)
    assert mx.array_equal(slope, mx.broadcast_to(weights[:, :1], weights.shape)).item()
    curve = mx.grad(lambda x: mx.square(mx.grad(lambda y: sums.total(mx.square(y)))(x)).sum())(weights)
    assert mx.allclose(curve, 8 * weights).item()


@pytest.mark.parametrize("wrap", [lambda f: f, mx.compile])
def test_it_can_be_mapped_and_compiled(wrap):
    x = mx.full((3, 1009, 2), 0.1)
    for axes in (0, 2):
        found = wrap(mx.vmap(sums.total, in_axes=axes))(x)
        np.testing.assert_allclose(np.array(found), np.array(x).sum((0, 1, 2)) / x.shape[axes], rtol=1e-6)


def test_few_numbers_are_one_sum():
    x = mx.random.normal((4, 8), key=mx.random.key(0))
    assert mx.array_equal(sums.total(x), x.sum()).item()
    assert mx.array_equal(sums.total(x, axis=0), x.sum(axis=0)).item()
    assert math.isclose(sums.mean(x).item(), x.mean().item(), rel_tol=1e-6)
