"""Kullback-Leibler divergences against optax and torch, recorded in float64."""

import functools
import math

import mlx.core as mx
import numpy as np
import pytest

from purestep._losses.supervised import kl
from tests._losses.recorded import cases, check_contract, compare

LOSSES = ["kl_divergence", "kl_divergence_with_log_targets", "generalized_kl_divergence"]
REVERSED = [f"{name}_reverse" for name in LOSSES[:2]]


@pytest.mark.parametrize("case", cases(*LOSSES, *REVERSED))
def test_value_and_gradients_are_those_of_the_reference(case):
    name = case.partition("/")[0]
    loss = getattr(kl, name.removesuffix("_reverse"))
    # Divergences near zero would lose digits to float32 log-probabilities; none are recorded.
    compare(case, functools.partial(loss, reverse=True) if name in REVERSED else loss)


def test_the_contract_of_every_loss_holds():
    first, second = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    first, second = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (first, second))
    for reverse in (False, True):
        check_contract(kl.kl_divergence, first, mx.exp(second), reverse=reverse)
        check_contract(kl.kl_divergence_with_log_targets, first, second, reverse=reverse)
    check_contract(kl.generalized_kl_divergence, first, mx.exp(second))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_distribution_is_at_no_distance_from_itself(reverse):
    rows = mx.array([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]])
    loss = lambda x: kl.kl_divergence(x, rows, reverse=reverse).value  # noqa: E731
    value, slope = mx.value_and_grad(loss)(mx.log(rows))
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert mx.isfinite(slope).all().item()
    logs = mx.log(rows)
    value = kl.kl_divergence_with_log_targets(logs, logs, reverse=reverse).value
    assert value.item() == pytest.approx(0, abs=1e-7)


def test_a_class_that_only_the_second_rules_out_costs_infinity():
    half, sure = mx.log(mx.array([[0.5, 0.5]])), mx.array([[1.0, 0.0]])
    assert kl.kl_divergence(mx.log(sure), mx.exp(half)).value.item() == math.inf
    assert kl.kl_divergence(half, sure, reverse=True).value.item() == math.inf
    assert kl.kl_divergence_with_log_targets(mx.log(sure), half).value.item() == math.inf
    assert kl.kl_divergence(mx.log(sure), mx.exp(half), reverse=True).value.item() == pytest.approx(
        math.log(2)
    )


def test_a_probability_that_underflows_costs_nothing_and_has_no_nan():
    logs = mx.array([[0.0, -1e4]])
    loss = lambda x: kl.kl_divergence(x, mx.array([[1.0, 0.0]]), reverse=True).value  # noqa: E731
    value, slope = mx.value_and_grad(loss)(logs)
    assert value.item() == 0
    np.testing.assert_array_equal(slope, [[1, 0]])


def test_the_gradient_of_targets_holds_no_nan_where_they_are_zero():
    logs = mx.log(mx.array([[0.5, 0.5]]))
    for name in ("kl_divergence", "generalized_kl_divergence"):
        slope = mx.grad(lambda t, name=name: getattr(kl, name)(logs, t).value)(mx.array([[1.0, 0.0]]))
        assert mx.isfinite(slope).all().item()


@pytest.mark.parametrize("name", LOSSES)
def test_a_negative_probability_and_mismatched_shapes_are_caught(name):
    loss = getattr(kl, name)
    if "log_targets" not in name:
        assert math.isnan(loss(mx.zeros((1, 2)), mx.array([[-0.5, 1.5]])).value.item())
    with pytest.raises(
        ValueError, match=rf"^{name}: (log_)?targets .* log_predictions' shape \(1, 2\), got \(2,\)"
    ):
        loss(mx.zeros((1, 2)), mx.zeros(2))
    with pytest.raises(TypeError, match=f"^{name}: log_predictions .* floating, got mlx.core.int32"):
        loss(mx.zeros((1, 2), mx.int32), mx.zeros((1, 2)))
    with pytest.raises(ValueError, match=rf"^{name}: weights .* broadcast .* losses' \(1,\), got \(1, 2\)"):
        loss(mx.zeros((1, 2)), mx.ones((1, 2)), weights=mx.ones((1, 2)))
