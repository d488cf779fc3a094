"""scale_by_madgrad: the equations in float64, its learning rate in the state, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import schedules
from purestep.optimizers import madgrad
from purestep.transforms import scale_by_madgrad
from tests.refusals import parts
from tests.running import walk

GRADIENTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


@pytest.mark.parametrize(("momentum", "eps"), [(0.9, 1e-6), (0.0, 0.25)])
def test_the_parameters_are_those_of_the_equations(momentum, eps):
    x, squares, sums = 1.0, 0.0, 0.0
    for n, (got, _) in enumerate(walk(scale_by_madgrad(0.1, momentum, eps), GRADIENTS)):
        g = GRADIENTS[n].astype(np.float64)
        weight = (0.1 + eps) * np.sqrt(n + 1)
        squares, sums = squares + weight * g**2, sums + weight * g
        x = momentum * x + (1 - momentum) * (1.0 - sums / (np.cbrt(squares) + eps))
        np.testing.assert_allclose(got, x, rtol=2e-5, atol=1e-6)


def test_opposite_gradients_of_growing_weight_do_not_cancel():
    (_, first), (_, second) = walk(scale_by_madgrad(1.0, 0.0, 1e-12), [[1.0], [-1.0]])
    assert first.s["w"].item() == pytest.approx(1.0)
    assert second.s["w"].item() == pytest.approx(1 - 2**0.5)


def test_sums_are_float32_and_the_start_is_the_parameters_for_bfloat16():
    *_, (_, state) = walk(scale_by_madgrad(0.1), [[1.0]] * 3, mx.bfloat16)
    assert (state.s["w"].dtype, state.grad_sum_sq["w"].dtype) == (mx.float32, mx.float32)
    assert state.x0["w"].dtype == mx.bfloat16


def test_without_gradients_the_parameters_stay():
    *_, (params, _) = walk(scale_by_madgrad(0.1), [[0.0]] * 3)
    assert params.item() == 1.0


def test_the_learning_rate_is_read_from_the_state():
    transform, params = scale_by_madgrad(0.1, 0.0, 1e-12), {"w": mx.array(0.0)}
    state = transform.init(params)
    assert (state.count.item(), state.learning_rate.item()) == (0, pytest.approx(0.1))
    state = state._replace(learning_rate=mx.array(8.0))
    updates, state = transform.update({"w": mx.array(1.0)}, state, params)
    assert updates["w"].item() == pytest.approx(-8 / 2)
    assert (state.count.item(), state.learning_rate.item()) == (1, 8.0)


def test_a_schedule_sees_the_count_before_the_update():
    *_, (_, state) = walk(scale_by_madgrad(schedules.linear(1.0, 0.0, 4)), [[1.0]] * 3)
    assert state.learning_rate.item() == 0.5


def test_the_decay_of_madgrad_is_part_of_the_gradient():
    *_, (decayed, _) = walk(madgrad(0.1, weight_decay=0.5), [[1.0]])
    *_, (plain, _) = walk(madgrad(0.1), [[1.5]])
    assert decayed.item() == pytest.approx(plain.item())


def test_parameters_are_needed():
    transform = scale_by_madgrad(0.1)
    with pytest.raises(ValueError, match="scale_by_madgrad: params .*update"):
        transform.update({"w": mx.array(1.0)}, transform.init({"w": mx.array(1.0)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate ... 0, got -0.1"),
        ({"learning_rate": 0.1, "momentum": 1.0}, "scale_by_madgrad: momentum ... 1, got 1.0"),
        ({"learning_rate": 0.1, "momentum": -0.1}, "scale_by_madgrad: momentum ... 0, got -0.1"),
        ({"learning_rate": 0.1, "eps": 0.0}, "scale_by_madgrad: eps ... 0, got 0.0"),
    ],
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=parts(message)):
        scale_by_madgrad(**options)
