"""Margin losses against optax and torch, recorded in float64."""

import math

import mlx.core as mx
import pytest

from purestep._losses.supervised import margin
from tests._losses.recorded import cases, check_contract, compare

BINARY = ["hinge_loss", "perceptron_loss"]
MULTICLASS = ["multiclass_hinge_loss", "multiclass_perceptron_loss"]


@pytest.mark.parametrize("case", cases(*BINARY, *MULTICLASS, "margin_ranking_loss"))
def test_value_and_gradients_are_those_of_the_reference(case):
    name = case.partition("/")[0]
    compare(case, getattr(margin, name), **({"margin": 0.5} if "ranking" in name else {}))


def test_the_contract_of_every_loss_holds():
    first, second = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    signs = mx.sign(mx.random.normal((6, 3), key=mx.random.key(1)))
    for name in BINARY:
        check_contract(getattr(margin, name), first, signs)
    for name in MULTICLASS:
        check_contract(getattr(margin, name), first, mx.array([0, 1, 2, 2, 1, 0]))
    check_contract(margin.margin_ranking_loss, first, second, signs, margin=0.3)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("target", [0, 2])
def test_a_target_that_is_no_sign_makes_the_loss_and_its_gradient_nan(name, target):
    loss = lambda x: getattr(margin, name)(x, mx.array([1, target])).value  # noqa: E731
    value, slope = mx.value_and_grad(loss)(mx.array([0.1, -0.1]))
    assert math.isnan(value.item())
    assert math.isnan(slope[1].item())


@pytest.mark.parametrize("name", MULTICLASS)
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_makes_the_loss_and_its_gradient_nan(name, label):
    loss = lambda x, **options: getattr(margin, name)(x, mx.array([1, label]), **options).value  # noqa: E731
    value, slope = mx.value_and_grad(loss)(mx.zeros((2, 3)))
    assert math.isnan(value.item())
    assert mx.isnan(slope[1]).any().item()
    assert math.isfinite(loss(mx.zeros((2, 3)), weights=mx.array([1, 0])).item())


def test_bad_arguments_are_refused():
    for name in BINARY:
        with pytest.raises(
            ValueError, match=rf"^{name}: targets .* predictor_outputs' shape \(2, 1\), got \(2,\)"
        ):
            getattr(margin, name)(mx.zeros((2, 1)), mx.ones(2))
    for name in MULTICLASS:
        with pytest.raises(ValueError, match=rf"^{name}: labels .* scores' shape .* \(1,\) and \(2, 3\)"):
            getattr(margin, name)(mx.zeros((2, 3)), mx.array([0]))
        with pytest.raises(TypeError, match=f"^{name}: labels .* integers, got mlx.core.float32"):
            getattr(margin, name)(mx.zeros((2, 3)), mx.zeros(2))
        with pytest.raises(ValueError, match=rf"^{name}: scores .* one class, got \(2, 0\)"):
            getattr(margin, name)(mx.zeros((2, 0)), mx.array([0, 0]))
    with pytest.raises(
        ValueError, match=r"^margin_ranking_loss: inputs2 .* inputs1' shape \(2,\), got \(3,\)"
    ):
        margin.margin_ranking_loss(mx.zeros(2), mx.zeros(3), mx.ones(2))
    with pytest.raises(ValueError, match="^margin_ranking_loss: margin .* finite, got inf"):
        margin.margin_ranking_loss(mx.zeros(2), mx.zeros(2), mx.ones(2), margin=math.inf)
