"""Smoothed labels and PolyLoss against optax, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import poly_loss_cross_entropy, smooth_labels
from tests._losses.recorded import RECORD, cases, check_contract, compare
from tests.refusals import parts


@pytest.mark.parametrize("case", cases("poly_loss_cross_entropy"))
def test_poly_loss_is_that_of_optax(case):
    compare(case, poly_loss_cross_entropy, epsilon=1.5)


def test_smoothed_labels_are_those_of_optax():
    smoothed = smooth_labels(mx.array(RECORD["smooth_labels/plain/labels"]), 0.3)
    np.testing.assert_allclose(smoothed, RECORD["smooth_labels/plain/value"], 1e-6)
    assert smooth_labels(mx.zeros((2, 3), mx.bfloat16), 0.5).dtype == mx.bfloat16


def test_the_contract_of_every_loss_holds():
    first, second = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    check_contract(poly_loss_cross_entropy, first, mx.softmax(second, axis=-1))


def test_a_class_ruled_out_costs_nothing_where_its_label_is_zero():
    logits, labels = mx.array([[0.0, 0.0, -mx.inf]]), mx.array([[1.0, 0.0, 0.0]])
    value, slope = mx.value_and_grad(lambda x: poly_loss_cross_entropy(x, labels).value)(logits)
    assert value.item() == pytest.approx(np.log(2) + 1)
    np.testing.assert_allclose(slope, [[-0.5 - 0.5, 0.5 + 0.5, 0]], 1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: smooth_labels(mx.zeros(3), 1.5), ValueError, "smooth_labels: alpha ... 1, got 1.5"),
        (
            lambda: smooth_labels(mx.zeros(3, mx.int32), 0.5),
            TypeError,
            "smooth_labels: labels ... floating, got mlx.core.int32",
        ),
        (
            lambda: smooth_labels(mx.array(1.0), 0.5),
            ValueError,
            "smooth_labels: labels ... one class, got ()",
        ),
        (
            lambda: poly_loss_cross_entropy(mx.zeros((2, 3)), mx.zeros(2)),
            ValueError,
            "poly_loss_cross_entropy: labels ... logits' shape (2, 3), got (2,)",
        ),
        (
            lambda: poly_loss_cross_entropy(mx.zeros(3), mx.zeros(3), epsilon=-2),
            ValueError,
            "poly_loss_cross_entropy: epsilon ... -1, got -2",
        ),
    ],
)
def test_a_bad_argument_is_refused(call, error, message):
    with pytest.raises(error, match=parts(message)):
        call()
