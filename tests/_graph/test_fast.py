"""MLX's fused operations while another thread captures a graph."""

import mlx.core as mx

from purestep._graph import experts, fast


def test_what_stands_in_for_fused_operations_is_mlx_own_outside_a_capture():
    # `mx.fast` is replaced for all threads; one of them may be training.
    logits, targets = mx.random.normal((5, 7), key=mx.random.key(0)), mx.array([0, 1, 2, 3, 4])
    q = mx.random.normal((1, 2, 8, 16), key=mx.random.key(1))
    x, w = mx.ones((6, 1, 4)), mx.ones((2, 4, 3))
    order = mx.array([0, 0, 0, 1, 1, 1], mx.uint32)

    def losses(cross_entropy, attention, gather_mm):
        def loss(logits, q, w):
            products = gather_mm(x, w, rhs_indices=order, sorted_indices=True)
            return cross_entropy(logits, targets).sum() + attention(q, q, q, scale=0.5).sum() + products.sum()

        return mx.value_and_grad(loss, argnums=(0, 1, 2))(logits, q, w)

    found = losses(fast.cross_entropy, fast.attention, experts.gather_mm)
    expected = losses(mx.fast.cross_entropy, mx.fast.scaled_dot_product_attention, mx.gather_mm)
    assert mx.array_equal(found[0], expected[0])
    assert all(mx.array_equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
