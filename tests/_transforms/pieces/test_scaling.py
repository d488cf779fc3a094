"""scale, scale_by_learning_rate, scale_by_schedule: signs, dtypes, and the rate in the state."""

import mlx.core as mx
import pytest

from purestep import schedules
from purestep.transforms import scale, scale_by_learning_rate, scale_by_schedule
from tests.refusals import BAD_NUMBERS, parts

PARAMS = {"w": mx.array([0.0, 0.0])}
GRADIENT = {"w": mx.array([2.0, -4.0])}


def rates(transform, count):
    """Return, for each of `count` updates, its factor and the rate in the state after it."""
    state, seen = transform.init(PARAMS), []
    for _ in range(count):
        updates, state = transform.update(GRADIENT, state, PARAMS)
        seen.append((updates["w"][0].item() / 2, state.learning_rate.item()))
    return seen


def test_scale_multiplies():
    assert scale(-0.5).update(GRADIENT, ())[0]["w"].tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("step_size", [0.5, mx.array(0.5)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_scaling_keeps_the_dtype(dtype, step_size):
    updates = {"w": GRADIENT["w"].astype(dtype)}
    scaled = scale(step_size).update(updates, ())[0]["w"]
    transform = scale_by_learning_rate(step_size)
    rated = transform.update(updates, transform.init(PARAMS))[0]["w"]
    assert (scaled.dtype, scaled.tolist()) == (dtype, [1.0, -2.0])
    assert (rated.dtype, rated.tolist()) == (dtype, [-1.0, 2.0])


@pytest.mark.parametrize(("flip_sign", "want"), [(True, [-1.0, 2.0]), (False, [1.0, -2.0])])
def test_the_sign_changes_only_with_flip_sign(flip_sign, want):
    transform = scale_by_learning_rate(0.5, flip_sign=flip_sign)
    assert transform.update(GRADIENT, transform.init(PARAMS))[0]["w"].tolist() == want


def test_a_rate_of_zero_stops_every_parameter():
    transform = scale_by_learning_rate(0.0)
    assert transform.update(GRADIENT, transform.init(PARAMS))[0]["w"].tolist() == [0.0, 0.0]


def test_a_constant_rate_is_read_from_the_state():
    transform = scale_by_learning_rate(0.5)
    state = transform.init(PARAMS)._replace(learning_rate=mx.array(0.25))
    for _ in range(2):
        updates, state = transform.update(GRADIENT, state)
        assert updates["w"].tolist() == [-0.5, 1.0]
        assert state.learning_rate.item() == 0.25


def test_a_schedule_sees_the_count_before_the_increment_and_leaves_its_value_in_the_state():
    transform = scale_by_learning_rate(lambda count: 8.0 + count)
    assert rates(transform, 3) == [(-8.0, 8.0), (-9.0, 9.0), (-10.0, 10.0)]


def test_a_schedule_is_evaluated_whatever_rate_the_state_holds():
    transform = scale_by_learning_rate(schedules.constant(0.5))
    state = transform.init(PARAMS)._replace(learning_rate=mx.array(0.25))
    updates, state = transform.update(GRADIENT, state)
    assert (updates["w"].tolist(), state.learning_rate.item()) == ([-1.0, 2.0], 0.5)


def test_a_schedule_goes_on_from_the_count_in_the_state():
    transform = scale_by_learning_rate(schedules.linear(0.0, 1.0, 4))
    state = transform.init(PARAMS)._replace(count=mx.array(3, mx.int32))
    _, state = transform.update(GRADIENT, state)
    assert (state.count.item(), state.learning_rate.item()) == (4, 0.75)


@pytest.mark.parametrize("rate", [0.5, mx.array(0.5), mx.array(0.5, mx.bfloat16), lambda _: 0.5, lambda _: 1])
def test_the_state_holds_an_int32_count_and_a_float32_rate_from_the_start(rate):
    transform = scale_by_learning_rate(rate)
    state = transform.init(PARAMS)
    assert (state.count.item(), state.learning_rate.item()) == (0, rate(0) if callable(rate) else 0.5)
    for _ in range(2):
        assert (state.count.dtype, state.count.shape) == (mx.int32, ())
        assert (state.learning_rate.dtype, state.learning_rate.shape) == (mx.float32, ())
        _, state = transform.update(GRADIENT, state)
    assert state.count.item() == 2


@pytest.mark.parametrize(("value", "error", "message"), BAD_NUMBERS)
def test_a_bad_number_is_refused(value, error, message):
    with pytest.raises(error, match=parts(f"scale: step_size {message}")):
        scale(value)
    with pytest.raises(error, match=parts(f"scale_by_learning_rate: learning_rate {message}")):
        scale_by_learning_rate(value)


def test_a_negative_rate_and_a_schedule_of_vectors_are_refused():
    with pytest.raises(ValueError, match="scale_by_learning_rate: learning_rate .* 0, got -0.1"):
        scale_by_learning_rate(-0.1)
    with pytest.raises(ValueError, match=r"scale_by_learning_rate: .* learning_rate .* 0-d array, got shape"):
        scale_by_learning_rate(lambda count: mx.ones(1)).init(PARAMS)


def test_a_factor_follows_a_schedule_of_the_count_before_the_increment():
    transform = scale_by_schedule(schedules.linear(1.0, 0.0, 4))
    state, seen = transform.init({}), []
    for _ in range(5):
        updates, state = transform.update({"w": mx.array(8.0, mx.bfloat16)}, state)
        seen.append(updates["w"].item())
    assert seen == [8.0, 6.0, 4.0, 2.0, 0.0]
    assert updates["w"].dtype == mx.bfloat16
    assert state.count.item() == 5


def test_a_schedule_must_be_callable():
    with pytest.raises(TypeError, match="scale_by_schedule: step_size_fn .* callable"):
        scale_by_schedule(0.1)
