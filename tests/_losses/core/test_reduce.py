"""What every loss shares: weights, masks, checks."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import losses
from purestep._losses.core import reduce


def test_weights_broadcast_and_zero_ones_leave_nan_out():
    losses = mx.array([[1.0, mx.nan], [3.0, 5.0]])
    mean = reduce.weighted("loss", losses, mx.array([[2.0, 0.0], [1.0, 1.0]]))
    assert (mean.total.item(), mean.weight.item()) == (10, 4)
    assert reduce.weighted("loss", losses, mx.array([True, False])).total.item() == 4
    assert reduce.weighted("loss", mx.ones((2, 3))).weight.item() == 6


@pytest.mark.parametrize("shape", [(3,), (2, 1, 1), (1, 2, 2), (4, 2)])
def test_weights_that_do_not_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=r"^loss: weights must broadcast to the losses' \(2, 2\), got \("):
        reduce.weighted("loss", mx.ones((2, 2)), mx.ones(shape))


@pytest.mark.parametrize("weights", [1.0, [1.0, 0.0], np.ones(2), mx.ones(2, mx.complex64)])
def test_weights_that_are_no_array_of_numbers_are_refused(weights):
    with pytest.raises(TypeError, match="^loss: weights must be an array of real numbers or booleans, got"):
        reduce.weighted("loss", mx.ones(2), weights)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.int32])
def test_keep_replaces_what_has_no_weight_and_keeps_the_dtype(dtype):
    values = mx.array([[1, 2], [3, 4]], dtype)
    kept = reduce.keep(mx.array([0.0, 0.5]), values, instead=7)
    assert kept.dtype == dtype
    assert kept.tolist() == [[7, 7], [3, 4]]
    assert reduce.keep(None, values) is values


def test_labels_are_clipped_and_marked():
    given = mx.array([[0.0, 0.0], [1.0, 1.0], [mx.nan, 0.0]])
    arrays = reduce.classes("loss", given, mx.array([0, 2, -1]), mx.array([1, 1, 0]))
    logits, labels, valid, weights = arrays
    assert logits.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(valid, [1, np.nan, 1])
    assert weights.tolist() == [1, 1, 0]
    assert reduce.chosen(mx.array([[1.0, 2.0]]), mx.array([1])).tolist() == [2]


def test_what_is_no_array_is_refused_by_name():
    with pytest.raises(TypeError, match="^loss: targets must be an array, got list"):
        reduce.classes("loss", mx.zeros((1, 2)), [0], None)
    with pytest.raises(TypeError, match="^loss: targets must be an array, got float"):
        reduce.pair("loss", mx.zeros(2), 0.5, None)
    with pytest.raises(TypeError, match="^loss: predictions must be an array, got list"):
        reduce.pair("loss", [0.5], mx.zeros(1), None)


def test_an_index_is_ignored_beside_the_weights():
    labels = mx.array([0, -100, 2])
    assert reduce.ignoring(None, labels, None) is None
    assert reduce.ignoring(-100, labels, None).tolist() == [1, 0, 1]
    assert reduce.ignoring(-100, labels, mx.array([0.5, 2.0, 3.0])).tolist() == [0.5, 0, 3]


ROWS, NONE = mx.zeros((0, 4)), mx.zeros(0, mx.int32)


def top_k(student, logits, indices, rest):
    return losses.soft_target_loss(student, logits, teacher_indices=indices, teacher_rest=rest)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.ctc_loss(x[:, None], ROWS[:, :1], NONE[:, None], ROWS[:, :1]),
        lambda x: losses.distillation_loss(x, ROWS, NONE)[0],
        lambda x: losses.info_nce(x, ROWS, symmetric=True),
        lambda x: losses.multiclass_generalized_dice_loss(x, ROWS, where=mx.zeros(0), weights=mx.zeros(0)),
        lambda x: losses.ntxent(x, NONE),
        lambda x: losses.ranking_softmax_loss(x, ROWS),
        lambda x: losses.reinforce_loss(
            losses.token_logps(x[:, None], NONE[:, None]), ROWS[:, 0], ROWS[:, :1]
        ),
        lambda x: top_k(x, *losses.top_k_logits(ROWS, 2)),
    ],
)
def test_a_batch_of_nothing_is_a_defined_zero(loss):
    mean = loss(ROWS)
    assert (mean.total.item(), mean.weight.item(), mean.value.item()) == (0, 0, 0)
    assert mx.grad(lambda x: loss(x).value)(ROWS).shape == (0, 4)
