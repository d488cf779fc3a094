"""The ranking loss against optax, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import ranking_softmax_loss
from tests._losses.recorded import cases, compare


@pytest.mark.parametrize("case", cases("ranking_softmax_loss"))
def test_value_and_gradient_are_those_of_optax(case):
    def loss(item_weights=None, **inputs):
        return ranking_softmax_loss(weights=item_weights, **inputs)

    compare(case, loss)


def test_padding_may_hold_nan_and_a_list_of_nothing_else_weighs_nothing():
    logits = mx.array([[0.0, 0.0, mx.nan], [mx.nan, mx.nan, mx.inf]])
    labels, there = mx.array([[1.0, 0.0, mx.nan], [mx.nan, 1.0, 1.0]]), mx.array([[1, 1, 0], [0, 0, 0]])
    loss = lambda x: ranking_softmax_loss(x, labels, where=there)  # noqa: E731
    assert loss(logits).weight.item() == 1
    value, slope = mx.value_and_grad(lambda x: loss(x).value)(logits)
    assert value.item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(slope, [[-0.5, 0.5, 0], [0, 0, 0]], 1e-6)
    none = ranking_softmax_loss(logits, labels, where=mx.zeros((2, 3)))
    assert (none.total.item(), none.weight.item(), none.value.item()) == (0, 0, 0)


def test_parts_merge_half_precision_is_wide_and_vmap_is_a_loop():
    logits, labels = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    labels = mx.abs(labels)
    whole = ranking_softmax_loss(logits, labels)
    mapped = mx.vmap(ranking_softmax_loss)(logits, labels)
    np.testing.assert_allclose(mapped.total.sum(), whole.total, 1e-5)
    assert mapped.weight.sum().item() == whole.weight.item() == 6
    half = logits.astype(mx.bfloat16)
    low, high = (ranking_softmax_loss(x, labels).value for x in (half, half.astype(mx.float32)))
    np.testing.assert_allclose(low, high, 1e-6)


def test_bad_arguments_are_refused():
    name = "ranking_softmax_loss"
    with pytest.raises(ValueError, match=rf"^{name}: labels .* logits' shape \(2, 3\), got \(3,\)"):
        ranking_softmax_loss(mx.zeros((2, 3)), mx.zeros(3))
    with pytest.raises(ValueError, match=rf"^{name}: where .* broadcast .* logits' \(2, 3\), got \(2,\)"):
        ranking_softmax_loss(mx.zeros((2, 3)), mx.zeros((2, 3)), where=mx.ones(2))
    with pytest.raises(ValueError, match=rf"^{name}: weights .* broadcast .* logits' \(2, 3\), got \(2,\)"):
        ranking_softmax_loss(mx.zeros((2, 3)), mx.zeros((2, 3)), weights=mx.ones(2))
    with pytest.raises(ValueError, match=rf"^{name}: logits .* one item, got \(2, 0\)"):
        ranking_softmax_loss(mx.zeros((2, 0)), mx.zeros((2, 0)))
