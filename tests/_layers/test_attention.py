"""Attention of ordinary operations against MLX's."""

import mlx.core as mx
import pytest

from purestep._core import hardware
from purestep._layers.attention import attention, differentiable_twice
from tests.trees import array


def masks(queries, keys):
    seen = mx.array([[i + j != 3 for j in range(keys)] for i in range(queries)])
    return {
        "none": None,
        "causal": "causal",
        "Boolean": seen,
        "added": array(7, (1, 4, queries, keys), mx.float32),
    }


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("mask", masks(1, 1))
def test_values_and_gradients_are_those_of_mlx(groups, mask):
    q = array(0, (2, 4, 3, 8), mx.float32)
    k, v = (array(seed, (2, groups, 5, 8), mx.float32) for seed in (1, 2))
    given = masks(3, 5)[mask]

    def loss(function):
        return lambda *qkv: mx.square(function(*qkv, scale=0.3, mask=given)).sum()

    want = mx.value_and_grad(loss(mx.fast.scaled_dot_product_attention), argnums=(0, 1, 2))(q, k, v)
    found = mx.value_and_grad(loss(attention), argnums=(0, 1, 2))(q, k, v)
    assert mx.allclose(found[0], want[0], rtol=1e-5)
    for one, other in zip(found[1], want[1], strict=True):
        assert mx.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_within_the_block_a_gpu_uses_it_and_after_it_mlx(monkeypatch):
    original = mx.fast.scaled_dot_product_attention
    with differentiable_twice():
        assert (mx.fast.scaled_dot_product_attention is original) is not hardware.on_gpu()
    monkeypatch.setattr(hardware, "on_gpu", lambda: True)
    q = array(0, (1, 1, 2, 4), mx.float32)
    with differentiable_twice():
        again = mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0)
        sinks = mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0, sinks=mx.zeros(1))
    assert mx.fast.scaled_dot_product_attention is original
    assert mx.allclose(again, original(q, q, q, scale=1.0))
    assert mx.allclose(sinks, original(q, q, q, scale=1.0, sinks=mx.zeros(1)))


def test_blocks_that_overlap_in_time_leave_nothing_behind(monkeypatch):
    """Two threads need not end in the order in which they began."""
    monkeypatch.setattr(hardware, "on_gpu", lambda: True)
    original = mx.fast.scaled_dot_product_attention
    first, second = differentiable_twice(), differentiable_twice()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert mx.fast.scaled_dot_product_attention is not original
    second.__exit__(None, None, None)
    assert mx.fast.scaled_dot_product_attention is original
