"""The gradient of a split along the last axis on an NVIDIA GPU: that of `mx.split`, to the bit."""

import mlx.core as mx
import pytest

from purestep._core import cuda, hardware
from purestep._layers import parts

pytestmark = pytest.mark.skipif(not hardware.on_cuda(), reason="needs an NVIDIA GPU")

CASES = [((2, 5, 96), 3), ((7, 64), [8, 40]), ((6, 48), 2), ((4, 30), 3)]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    ("shape", "where"), [((2, 5, 96), 3), ((7, 64), [8, 40]), ((6, 48), 2), ((4, 30), 3)]
)
def test_gradient_is_that_of_mlx(shape, where, dtype):
    x = mx.random.normal(shape, key=mx.random.key(0)).astype(dtype)

    def loss(x, split):
        return sum((index + 2) * mx.square(part).sum() for index, part in enumerate(split(x, where, axis=-1)))

    with cuda.kernels():
        found = mx.grad(lambda x: loss(x, parts.split))(x)
        twice = mx.grad(lambda x: mx.square(mx.grad(lambda x: loss(x, parts.split))(x)).sum())(x)
    assert mx.array_equal(found, mx.grad(lambda x: loss(x, mx.split))(x)).item()
    assert mx.array_equal(
        twice, mx.grad(lambda x: mx.square(mx.grad(lambda x: loss(x, mx.split))(x)).sum())(x)
    ).item()
    transposed = mx.random.normal((4, 6, 8), key=mx.random.key(1)).astype(dtype)
    with cuda.kernels():
        found = mx.grad(lambda x: loss(x.transpose(0, 2, 1), lambda x, _, axis: parts.split(x, 3, axis)))(
            mx.concatenate([transposed] * 4, 1)
        )
    assert found.shape == (4, 24, 8)
