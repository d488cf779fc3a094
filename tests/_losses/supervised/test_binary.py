"""Losses of binary labels against optax and torch, recorded in float64."""

import math

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import binary_cross_entropy, sigmoid_binary_cross_entropy, sigmoid_focal_loss
from tests._losses.recorded import cases, check_contract, compare
from tests.refusals import parts

ALL = {"pos_weight": 3.0, "label_smoothing": 0.1, "z_loss": 0.1}
LOSSES = [sigmoid_binary_cross_entropy, sigmoid_focal_loss, binary_cross_entropy]


@pytest.mark.parametrize("case", cases("sigmoid_binary_cross_entropy", "sigmoid_binary_cross_entropy_soft"))
def test_cross_entropy_from_logits_is_that_of_optax(case):
    compare(case, sigmoid_binary_cross_entropy, **(ALL if case.endswith("/all") else {}))


@pytest.mark.parametrize("case", cases("sigmoid_focal_loss", "sigmoid_focal_loss_soft"))
def test_the_focal_loss_is_that_of_optax(case):
    compare(case, sigmoid_focal_loss, **({} if "default" in case else {"alpha": 0.25, "gamma": 1.5}))


@pytest.mark.parametrize("case", cases("binary_cross_entropy"))
def test_cross_entropy_from_probabilities_is_that_of_torch(case):
    compare(case, binary_cross_entropy)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_contract_of_every_loss_holds(loss):
    check_contract(loss, *mx.random.uniform(0.1, 0.9, (2, 6, 3), key=mx.random.key(0)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_makes_the_loss_and_its_gradient_nan(loss, label):
    value, slope = mx.value_and_grad(lambda x: loss(x, mx.array([0, label])).value)(mx.array([0.5, 0.5]))
    assert math.isnan(value.item())
    assert math.isnan(slope[1].item())
    kept = loss(mx.array([0.5, 0.5]), mx.array([0, label]), weights=mx.array([True, False]))
    assert math.isfinite(kept.total.item())


def test_a_probability_of_exactly_zero_or_one_costs_a_hundred_when_wrong():
    probabilities, labels = mx.array([0.0, 1.0, 0.0, 1.0]), mx.array([1, 0, 0, 1])
    loss, slope = mx.value_and_grad(lambda p: binary_cross_entropy(p, labels).total)(probabilities)
    assert loss.item() == 200
    assert mx.isfinite(slope).all().item()
    assert math.isnan(binary_cross_entropy(mx.array([1.5]), mx.array([1])).total.item())


def test_a_sure_focal_loss_has_neither_loss_nor_nan():
    loss = lambda x: sigmoid_focal_loss(x, mx.array([1.0, 0.0, 1.0, 0.0])).total  # noqa: E731
    value, slope = mx.value_and_grad(loss)(mx.array([1e4, -1e4, 0.0, 0.0]))
    np.testing.assert_allclose(value, 2 * 0.25 * math.log(2), 1e-6)
    assert mx.isfinite(slope).all().item()


def test_ignored_labels_are_left_out():
    logits, labels = mx.array([0.0, mx.nan]), mx.array([1, -100])
    loss = sigmoid_binary_cross_entropy(logits, labels, ignore_index=-100)
    assert loss.weight.item() == 1
    assert loss.value.item() == pytest.approx(math.log(2))


def test_the_weight_of_positives_may_differ_by_class():
    loss = sigmoid_binary_cross_entropy(
        mx.zeros((2, 2)), mx.array([[1, 1], [0, 0]]), pos_weight=mx.array([3.0, 1])
    )
    assert loss.total.item() == pytest.approx(6 * math.log(2))
    assert loss.weight.item() == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing ... 1, got 1.0"),
        ({"z_loss": -1}, "z_loss ... 0, got -1"),
        ({"pos_weight": -1.0}, "pos_weight ... 0, got -1.0"),
        ({"pos_weight": mx.ones(3)}, "pos_weight ... broadcast ... logits' (2,), got (3,)"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=parts(f"sigmoid_binary_cross_entropy: {message}")):
        sigmoid_binary_cross_entropy(mx.zeros(2), mx.zeros(2), **options)


def test_bad_focal_options_and_shapes_are_refused():
    with pytest.raises(ValueError, match="^sigmoid_focal_loss: gamma .* 0, got -1"):
        sigmoid_focal_loss(mx.zeros(2), mx.zeros(2), gamma=-1)
    with pytest.raises(ValueError, match="^sigmoid_focal_loss: alpha .* 1, got 2"):
        sigmoid_focal_loss(mx.zeros(2), mx.zeros(2), alpha=2)
    for loss in LOSSES:
        with pytest.raises(ValueError, match=rf"^{loss.__name__}: labels .* shape \(2, 1\), got \(2,\)"):
            loss(mx.zeros((2, 1)), mx.zeros(2))
        with pytest.raises(TypeError, match=f"^{loss.__name__}: .* floating, got mlx.core.int32"):
            loss(mx.zeros(2, mx.int32), mx.zeros(2))
