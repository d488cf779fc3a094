"""Layers in reduced precision: MLX's values, and gradients that are float32 sums rounded once."""

import io
import re
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from purestep._layers import parts, reduced

ROWS, WIDTH = (2, 2048), 16


def drawn(seed, *shape):
    return mx.random.normal(shape, key=mx.random.key(seed)) + 0.3


TABLE_ROWS = mx.where(
    mx.random.uniform(shape=ROWS, key=mx.random.key(9)) < 0.3,
    3,
    mx.random.randint(0, 20, ROWS, key=mx.random.key(8)),
)
X, SMALL, OTHER = drawn(1, *ROWS, WIDTH), drawn(2, WIDTH), drawn(3, WIDTH)
CASES = {
    "addmm": (reduced.addmm, mx.addmm, (SMALL, X, drawn(4, WIDTH, WIDTH))),
    "affine": (reduced.affine, lambda x, w, b: w * x + b, (X, SMALL, OTHER)),
    "scale": (lambda x, w: reduced.affine(x, w, None), lambda x, w: w * x, (X, SMALL)),
    "rms_norm": (
        lambda x, w: reduced.rms_norm(x, w, 1e-5),
        lambda x, w: mx.fast.rms_norm(x, w, 1e-5),
        (X, SMALL),
    ),
    "layer_norm": (reduced.layer_norm, lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5), (X, SMALL, OTHER)),
    "layer_norm, bias": (
        lambda x, b: reduced.layer_norm(x, None, b),
        lambda x, b: mx.fast.layer_norm(x, None, b, 1e-5),
        (X, OTHER),
    ),
    "lookup": (
        lambda table: parts.lookup(table, TABLE_ROWS),
        lambda table: table[TABLE_ROWS],
        (drawn(5, 20, WIDTH),),
    ),
}


def gradients(fn, args):
    cotangent = drawn(7, *ROWS, WIDTH)
    values, found = mx.vjp(lambda *args: fn(*args).astype(mx.float32), list(args), [cotangent])
    return values[0], found


def error(got, want):
    return (mx.linalg.norm(got.astype(mx.float32) - want) / mx.linalg.norm(want)).item()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_values_are_those_of_mlx_and_gradients_those_of_float32(name, dtype):
    ours, theirs, args = CASES[name]
    # Rounded first, so that the float32 reference has the same arguments.
    args = [array.astype(dtype) for array in args]
    value, found = gradients(ours, args)
    assert mx.array_equal(value, theirs(*args).astype(mx.float32))
    _, wanted = gradients(theirs, [array.astype(mx.float32) for array in args])
    for got, want, array in zip(found, wanted, args, strict=True):
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert error(got, want) < 4e-3


@pytest.mark.parametrize("name", CASES)
def test_float32_is_that_of_mlx(name):
    ours, theirs, args = CASES[name]
    (value, found), (wanted, gradients_wanted) = gradients(ours, args), gradients(theirs, args)
    assert mx.array_equal(value, wanted)
    assert all(mx.array_equal(a, b) for a, b in zip(found, gradients_wanted, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_vmap_and_compile(name):
    ours, _, args = CASES[name]
    args = [array.astype(mx.bfloat16) for array in args]
    want = gradients(ours, args)[1]
    for got in (
        mx.compile(lambda *args: gradients(ours, args)[1])(*args),
        [
            array[1]
            for array in mx.vmap(lambda *args: gradients(ours, args)[1])(*(mx.stack([a, a]) for a in args))
        ],
    ):
        assert all(error(a, b.astype(mx.float32)) < 4e-3 for a, b in zip(got, want, strict=True))


def test_a_row_that_is_looked_up_often():
    ones = mx.zeros(4000, mx.int32)
    gradient = mx.grad(lambda table: parts.lookup(table, ones).sum())(mx.zeros((2, 1), mx.bfloat16))
    assert gradient.tolist() == [[4000], [0]]


def test_the_forward_derivative_of_a_lookup_is_a_lookup():
    table, along = mx.zeros((3, 2), mx.bfloat16), mx.arange(6).reshape(3, 2).astype(mx.bfloat16)
    found = mx.jvp(lambda table: parts.lookup(table, mx.array([2, 0, -1])), [table], [along])[1][0]
    assert found.tolist() == [[4, 5], [0, 1], [4, 5]]


def test_other_arguments_are_those_of_mlx():
    a, b = mx.ones((2, 3), mx.bfloat16), mx.ones((3, 4), mx.bfloat16)
    c = mx.ones((2, 4), mx.bfloat16)
    assert mx.array_equal(reduced.addmm(c, a, b), mx.addmm(c, a, b))
    assert mx.array_equal(reduced.addmm(c[0], a, b, 2.0, 0.5), mx.addmm(c[0], a, b, 2.0, 0.5))
    assert mx.array_equal(reduced.addmm(c[0], a, b, beta=0.5), mx.addmm(c[0], a, b, beta=0.5))
    table = mx.arange(6).reshape(3, 2).astype(mx.bfloat16)
    assert mx.array_equal(parts.lookup(table, slice(1, None)), table[1:])


@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_flattens_each_array_once(biased):
    x, weight, slope = drawn(1, 2, 5, 4), drawn(2, 3, 4), drawn(3, 2, 5, 3)
    bias = [drawn(4, 3)] * biased

    def both(*args):
        return mx.vjp(lambda x, weight, bias=None: reduced.linear(x, weight, bias), list(args), [slope])

    made = mx.compile(both)(x, weight, *bias)
    dot = io.StringIO()
    mx.export_to_dot(dot, *made[0], *made[1][:2])
    counts = Counter(re.findall(r'\[label ="([^"]*)"', dot.getvalue()))
    # The input and the slope as matrices; the output and the gradient of the input as they were.
    assert counts["Flatten"] + counts["Reshape"] + counts["Unflatten"] == 4
    rows, slopes, wide = (np.asarray(a, np.float64) for a in (x, slope, weight))
    want = [slopes @ wide, slopes.reshape(-1, 3).T @ rows.reshape(-1, 4), slopes.sum((0, 1))]
    assert np.allclose(made[0][0], rows @ wide.T + (np.asarray(bias[0]) if biased else 0), atol=1e-5)
    for found, expected in zip(made[1], want, strict=False):
        assert np.allclose(found, expected, atol=1e-5)
    assert reduced.linear(mx.zeros((0, 5, 4)), weight, *(bias or [None])).shape == (0, 5, 3)
