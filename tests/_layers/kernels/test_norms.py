"""Kernels of norms on an NVIDIA GPU, against formulas in float64 and MLX's own."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import cuda, hardware
from purestep._layers import reduced

pytestmark = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")
EPS = 1e-5
CLOSE = {mx.float32: 3e-6, mx.bfloat16: 4e-3, mx.float16: 6e-4}
KINDS = ["layer", "layer, no bias", "layer, bare", "layer, bias", "rms", "rms, bare"]
SHAPES = [(3, 5, 768), (1, 8), (1000, 1032), (70, 4096), (9, 8192), (2050, 64)]
# Each case builds kernels of its own, which takes a second.
CASES = [(kind, (3, 5, 768), mx.bfloat16) for kind in KINDS]
CASES += [("layer", shape, dtype) for shape in SHAPES for dtype in (mx.bfloat16, mx.float32)]
CASES += [("rms", (70, 4096), dtype) for dtype in CLOSE]


@pytest.fixture(autouse=True)
def allowed():
    """Use the kernels, as in a compiled step."""
    with cuda.kernels():
        yield


def draws(shape, dtype, seed=0):
    keys = mx.random.split(mx.random.key(seed), 4)
    x = (3 + mx.random.normal(shape, key=keys[0])).astype(dtype)
    weight, bias = (mx.random.normal(shape[-1:], key=key).astype(dtype) for key in keys[1:3])
    return x, weight, bias, mx.random.normal(shape, key=keys[3]).astype(dtype)


def wide(x):
    return np.asarray(x.astype(mx.float32), np.float64)


def by_hand(x, weight, bias, slope, centered):
    """Return the norm and the gradients of the input, the weight and the bias, in float64."""
    x, slope = wide(x), wide(slope)
    centre = x - x.mean(-1, keepdims=True) if centered else x
    scale = 1 / np.sqrt(np.square(centre).mean(-1, keepdims=True) + EPS)
    unit = centre * scale
    w = 1.0 if weight is None else wide(weight)
    g = slope * w
    mean = g.mean(-1, keepdims=True) if centered else 0.0
    for_x = scale * (g - mean - unit * (g * unit).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    out = unit * w + (0.0 if bias is None else wide(bias))
    return out, for_x, (slope * unit).sum(rows), slope.sum(rows)


def error(got, want):
    return np.abs(wide(got) - want).max() / np.abs(want).max()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "kind", ["layer", "layer, no bias", "layer, bare", "layer, bias", "rms", "rms, bare"]
)
def test_values_and_gradients_are_those_of_the_formula(kind, shape, dtype):
    x, weight, bias, slope = draws(shape, dtype)
    centered = kind.startswith("layer")
    has_weight, has_bias = kind in ("layer", "layer, no bias", "rms"), kind in ("layer", "layer, bias")
    present = [weight] * has_weight + [bias] * has_bias

    def norm(x, *present):
        w = present[0] if has_weight else None
        if not centered:
            return reduced.rms_norm(x, w, EPS)
        return reduced.layer_norm(x, w, present[-1] if has_bias else None, EPS)

    out, found = mx.vjp(norm, [x, *present], [slope])
    want = by_hand(x, weight if has_weight else None, bias if has_bias else None, slope, centered)
    assert error(out[0], want[0]) < CLOSE[dtype]
    assert error(found[0], want[1]) < CLOSE[dtype]
    for got, right in zip(found[1:], [want[2]] * has_weight + [want[3]] * has_bias, strict=True):
        assert got.dtype == dtype
        assert error(got, right) < CLOSE[dtype]


def test_an_odd_address_and_a_transposed_input():
    x, weight, bias, _ = draws((4, 64), mx.bfloat16)
    shifted = mx.concatenate([mx.zeros(3, mx.bfloat16), x.reshape(-1)])[3:].reshape(4, 64)
    turned = mx.array(x.T).T
    want = reduced.layer_norm(x, weight, bias, EPS)
    for same in (shifted, turned):
        assert mx.array_equal(reduced.layer_norm(same, weight, bias, EPS), want).item()


def test_it_can_be_compiled_and_differentiated_twice():
    x, weight, bias, _ = draws((6, 4, 64), mx.float32)

    def loss(x, norm):
        return mx.square(norm(x, weight, bias, EPS)).sum()

    def slope(x, norm):
        return mx.square(mx.grad(loss)(x, norm)).sum()

    second = [mx.grad(slope)(x, norm) for norm in (reduced.layer_norm, mx.fast.layer_norm)]
    assert mx.allclose(*second, rtol=1e-3, atol=1e-2).item()
    compiled = mx.compile(lambda x: reduced.layer_norm(x, weight, bias, EPS))(x)
    assert mx.allclose(compiled, mx.fast.layer_norm(x, weight, bias, EPS), atol=1e-5).item()
