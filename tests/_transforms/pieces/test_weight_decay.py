"""add_decayed_weights: the decay, its mask, and refusals."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import adamw
from purestep.transforms import add_decayed_weights, matrices
from tests.refusals import BAD_NUMBERS, parts

PARAMS = {"w": mx.array([[2.0, -4.0]]), "b": mx.array([8.0])}
GRADIENT = {"w": mx.array([[1.0, 1.0]]), "b": mx.array([1.0])}


def decayed(*arguments, params=PARAMS, **options):
    updates, state = add_decayed_weights(*arguments, **options).update(GRADIENT, (), params)
    assert state == ()
    return updates["w"].tolist(), updates["b"].tolist()


def test_every_parameter_times_the_decay_is_added():
    assert decayed(0.25) == ([[1.5, 0.0]], [3.0])


def test_a_decay_of_zero_adds_nothing():
    assert decayed() == decayed(0) == ([[1.0, 1.0]], [1.0])


def test_the_decay_may_be_a_0d_array():
    assert decayed(mx.array(0.25)) == ([[1.5, 0.0]], [3.0])


@pytest.mark.parametrize("mask", [{"w": True, "b": False}, matrices, lambda params: {"w": True, "b": False}])
def test_a_tree_or_a_function_as_mask_selects_the_parameters_that_decay(mask):
    assert decayed(0.25, mask=mask) == ([[1.5, 0.0]], [1.0])


def test_a_function_for_a_mask_is_given_the_parameters():
    assert decayed(0.25, mask=lambda params: {"w": params is not PARAMS, "b": params is PARAMS})[1] == [3.0]


def test_matrices_selects_two_axes_and_more():
    params = {"a": [mx.array(1.0), mx.zeros(3)], "b": (mx.zeros((3, 1)), mx.zeros((2, 3, 4)), None)}
    assert matrices(params) == {"a": [False, False], "b": (True, True, None)}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_updates_keep_their_dtype(dtype):
    gradient = {"w": mx.array([1.0], dtype)}
    params = {"w": mx.array([2.0], mx.bfloat16 if dtype == mx.float32 else mx.float32)}
    updates, _ = add_decayed_weights(0.25).update(gradient, (), params)
    assert (updates["w"].dtype, updates["w"].tolist()) == (dtype, [1.5])


def test_adamw_decays_apart_from_the_gradients_scale():
    params = {"w": mx.array([2.0, -4.0])}
    transform = adamw(0.5, weight_decay=0.25)
    for size in (1e-3, 1e3):
        updates, _ = transform.update({"w": mx.array([size, 0.0])}, transform.init(params), params)
        np.testing.assert_allclose(updates["w"], [-0.5 * (1 + 0.25 * 2), 0.5 * 0.25 * 4], rtol=1e-4)


def test_adamw_decays_only_the_parameters_that_its_mask_selects():
    transform = adamw(0.5, weight_decay=0.25, mask=matrices)
    zeros = {"w": mx.zeros((1, 2)), "b": mx.zeros(1)}
    updates, _ = transform.update(zeros, transform.init(PARAMS), PARAMS)
    assert (updates["w"].tolist(), updates["b"].tolist()) == ([[-0.25, 0.5]], [0.0])


def test_the_parameters_are_needed():
    message = "add_decayed_weights: params ... update(updates, state, params)"
    with pytest.raises(ValueError, match=parts(message)):
        decayed(0.25, params=None)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"w": True}, "mask ... dict of (w) ... dict of (w, b) ... tree"),
        ({"w": True, "b": None}, "mask ... None ... leaf at b"),
        ({"w": [True], "b": True}, "mask ... list of (0) ... leaf at w"),
        ([True, True], "mask ... list of (0, 1) ... dict of (w, b) ... tree"),
        (lambda params: {"b": True}, "mask ... dict of (b) ... dict of (w, b) ... tree"),
        ({"w": True, "b": 1}, "add_decayed_weights: mask ... True or False, got 1 at b"),
        ({"w": mx.array(True), "b": True}, "mask ... True or False, got array(True"),
    ],
)
def test_a_mask_built_otherwise_or_of_other_than_booleans_is_refused_with_the_path(mask, message):
    with pytest.raises(ValueError, match=parts(message)):
        decayed(0.25, mask=mask)


@pytest.mark.parametrize(
    ("weight_decay", "error", "message"),
    [(-0.1, ValueError, "... 0, got -0.1"), *BAD_NUMBERS],
)
def test_a_bad_decay_is_refused(weight_decay, error, message):
    with pytest.raises(error, match=parts(f"add_decayed_weights: weight_decay {message}")):
        add_decayed_weights(weight_decay)
