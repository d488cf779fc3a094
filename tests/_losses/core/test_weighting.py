"""Weights and masks of losses."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._losses.core import weighting


def test_weights_broadcast_and_zero_ones_leave_nan_out():
    losses = mx.array([[1.0, mx.nan], [3.0, 5.0]])
    mean = weighting.mean("loss", losses, mx.array([[2.0, 0.0], [1.0, 1.0]]))
    assert (mean.total.item(), mean.weight.item()) == (10, 4)
    assert weighting.mean("loss", losses, mx.array([True, False])).total.item() == 4
    assert weighting.mean("loss", mx.ones((2, 3))).weight.item() == 6


@pytest.mark.parametrize("shape", [(3,), (2, 1, 1), (1, 2, 2), (4, 2)])
def test_weights_that_do_not_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=r"^loss: weights .* broadcast .* losses' \(2, 2\), got \("):
        weighting.mean("loss", mx.ones((2, 2)), mx.ones(shape))


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (1.0, "float"),
        ([1.0, 0.0], "list"),
        (np.ones(2), "ndarray"),
        (mx.ones(2, mx.complex64), "mlx.core.complex64"),
    ],
)
def test_weights_that_are_no_array_of_numbers_are_refused(weights, kind):
    with pytest.raises(TypeError, match=f"^loss: weights .* real numbers .* booleans, got {kind}"):
        weighting.mean("loss", mx.ones(2), weights)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32])
def test_keep_replaces_what_has_no_weight_and_keeps_the_dtype(dtype):
    values = mx.array([[1, 2], [3, 4]], dtype)
    kept = weighting.masked(mx.array([0.0, 0.5]), values, fill=7)
    assert kept.dtype == dtype
    assert kept.tolist() == [[7, 7], [3, 4]]
    assert weighting.masked(None, values) is values


def test_an_index_is_ignored_beside_the_weights():
    labels = mx.array([0, -100, 2])
    assert weighting.ignoring(None, labels, None) is None
    assert weighting.ignoring(-100, labels, None).tolist() == [1, 0, 1]
    assert weighting.ignoring(-100, labels, mx.array([0.5, 2.0, 3.0])).tolist() == [0.5, 0, 3]
