"""Small transforms, each worked by hand."""

import re

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.optimizers import optimistic_adam, optimistic_adam_v2
from purestep.schedules import linear
from purestep.transforms import (
    centralize,
    normalize_by_update_norm,
    scale_by_optimistic_gradient,
    scale_by_polyak,
    scale_by_schedule,
)

NAN = float("nan")


def test_a_schedule_sees_the_count_before_the_increment():
    transform = scale_by_schedule(linear(1.0, 0.0, 4))
    state, seen = transform.init({}), []
    for _ in range(5):
        updates, state = transform.update({"w": mx.array(8.0, mx.bfloat16)}, state)
        seen.append(updates["w"].item())
    assert seen == [8.0, 6.0, 4.0, 2.0, 0.0]
    assert updates["w"].dtype == mx.bfloat16
    assert state.count.item() == 5


def test_a_unit_is_centered_over_what_it_takes_in():
    updates = {"w": mx.array([[1.0, 3.0], [10.0, 30.0]]), "b": mx.array([1.0, 3.0]), "s": mx.array(2.0)}
    got, _ = centralize().update(updates, ())
    assert mx.array_equal(got["w"], mx.array([[-1.0, 1.0], [-10.0, 10.0]]))
    assert mx.array_equal(got["b"], updates["b"])
    assert mx.array_equal(got["s"], updates["s"])
    filters = mx.random.normal((2, 3, 3, 4), key=mx.random.key(0))
    centered = centralize().update({"w": filters}, ())[0]["w"]
    np.testing.assert_allclose(centered.sum(axis=(1, 2, 3)), 0, atol=1e-5)


def test_a_mean_is_taken_in_float32_and_dtypes_stay():
    updates = {"w": mx.full((1, 3000), 40.0, mx.float16), "e": mx.zeros((2, 0))}  # the sum is beyond float16
    got, _ = centralize().update(updates, ())
    assert mx.array_equal(got["w"], mx.zeros((1, 3000), mx.float16))
    assert got["w"].dtype == mx.float16
    assert got["e"].shape == (2, 0)


def test_all_updates_together_take_one_norm():
    updates = {"a": mx.array([3.0, 0.0]), "b": mx.array(4.0, mx.float16)}
    got, _ = normalize_by_update_norm(2.0).update(updates, ())
    assert ps.tree.norm(got).item() == pytest.approx(2.0, rel=1e-3)
    assert got["b"].dtype == mx.float16
    assert mx.array_equal(normalize_by_update_norm().update({"a": mx.zeros(2)}, ())[0]["a"], mx.zeros(2))


@pytest.mark.parametrize(
    ("options", "value", "step"),
    [
        ({}, 1.0, 0.04),
        ({"f_min": 0.5}, 1.0, 0.02),
        ({"eps": 25.0}, 1.0, 0.02),
        ({"max_learning_rate": 0.01}, 1.0, 0.01),
        ({}, -1.0, -0.04),
        ({"variant": "sps+"}, -1.0, 0.0),
        ({}, NAN, NAN),
    ],
)
def test_polyaks_step_is_the_gap_over_the_squared_norm(options, value, step):
    updates = {"a": mx.array(3.0), "b": mx.array([0.0, 4.0])}
    got, _ = scale_by_polyak(**options).update(updates, (), value=mx.array(value))
    np.testing.assert_allclose(got["a"], 3 * step, 1e-6)
    np.testing.assert_allclose(got["b"][1], 4 * step, 1e-6)


def test_polyak_needs_a_value_and_does_not_move_where_it_is_flat():
    with pytest.raises(ValueError, match="scale_by_polyak: value is needed"):
        scale_by_polyak().update({"w": mx.ones(2)}, ())
    for gradient in (mx.zeros(2), mx.full(2, 1e-9)):
        got, _ = scale_by_polyak().update({"w": gradient}, (), value=mx.array(1.0))
        assert mx.array_equal(got["w"], mx.zeros(2))


def test_polyak_is_handed_the_loss_through_a_chain():
    transform = ps.chain(scale_by_polyak(), ps.transforms.scale(-1.0))
    got, _ = transform.update({"w": mx.array(2.0)}, transform.init({}), value=mx.array(1.0))
    assert got["w"].item() == -0.5


def test_optimism_adds_the_change_of_the_gradient():
    transform, seen = scale_by_optimistic_gradient(2.0, 0.5), []
    state = transform.init({"w": mx.array(0.0, mx.float16)})
    for gradient in (4.0, 6.0, 1.0):
        updates, state = transform.update({"w": mx.array(gradient, mx.float16)}, state)
        seen.append(updates["w"].item())
    assert seen == [8.0, 13.0, -0.5]
    assert updates["w"].dtype == state.previous_gradient["w"].dtype == mx.float32
    assert not state.is_initial_step.item()


def test_optimistic_adam_takes_optimism_in_proportion_to_the_rate():
    params, results = {"w": mx.ones(3)}, []
    for transform in (optimistic_adam(0.1, 0.05), optimistic_adam_v2(0.1, beta=0.5)):
        state = transform.init(params)
        for scale in (1.0, -2.0):
            updates, state = transform.update({"w": scale * mx.ones(3)}, state, params)
        results.append(updates["w"])
    assert mx.array_equal(*results)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: scale_by_schedule(0.1), TypeError, "scale_by_schedule: step_size_fn must be callable"),
        (lambda: normalize_by_update_norm(-1.0), ValueError, "scale_factor must be at least 0, got -1.0"),
        (lambda: normalize_by_update_norm(eps=-1.0), ValueError, "eps must be at least 0, got -1.0"),
        (lambda: scale_by_polyak(NAN), ValueError, "f_min must be finite, got nan"),
        (lambda: scale_by_polyak(eps=-1.0), ValueError, "eps must be at least 0, got -1.0"),
        (lambda: scale_by_polyak(variant="max"), ValueError, "variant must be 'sps' or 'sps+', got 'max'"),
        (lambda: scale_by_optimistic_gradient(NAN), ValueError, "alpha must be finite, got nan"),
        (lambda: scale_by_optimistic_gradient(1.0, NAN), ValueError, "beta must be finite, got nan"),
    ],
)
def test_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
