"""The exponential of a CPU: its digits, its limits, its derivatives, and the softmax made of it."""

import sys

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import hardware
from purestep._layers import exponential

COUNT = exponential.SMALL
here = pytest.mark.skipif(sys.platform == "darwin", reason="MLX has vector instructions there")


@pytest.fixture(autouse=True)
def cpu():
    with mx.stream(mx.cpu):
        before = mx.default_device()
        mx.set_default_device(mx.cpu)
        yield
        mx.set_default_device(before)


def drawn(low, high, shape=COUNT):
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


@here
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-10, 0), (-87, 88)])
def test_values_have_float32_digits(low, high):
    x = drawn(low, high)
    assert exponential.serves(mx.array(x))
    want = np.exp(x.astype(np.float64))
    for function in (exponential.exp, mx.compile(exponential.exp)):
        assert np.abs(np.asarray(function(mx.array(x))) / want - 1).max() < 2e-7


@here
def test_the_limits_are_exact_and_nan_stays():
    x = np.zeros(COUNT, np.float32)
    x[:7] = [-np.inf, -3e38, -1e10, -88.0, 0.0, np.nan, -np.nan]
    for function in (exponential.exp, mx.compile(exponential.exp)):
        found = np.asarray(function(mx.array(x)))
        assert found[:5].tolist() == [0, 0, 0, 0, 1]
        assert np.isnan(found[5:7]).all()


def test_small_arrays_other_dtypes_and_a_gpu_have_mlx_s_own(monkeypatch):
    x = mx.zeros(COUNT)
    assert not exponential.serves(x[1:])
    assert not exponential.serves(x.astype(mx.bfloat16))
    assert mx.array_equal(exponential.exp(x[1:] + 0.3), mx.exp(x[1:] + 0.3))
    monkeypatch.setattr(hardware, "on_gpu", lambda: True)
    assert not exponential.serves(x)


def test_derivatives_of_every_order_and_kind_and_rows_that_are_mapped():
    x = mx.array(drawn(-3, 3, (2, COUNT)))
    want = mx.exp(x)
    slope = mx.grad(lambda x: exponential.exp(x).sum())
    second = mx.grad(lambda x: (slope(x) * x).sum())
    along = mx.jvp(lambda x: exponential.exp(x), [x], [x])[1][0]
    curved = mx.jvp(slope, [x], [x])[1][0]
    mapped, compiled = mx.vmap(slope)(x), mx.compile(mx.vmap(second))(x)
    expected = [want, want * (x + 1), want * x, want * x, want, want * (x + 1)]
    for one, other in zip([slope(x), second(x), along, curved, mapped, compiled], expected, strict=True):
        np.testing.assert_allclose(one, other, 2e-6, 1e-6)


def test_the_softmax_and_both_of_its_gradients_are_those_of_mlx():
    x = mx.array(drawn(-20, 20, (COUNT // 64, 64)))
    x[0, 1:] = -mx.inf
    factors = mx.array(drawn(-1, 1, x.shape))

    def derived(softmax):
        slope = mx.grad(lambda x: (softmax(x) * factors).sum())
        return softmax(x), slope(x), mx.grad(lambda x: (slope(x) * factors).sum())(x)

    for one, other in zip(derived(exponential.softmax), derived(lambda x: mx.softmax(x, -1)), strict=True):
        np.testing.assert_allclose(one, other, 2e-5, 2e-6)
