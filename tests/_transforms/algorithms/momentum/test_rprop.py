"""scale_by_rprop: steps that grow, shrink, pause and stay in bounds, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import rprop
from purestep.transforms import scale_by_rprop
from tests.refusals import parts
from tests.running import normal, run


def steps(transform, gradients):
    return [update.item() for update in run(transform, [[g] for g in gradients])[0]]


def test_the_first_update_is_the_present_gradient_s_and_not_the_one_before():
    assert steps(rprop(0.5), [3.0]) == [-0.5]


def test_steps_grow_while_the_sign_stays_and_the_size_of_gradients_does_not_matter():
    assert steps(scale_by_rprop(1.0, eta_plus=1.5), [1e-30, 1e30, 1.0]) == [1.0, 1.5, 2.25]


def test_a_change_of_sign_halves_the_step_and_skips_one():
    got = steps(scale_by_rprop(1.0, eta_minus=0.5, eta_plus=2.0), [1.0, 1.0, -1.0, -1.0, -1.0])
    assert got == [1.0, 2.0, 0.0, -1.0, -2.0]


def test_a_gradient_of_zero_moves_nothing_and_keeps_the_step():
    assert steps(scale_by_rprop(1.0, eta_plus=2.0), [1.0, 0.0, 1.0, 1.0]) == [1.0, 0.0, 1.0, 2.0]


def test_steps_stay_in_bounds():
    transform = scale_by_rprop(1.0, 0.5, 2.0, 0.25, 3.0)
    assert steps(transform, [1.0] * 4) == [1.0, 2.0, 3.0, 3.0]
    assert [abs(u) for u in steps(transform, [1.0, -1.0] * 4)][-2:] == [0.25, 0.0]


def test_each_element_goes_its_own_way():
    updates, state = run(scale_by_rprop(1.0, 0.5, 2.0), [[1.0, 1.0], [1.0, -1.0]])
    assert updates[-1].tolist() == [2.0, 0.0]
    assert state.step_sizes["w"].tolist() == [2.0, 0.5]
    assert state.prev_updates["w"].tolist() == [2.0, 0.0]


def test_a_nan_shows():
    updates, _ = run(scale_by_rprop(1.0), [[float("nan"), 1.0]])
    assert mx.isnan(updates[0]).tolist() == [True, False]


def test_the_first_step_size_may_be_an_array():
    gradients = normal(6, 5)
    for got, want in zip(
        run(scale_by_rprop(mx.array(0.25)), gradients)[0],
        run(scale_by_rprop(0.25), gradients)[0],
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_state_and_the_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(scale_by_rprop(1e-6), [[2.0**-14]] * 2, dtype)
    assert {state.step_sizes["w"].dtype, state.prev_updates["w"].dtype, updates[0].dtype} == {mx.float32}
    assert updates[-1].item() == pytest.approx(1.2e-6, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate ... 0, got 0.0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate ... finite, got nan"),
        ({"learning_rate": mx.zeros(2)}, ValueError, "learning_rate ... 0-d array, got shape"),
        ({"learning_rate": abs}, TypeError, "learning_rate ... number, got <built-in function abs>"),
        ({"eta_minus": 1.0}, ValueError, "eta_minus ... 1, got 1.0"),
        ({"eta_minus": 0}, ValueError, "eta_minus ... 0, got 0"),
        ({"eta_plus": 1.0}, ValueError, "eta_plus ... 1, got 1.0"),
        ({"min_step_size": -1.0}, ValueError, "min_step_size ... 0, got -1.0"),
        ({"max_step_size": 1e-7}, ValueError, "max_step_size ... 1e-06, got 1e-07"),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(options, error, message):
    with pytest.raises(error, match=parts(f"scale_by_rprop: {message}")):
        scale_by_rprop(**{"learning_rate": 0.1, **options})
