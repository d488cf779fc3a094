"""Attention of ordinary operations against MLX's."""

import sys

import mlx.core as mx
import pytest

from purestep._core import hardware
from purestep._core.tracing.graph import primitives
from purestep._layers import blocks
from purestep._layers.attention import attention, differentiable_twice, fast_on_cpu
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


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("queries", [64, 80])
@pytest.mark.parametrize("mask", [*masks(1, 1), "causal of each row", "hidden"])
def test_on_a_cpu_the_fast_attention_has_mlx_s_values_and_gradients(groups, queries, mask, monkeypatch):
    """Also for queries that see no key: longer than the keys, or hidden by a Boolean mask."""
    monkeypatch.setattr(hardware, "on_gpu", lambda: False)
    q = array(0, (2, 4, queries, 8), mx.float32)
    k, v = (array(seed, (2, groups, 64, 8), mx.float32) for seed in (1, 2))
    rows = mx.arange(queries)[:, None] >= mx.arange(64)
    given = masks(queries, 64) | {
        "causal of each row": mx.stack([rows, rows])[:, None],
        "hidden": rows & (mx.arange(queries) != 5)[:, None],
    }
    factors = array(3, q.shape, mx.float32)

    def derived():
        def loss(*qkv):
            return (mx.fast.scaled_dot_product_attention(*qkv, scale=0.3, mask=given[mask]) * factors).sum()

        return mx.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

    want = derived()
    with fast_on_cpu():
        graph = primitives(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=given[mask]))
        found = derived()
    assert "Softmax" not in graph or sys.platform == "darwin"
    assert mx.allclose(found[0], want[0], rtol=1e-5, atol=1e-4)
    for one, other in zip(found[1], want[1], strict=True):
        assert mx.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [*masks(1, 1), "of each head"])
def test_the_fast_attention_in_blocks_is_that_of_one_block(mask, monkeypatch):
    """Blocks of three of the eight groups: the last one has two."""
    monkeypatch.setattr(hardware, "on_gpu", lambda: False)
    q = array(0, (4, 4, 64, 8), mx.float32)
    k, v = (array(seed, (4, 2, 64, 8), mx.float32) for seed in (1, 2))
    given = masks(64, 64) | {"of each head": array(5, (4, 64, 64), mx.float32)}

    def derived():
        def loss(*qkv):
            return mx.square(mx.fast.scaled_dot_product_attention(*qkv, scale=0.3, mask=given[mask])).sum()

        slope = mx.grad(loss, argnums=(0, 1, 2))
        second = mx.grad(lambda *qkv: sum(mx.square(x).sum() for x in slope(*qkv)), argnums=(0, 1, 2))
        mapped = mx.vmap(lambda q: loss(q[None], k[:1], v[:1]))(q)
        return [loss(q, k, v), *slope(q, k, v), *second(q, k, v), mapped]

    want = derived()
    monkeypatch.setattr(blocks, "ELEMENTS", 3 * 2 * 64 * 64)
    with fast_on_cpu():
        found = derived()
    for one, other in zip(found, want, strict=True):
        assert mx.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_arguments_that_the_fast_attention_does_not_have_are_mlx_s_or_its_errors(monkeypatch):
    monkeypatch.setattr(hardware, "on_gpu", lambda: False)
    q, original = array(0, (1, 4, 64, 8), mx.float32), mx.fast.scaled_dot_product_attention
    refused = [
        (q, q[0], q, {}),
        (q, q[:, :3], q[:, :3], {}),
        (q, q[..., :4], q, {}),
        (q, q, q, {"mask": "other"}),
        (q, q, q, {"mask": mx.ones((3, 64), mx.bool_)}),
    ]
    with fast_on_cpu():
        for *arrays, options in refused:
            with pytest.raises(ValueError, match="attention|broadcast"):
                mx.eval(mx.fast.scaled_dot_product_attention(*arrays, scale=1.0, **options))
        for options in ({"sinks": mx.zeros(4)}, {"mask": mx.zeros((64, 64), mx.float16)}):
            found = mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0, **options)
            assert mx.array_equal(found, original(q, q, q, scale=1.0, **options))
        half = q.astype(mx.float16)
        found = mx.fast.scaled_dot_product_attention(half, half, half, scale=1.0)
        assert mx.array_equal(found, original(half, half, half, scale=1.0))
    assert mx.fast.scaled_dot_product_attention is original


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
