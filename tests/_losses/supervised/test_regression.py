"""Regression losses against optax and torch, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._losses.supervised import regression
from tests._losses.recorded import cases, check_contract, compare

OPTIONS = {"huber_loss": {"delta": 1.5}, "smooth_l1_loss": {"beta": 0.5}}
LOSSES = ["squared_error", "l2_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "log_cosh"]


@pytest.mark.parametrize("case", cases(*LOSSES))
def test_value_and_gradients_are_those_of_the_reference(case):
    name = case.partition("/")[0]
    compare(case, getattr(regression, name), **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", LOSSES)
def test_the_contract_of_every_loss_holds(name):
    first, second = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    check_contract(getattr(regression, name), first, second)


@pytest.mark.parametrize("name", LOSSES)
def test_an_error_of_zero_has_neither_loss_nor_gradient(name):
    value, slope = mx.value_and_grad(lambda x: getattr(regression, name)(x, mx.ones(3)).value)(mx.ones(3))
    assert value.item() == 0
    np.testing.assert_array_equal(slope, np.zeros(3))


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_are_compared_and_never_broadcast(name):
    with pytest.raises(ValueError, match=rf"^{name}: targets .* predictions' shape \(3, 1\), got \(3,\)"):
        getattr(regression, name)(mx.zeros((3, 1)), mx.zeros(3))
    with pytest.raises(ValueError, match=rf"^{name}: weights .* broadcast .* losses' \(3,\), got \(2,\)"):
        getattr(regression, name)(mx.zeros(3), mx.zeros(3), weights=mx.ones(2))
    with pytest.raises(TypeError, match=rf"^{name}: predictions .* floating, got mlx.core.int32"):
        getattr(regression, name)(mx.zeros(3, mx.int32), mx.zeros(3))


@pytest.mark.parametrize(("name", "option"), [("huber_loss", "delta"), ("smooth_l1_loss", "beta")])
def test_a_threshold_of_zero_is_refused(name, option):
    with pytest.raises(ValueError, match=rf"^{name}: {option} .* 0, got 0"):
        getattr(regression, name)(mx.zeros(3), mx.zeros(3), **{option: 0})


def test_the_second_derivative_of_huber_is_that_of_its_pieces():
    slope = mx.grad(lambda x: regression.huber_loss(x, mx.zeros(3)).total)
    curvature = mx.grad(lambda x: slope(x).sum())(mx.array([0.5, -3.0, 3.0]))
    np.testing.assert_allclose(curvature, [1, 0, 0])


def test_compiled_it_is_the_same():
    first, second = mx.random.normal((2, 4), key=mx.random.key(1))
    loss = regression.huber_loss
    np.testing.assert_allclose(mx.compile(loss)(first, second).value, loss(first, second).value, 1e-6)
