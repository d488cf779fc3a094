"""Activations: MLX's values, the derivative by formula, and nothing kept but the input."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from purestep._layers import activations

NAMES = ["gelu", "gelu_approx", "mish", "silu"]
X = np.linspace(-12, 12, 4001, dtype=np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def slope(name):
    """Return the derivative in float64, by formula."""
    x = X.astype(np.float64)
    if name == "gelu":
        cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
        return cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if name == "gelu_approx":
        root = math.sqrt(2 / math.pi)
        t = np.tanh(root * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)
    if name == "mish":
        t = np.tanh(np.log1p(np.exp(x)))
        return t + x * (1 - t * t) * sigmoid(x)
    return sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def gradient(name, x):
    return mx.grad(lambda x: getattr(activations, name)(x).astype(mx.float32).sum())(x)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_mlx_and_derivatives_those_of_the_formula(name):
    x = mx.array(X)
    assert mx.array_equal(getattr(activations, name)(x), getattr(nn, name)(x))
    assert np.abs(np.array(gradient(name, x)) - slope(name)).max() < 5e-7


@pytest.mark.parametrize("name", NAMES)
def test_large_arrays_have_the_values_and_derivatives_of_the_formulas(name):
    """Exponentials of their own on a CPU: the last digit may differ from MLX's."""
    x = mx.array(np.tile(X, 5))
    for function in (getattr(activations, name), mx.compile(getattr(activations, name))):
        np.testing.assert_allclose(function(x), getattr(nn, name)(x), 2e-7, 5e-7)
    assert np.abs(np.array(gradient(name, x)) - np.tile(slope(name), 5)).max() < 5e-7
    ends = np.zeros(len(X) * 5, np.float32)
    ends[:4] = [-1e30, -100, 100, 1e30]
    found = getattr(activations, name)(mx.array(ends))
    np.testing.assert_allclose(found[:4], [0, 0, 100, 1e30], 2e-7, 1e-30)
    assert gradient(name, mx.array(ends))[:4].tolist() == [0, 0, 1, 1]
    assert mx.isnan(getattr(activations, name)(mx.full(len(X) * 5, mx.nan))).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_reduced_precision_rounds_the_derivative_once(name, dtype):
    x = mx.array(X).astype(dtype)
    got = gradient(name, x)
    assert got.dtype == dtype
    exact = gradient(name, x.astype(mx.float32))
    assert (
        mx.abs(got.astype(mx.float32) - exact).max().item()
        <= 2.0 ** -(8 if dtype == mx.bfloat16 else 11) * 1.2
    )


@pytest.mark.parametrize("name", NAMES)
def test_large_inputs_have_the_derivative_of_the_limit(name):
    got = gradient(name, mx.array([-1e30, -1e4, -100.0, 100.0, 1e4, 1e30]))
    assert got.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_vmap_and_compile(name):
    x, f = mx.array([-1.5, 0.3, 2.0]), getattr(activations, name)
    once = mx.grad(lambda x: f(x).sum())
    twice = mx.grad(lambda x: once(x).sum())(x)
    h = 1e-2
    assert mx.allclose(twice, (once(x + h) - once(x - h)) / (2 * h), atol=1e-3)
    assert mx.allclose(mx.vmap(mx.grad(f))(x), once(x), atol=1e-6)
    assert mx.allclose(mx.compile(once)(x), once(x), atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_approx", "mish"])
def test_the_gradient_keeps_only_the_input(name):
    w = mx.eye(128) + 0
    x = mx.random.normal((256, 128), key=mx.random.key(0))
    mx.eval(x, w)

    def kept(f, layers):
        def loss(x, w):
            for _ in range(layers):
                x = f(x @ w)
            return x.sum()

        mx.synchronize()
        base = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(loss, argnums=(0, 1))(x, w))
        return (mx.get_peak_memory() - base) / x.nbytes

    def each(f):
        return (kept(f, 40) - kept(f, 10)) / 30

    # The product with w keeps its input too, so a layer keeps two arrays.
    assert each(getattr(activations, name)) < 2.5 < 3.5 < each(getattr(nn, name))
