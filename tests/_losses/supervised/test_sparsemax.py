"""Sparsemax and Fenchel-Young losses against optax, recorded in float64."""

import math

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import make_fenchel_young_loss, multiclass_sparsemax_loss, sparsemax_loss
from tests._losses.recorded import cases, check_contract, compare

softmax_loss = make_fenchel_young_loss(lambda row: mx.logsumexp(row, axis=-1))


@pytest.mark.parametrize("case", cases("sparsemax_loss"))
def test_the_loss_of_two_classes_is_that_of_optax(case):
    compare(case, sparsemax_loss)


@pytest.mark.parametrize("case", cases("multiclass_sparsemax_loss"))
def test_the_loss_of_many_classes_is_that_of_optax(case):
    compare(case, multiclass_sparsemax_loss)


@pytest.mark.parametrize("case", cases("fenchel_young_loss"))
def test_a_fenchel_young_loss_is_that_of_optax(case):
    compare(case, softmax_loss)


def test_the_contract_of_every_loss_holds():
    first, second = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    check_contract(sparsemax_loss, first, second > 0)
    check_contract(multiclass_sparsemax_loss, first, mx.array([0, 1, 2, 2, 1, 0]))
    check_contract(softmax_loss, first, mx.softmax(second, axis=-1))


def test_the_gradient_of_many_classes_has_exact_zeros_and_a_second_derivative():
    loss = lambda x: multiclass_sparsemax_loss(x, mx.array([0])).total  # noqa: E731
    slope = mx.grad(loss)(mx.array([[0.5, 0.0, -9.0]]))
    np.testing.assert_allclose(slope, [[-0.25, 0.25, 0]], 1e-6)
    curvature = mx.grad(lambda x: mx.grad(loss)(x)[0, 0])(mx.array([[0.5, 0.0, -9.0]]))
    np.testing.assert_allclose(curvature, [[0.5, -0.5, 0]], 1e-6, 1e-7)


def test_labels_out_of_range_make_nan():
    assert math.isnan(sparsemax_loss(mx.zeros(2), mx.array([0, 2])).value.item())
    value, slope = mx.value_and_grad(lambda x: multiclass_sparsemax_loss(x, mx.array([0, 3])).value)(
        mx.zeros((2, 3))
    )
    assert math.isnan(value.item())
    assert mx.isnan(slope[1]).any().item()


def test_a_regularizer_takes_arguments_of_its_own():
    loss = make_fenchel_young_loss(lambda row, scale, shift=0.0: scale * mx.max(row) + shift)
    assert loss(mx.array([[1.0, 0.0]]), mx.array([[0.0, 1.0]]), 2.0, shift=0.5).value.item() == 1.5


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="^make_fenchel_young_loss: max_fun .* callable, got 3"):
        make_fenchel_young_loss(3)
    with pytest.raises(
        ValueError, match=r"^fenchel_young_loss: targets .* scores' shape \(2, 3\), got \(3,\)"
    ):
        softmax_loss(mx.zeros((2, 3)), mx.zeros((3,)))
    with pytest.raises(ValueError, match=r"^sparsemax_loss: labels .* logits' shape \(2, 3\), got \(3,\)"):
        sparsemax_loss(mx.zeros((2, 3)), mx.zeros((3,)))
    with pytest.raises(
        ValueError, match=r"^multiclass_sparsemax_loss: labels .* scores' shape .* \(1,\) and \(2, 3\)"
    ):
        multiclass_sparsemax_loss(mx.zeros((2, 3)), mx.array([0]))
