"""Sums of columns on an NVIDIA GPU, against float64; and the product whose bias they are for."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep._core import cuda, hardware
from purestep._layers import reduced
from purestep._layers.kernels import columns

needs_cuda = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")
CLOSE = {mx.float32: 1e-6, mx.bfloat16: 4e-3, mx.float16: 6e-4}


@needs_cuda
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 776), (8192, 2304), (1000, 64), (300, 50304)])
def test_sums_of_columns_are_numpys(shape, dtype):
    x = (1 + mx.random.normal(shape, key=mx.random.key(3))).astype(dtype)
    with cuda.kernels():
        assert columns.serves(x)
        got = columns.column_sums(x)
    want = np.asarray(x.astype(mx.float32), np.float64).reshape(-1, shape[-1]).sum(0)
    error = np.abs(np.asarray(got.astype(mx.float32), np.float64) - want).max()
    assert error < CLOSE[dtype] * np.abs(want).max()


@pytest.mark.parametrize("bias", [True, False])
def test_linear_has_mlxs_values_and_gradients(bias):
    x = mx.random.normal((2, 5, 3), key=mx.random.key(1))
    weight = mx.random.normal((4, 3), key=mx.random.key(2))
    arrays = [x, weight] + [mx.arange(4.0)] * bias

    def plain(x, weight, bias=None):
        out = x @ weight.T
        return out if bias is None else out + bias

    def own(x, weight, bias=None):
        return reduced.linear(x, weight, bias)

    slope = mx.random.normal((2, 5, 4), key=mx.random.key(4))
    want, got = (mx.vjp(function, arrays, [slope]) for function in (plain, own))
    for a, b in zip(want[0] + want[1], got[0] + got[1], strict=True):
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-6).item()


@needs_cuda
def test_a_compiled_step_with_kernels_has_the_gradients_of_the_plain_one():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(32, 64), nn.LayerNorm(64)
            self.up, self.act, self.down = nn.Linear(64, 128), nn.GELU("precise"), nn.Linear(128, 64)

        def __call__(self, x):
            x = self.table(x)
            return self.table.as_linear(x + self.down(self.act(self.up(self.norm(x)))))

    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(Model())

    def loss_fn(params, batch, rng):
        return ps.losses.cross_entropy(apply(params, batch, rng=rng), (batch + 1) % 32)

    transform = ps.optimizers.sgd(1.0)
    step = ps.train_step(loss_fn, transform)
    state = ps.TrainState.create(params, transform)
    batch = mx.random.randint(0, 32, (8, 16), key=mx.random.key(5))
    plain, fast = step(state, batch)[0].params, ps.compiled(step)(state, batch)[0].params
    for (path, a), (_, b) in zip(ps.tree.items(plain), ps.tree.items(fast), strict=True):
        assert mx.allclose(a, b, rtol=1e-3, atol=1e-4).item(), path
