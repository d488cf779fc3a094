"""schedule_free: its three sequences by their definition, the average, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import eval_params, schedules
from purestep.optimizers import schedule_free_adamw, schedule_free_sgd, sgd
from purestep.transforms import scale, schedule_free, schedule_free_eval_params
from tests.refusals import parts

GRADIENTS = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


def walk(transform, gradients, dtype=mx.float32):
    """Yield the parameters after each gradient, and the state."""
    params = {"w": mx.ones(np.shape(gradients)[1:], dtype), "none": None}
    state = transform.init(params)
    for gradient in gradients:
        updates = {"w": mx.array(gradient).astype(dtype), "none": None}
        updates, state = transform.update(updates, state, params)
        params = ps.apply_updates(params, updates)
        yield params, state


@pytest.mark.parametrize(("b1", "power"), [(0.9, 2.0), (0.5, 0.0), (1.0, 1.0)])
def test_the_three_sequences_are_those_of_the_definition(b1, power):
    rate = schedules.linear(0.0, 0.5, 4)
    x = z = 1.0
    total = highest = 0.0
    for n, (params, state) in enumerate(walk(schedule_free(sgd(rate), rate, b1, power), GRADIENTS)):
        z = z - 0.5 * min(n / 4, 1) * GRADIENTS[n].astype(np.float64)
        highest = max(highest, 0.5 * min((n + 1) / 4, 1))
        total += highest**power
        share = highest**power / total
        x = (1 - share) * x + share * z
        np.testing.assert_allclose(state.z["w"], z, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(params["w"], b1 * x + (1 - b1) * z, rtol=2e-5, atol=1e-6)
        average = schedule_free_eval_params(state, params)
        np.testing.assert_allclose(average["w"], x, rtol=2e-5, atol=1e-5)
        assert average["none"] is None


def test_a_constant_rate_makes_the_plain_mean():
    visited = []
    for params, state in walk(schedule_free_sgd(0.1), GRADIENTS):
        visited.append(np.array(state.z["w"]))
        average = schedule_free_eval_params(state, params)["w"]
        np.testing.assert_allclose(average, np.mean(visited, axis=0), rtol=1e-5, atol=1e-6)


def test_while_the_rate_is_zero_nothing_moves():
    zero = schedules.constant(0.0)
    *_, (params, state) = walk(schedule_free(sgd(zero), zero), GRADIENTS)
    assert params["w"].tolist() == [1.0] * 5
    assert (state.weight_sum.item(), state.step_count.item()) == (0.0, 9)


def test_z_and_the_scalars_are_float32_for_bfloat16_parameters_unless_asked():
    for dtype, want in ((None, mx.float32), (mx.bfloat16, mx.bfloat16)):
        transform = schedule_free_sgd(0.1, state_dtype=dtype)
        params = {"w": mx.ones(3, mx.bfloat16)}
        state = transform.init(params)
        updates, new = transform.update(params, state, params)
        assert (state.z["w"].dtype, new.z["w"].dtype) == (want, want)
        assert (updates["w"].dtype, new.b1.dtype, new.max_lr.dtype) == (mx.float32,) * 3
        assert schedule_free_eval_params(new, params)["w"].dtype == mx.bfloat16


def test_small_steps_from_large_parameters_are_not_lost_in_a_difference():
    transform, params = schedule_free(scale(-1.0), 1.0, b1=0.5), {"w": mx.array(1000.0)}
    updates, _ = transform.update({"w": mx.array(2.0**-13)}, transform.init(params), params)  # 2 ulp
    assert updates["w"].item() == -(2.0**-13)


def test_the_one_learning_rate_in_the_state_is_that_of_the_base_optimizer():
    ((path, rate),) = ps.tree.fields(schedule_free_sgd(0.1).init({"w": mx.array(1.0)}), "learning_rate")
    assert (path, rate.item()) == ("base_optimizer_state.1.1.learning_rate", pytest.approx(0.1))


def test_the_average_is_found_in_a_chain():
    transform, params = ps.chain(scale(2.0), schedule_free_sgd(0.1)), {"w": mx.array(1.0)}
    updates, state = transform.update(params, transform.init(params), params)
    params = ps.apply_updates(params, updates)
    assert eval_params(state, params)["w"].item() == schedule_free_eval_params(state[1], params)["w"].item()


def test_extra_arguments_reach_the_base_optimizer():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append(value)
        return updates, state

    transform = schedule_free(ps.GradientTransform(lambda params: (), update), 0.1)
    params = {"w": mx.array(1.0)}
    transform.update(params, transform.init(params), params, value=7)
    assert seen == [7]


def test_the_warmup_is_a_straight_line_from_zero():
    *_, (_, state) = walk(schedule_free_sgd(0.8, warmup_steps=4), GRADIENTS[:2])
    ((_, rate),) = ps.tree.fields(state, "learning_rate")
    assert (rate.item(), state.max_lr.item()) == pytest.approx((0.2, 0.4))


def test_adamw_has_no_momentum_of_its_own_and_keeps_no_tree_for_it():
    params = {"w": mx.ones(4)}
    state = schedule_free_adamw().init(params)
    assert sum(leaf.size for leaf in ps.tree.leaves(state) if leaf.ndim) == 2 * 4  # z and nu
    (first, _), (second, _) = walk(schedule_free_adamw(0.1, b1=1.0, eps=0.0), [[3.0], [-3.0]])
    assert first["w"].item() == pytest.approx(0.9, rel=1e-5)
    assert second["w"].item() == pytest.approx(0.95, rel=1e-5)  # the mean of 0.9 and 1


def test_decay_reaches_the_gradient_of_sgd_and_z_of_adamw():
    *_, (_, state) = walk(schedule_free_sgd(0.1, weight_decay=0.5), [[0.0]])
    assert state.z["w"].item() == pytest.approx(0.95)
    *_, (_, state) = walk(schedule_free_adamw(0.1, weight_decay=0.5), [[0.0]])
    assert state.z["w"].item() == pytest.approx(0.95)


def test_the_average_is_close_to_the_minimum_though_the_rate_never_falls():
    transform, params = schedule_free_sgd(0.3), {"w": mx.array([3.0, -4.0])}
    state, noise = transform.init(params), np.random.default_rng(0)
    for _ in range(300):
        drawn = mx.array(noise.normal(size=2).astype(np.float32))
        updates, state = transform.update({"w": params["w"] + drawn}, state, params)
        params = ps.apply_updates(params, updates)
        mx.eval(params, state)
    average = schedule_free_eval_params(state, params)["w"]
    assert mx.square(average).sum().item() < 0.1 * mx.square(state.z["w"]).sum().item()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedule_free(sgd, 0.1), TypeError, "schedule_free: base_optimizer ... GradientTransform"),
        (lambda: schedule_free(sgd(0.1), -0.1), ValueError, "schedule_free: learning_rate ... 0, got -0.1"),
        (lambda: schedule_free(sgd(0.1), 0.1, b1=0.0), ValueError, "schedule_free: b1 ... 0, got 0.0"),
        (lambda: schedule_free(sgd(0.1), 0.1, b1=1.5), ValueError, "schedule_free: b1 ... 1, got 1.5"),
        (
            lambda: schedule_free(sgd(0.1), 0.1, weight_lr_power=-1),
            ValueError,
            "schedule_free: weight_lr_power ... 0, got -1",
        ),
        (lambda: schedule_free_sgd(0.1, -1), ValueError, "transition_steps ... 0, got -1"),
        (
            lambda: schedule_free_adamw(schedules.constant(0.1), 5),
            ValueError,
            "learning_rate ... number ... warmup_steps",
        ),
        (
            lambda: schedule_free_eval_params((), {}),
            TypeError,
            "schedule_free_eval_params: state ... ScheduleFreeState, got a tuple",
        ),
    ],
)
def test_a_bad_argument_is_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()


def test_parameters_are_needed():
    transform = schedule_free_sgd(0.1)
    with pytest.raises(ValueError, match="schedule_free: params .*update"):
        transform.update({"w": mx.array(1.0)}, transform.init({"w": mx.array(1.0)}))
