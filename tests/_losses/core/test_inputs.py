"""Checks of arguments, invalid labels, and empty batches."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import losses
from purestep._losses.core import inputs, numerics


def test_labels_are_clipped_and_marked():
    given = mx.array([[0.0, 0.0], [1.0, 1.0], [mx.nan, 0.0]])
    arrays = inputs.classes("loss", given, mx.array([0, 2, -1]), mx.array([1, 1, 0]))
    logits, labels, valid, weights = arrays
    assert logits.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(valid, [1, np.nan, 1])
    assert weights.tolist() == [1, 1, 0]
    assert numerics.gather(mx.array([[1.0, 2.0]]), mx.array([1])).tolist() == [2]


def test_what_is_no_array_is_refused_by_name():
    with pytest.raises(TypeError, match="^loss: targets .* array, got list"):
        inputs.classes("loss", mx.zeros((1, 2)), [0], None)
    with pytest.raises(TypeError, match="^loss: targets .* array, got float"):
        inputs.pair("loss", mx.zeros(2), 0.5, None)
    with pytest.raises(TypeError, match="^loss: predictions .* array, got list"):
        inputs.pair("loss", [0.5], mx.zeros(1), None)


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
