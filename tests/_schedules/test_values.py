"""The values of every schedule: optax's numbers, ints and arrays, mapped counts, exact ends."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import schedules
from tests._schedules.cases import CYCLES, SCHEDULES
from tests.references import recorded

# The first schedules were recorded with the optimizers, under "schedules/name".
RECORD = recorded("schedules") | {
    name: values for name, values in recorded("optimizers").items() if name.startswith("schedules/")
}
RTOL, ATOL = 2e-6, 2e-7  # values of at most 1 in float32


def test_every_recorded_schedule_is_compared():
    assert set(RECORD) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_up_to_120_give_the_recorded_values(name):
    want = RECORD[name]
    got = [SCHEDULES[name](mx.array(count)).item() for count in range(len(want))]
    assert len(want) == 121
    np.testing.assert_allclose(got, want, RTOL, ATOL)


@pytest.mark.parametrize(
    ("name", "theirs", "arguments"),
    [
        ("linear", "linear_schedule", (0.3, 0.9, 7, 3)),
        ("cosine_decay", "cosine_decay_schedule", (0.7, 13, 0.2, 0.5)),
        ("warmup_cosine_decay", "warmup_cosine_decay_schedule", (0.0, 0.8, 5, 17, 0.1, 3.0)),
    ],
)
def test_the_same_arguments_mean_the_same_to_optax(name, theirs, arguments):
    optax = pytest.importorskip("optax")
    ours, theirs = getattr(schedules, name)(*arguments), getattr(optax, theirs)(*arguments)
    got, want = zip(*((ours(count).item(), float(theirs(count))) for count in range(25)), strict=True)
    np.testing.assert_allclose(got, want, RTOL, ATOL)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [7, mx.array(7, mx.int32), mx.array(7, mx.uint32)])
def test_a_value_is_one_float32_for_an_int_as_for_an_array(name, count):
    value = SCHEDULES[name](count)
    assert (value.shape, value.dtype) == ((), mx.float32)
    assert value.item() == SCHEDULES[name](mx.array(7)).item()


@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_may_be_mapped_over(name):
    counts = mx.array([0, 3, 20, 50, 200])
    together = mx.vmap(SCHEDULES[name])(counts)
    assert mx.allclose(together, mx.stack([SCHEDULES[name](count) for count in counts]), 1e-6, 1e-7)


@pytest.mark.parametrize(
    ("schedule", "count", "value"),
    [
        (schedules.linear(1.0, 3.0, 4, transition_begin=2), 2, 1.0),
        (schedules.linear(1.0, 3.0, 4, transition_begin=2), 3, 1.5),
        (schedules.linear(1.0, 3.0, 4, transition_begin=2), 6, 3.0),
        (schedules.linear(1.0, 3.0, 4), 10**9, 3.0),
        (schedules.linear(1.0, 3.0, 0), 0, 3.0),
        (schedules.cosine_decay(2.0, 8), 0, 2.0),
        (schedules.cosine_decay(2.0, 8), 4, 1.0),
        (schedules.cosine_decay(2.0, 8), 8, 0.0),
        (schedules.cosine_decay(2.0, 8, alpha=0.25), 10**9, 0.5),
        (schedules.cosine_decay(2.0, 8, exponent=2), 4, 0.5),
        (schedules.warmup_cosine_decay(0.5, 2.0, 4, 12), 0, 0.5),
        (schedules.warmup_cosine_decay(0.5, 2.0, 4, 12), 4, 2.0),
        (schedules.warmup_cosine_decay(0.5, 2.0, 4, 12), 12, 0.0),
        (schedules.warmup_cosine_decay(0.5, 2.0, 4, 12, 0.25), 12, 0.25),
        (schedules.warmup_cosine_decay(0.5, 2.0, 0, 12), 0, 2.0),
        (schedules.warmup_cosine_decay(0.5, 2.0, 4, 5, 0.25), 3, 1.625),
        (schedules.warmup_cosine_decay(0.5, 2.0, 4, 5, 0.25), 5, 0.25),
        (schedules.warmup_cosine_decay(0.0, -2.0, 0, 5, 0.25), 5, 0.25),
        (schedules.join_schedules([schedules.linear(0.0, 4.0, 4)] * 2, [3]), 2, 2.0),
        (schedules.join_schedules([schedules.linear(0.0, 4.0, 4)] * 2, [3]), 3, 0.0),
        (schedules.join_schedules([schedules.linear(0.0, 4.0, 4)] * 2, [3]), 5, 2.0),
        (schedules.join_schedules([schedules.constant(2.0)], []), 5, 2.0),
        (schedules.polynomial(2.0, 0.5, 3, 0), 0, 0.5),
        (schedules.polynomial(2.0, 0.5, 3, 0, transition_begin=2), 1, 2.0),
        (schedules.polynomial(2.0, 0.5, 3, 10), 10**9, 0.5),
        (schedules.exponential_decay(2.0, 0, 0.5), 9, 2.0),
        (schedules.exponential_decay(2.0, 10, 0.5), 10**9, 0.0),
        (schedules.exponential_decay(2.0, 10, 0.5, staircase=True), 9, 2.0),
        (schedules.exponential_decay(2.0, 10, 0.5, staircase=True), 10, 1.0),
        (schedules.exponential_decay(2.0, 10, 1.0), 30, 2.0),
        (schedules.piecewise_constant(2.0), 9, 2.0),
        (schedules.piecewise_constant(2.0, {0: 0.5}), 0, 1.0),
        (schedules.piecewise_interpolate("cosine", 2.0), 9, 2.0),
        (schedules.piecewise_interpolate("linear", 2.0, {0: 0.5}), 0, 1.0),
        (schedules.linear_onecycle(0, 1.0, div_factor=4.0, final_div_factor=8.0), 0, 1 / 32),
        (schedules.linear_onecycle(1, 1.0, div_factor=4.0, final_div_factor=8.0), 0, 0.25),
        (schedules.linear_onecycle(10, 1.0, 0.0, 1.0, 4.0, 8.0), 0, 1.0),
        (schedules.linear_onecycle(10, 1.0, 0.0, 1.0, 4.0, 8.0), 9, 0.325),
        (schedules.linear_onecycle(10, 1.0, 0.0, 1.0, 4.0, 8.0), 10, 1 / 32),
        (schedules.cosine_onecycle(0, 1.0, div_factor=4.0, final_div_factor=8.0), 0, 1 / 32),
        (schedules.cosine_onecycle(10, 1.0, 1.0, 4.0, 8.0), 10, 1 / 32),
        (schedules.cosine_onecycle(1000, 1.0, final_div_factor=1e6), 10**9, 4e-8),
        (schedules.sgdr(CYCLES), 5, 1.0),
        (schedules.sgdr(CYCLES), 10**9, 0.0),
        (schedules.warmup_constant(0.0, 2.0, 0), 0, 2.0),
        (schedules.warmup_exponential_decay(0.0, 2.0, 0, 10, 0.5), 10, 1.0),
        (schedules.warmup_exponential_decay(0.0, 2.0, 4, 0, 0.5), 9, 2.0),
        (schedules.warmup_cosine(0.5, 2.0, 4, 5, 0.25), 5, 0.5),
        (schedules.warmup_cosine(0.5, 2.0, 0, 1, 0.25), 1, 0.5),
        (schedules.warmup_linear_decay(0.5, 2.0, 4, 4, 0.25), 3, 1.625),
        (schedules.warmup_linear_decay(0.5, 2.0, 4, 4, 0.25), 4, 0.5),
        (schedules.warmup_linear_decay(0.5, 2.0, 0, 0, 0.25), 0, 0.5),
        (schedules.warmup_linear_decay(0.5, 2.0, 0, 10), 0, 2.0),
        (schedules.warmup_linear_decay(0.5, 2.0, 0, 10), 10, 0.0),
        (schedules.warmup_stable_decay(0.5, 2.0, 0, 0, 0, 0.25), 0, 0.5),
        (schedules.warmup_stable_decay(0.5, 2.0, 4, 0, 0, 0.25), 3, 1.625),
        (schedules.warmup_stable_decay(0.5, 2.0, 4, 3, 0, 0.25), 6, 2.0),
        (schedules.warmup_stable_decay(0.5, 2.0, 4, 3, 0, 0.25), 7, 0.5),
        (schedules.warmup_stable_decay(0.5, 2.0, 0, 3, 4, decay="sqrt"), 4, 1.0),
        (schedules.warmup_stable_decay(0.5, 2.0, 0, 3, 4, decay="cosine"), 10**9, 0.0),
        (schedules.inverse_sqrt(0.5, 2.0, 0), 0, 2.0),
        (schedules.inverse_sqrt(0.5, 2.0, 0), 3, 1.0),
        (schedules.inverse_sqrt(0.5, 2.0, 4), 0, 0.5),
        (schedules.inverse_sqrt(0.5, 2.0, 4), 4, 2.0),
        (schedules.inverse_sqrt(0.5, 2.0, 4, timescale=100), 304, 1.0),
    ],
)
def test_the_ends_and_the_middle_are_as_documented(schedule, count, value):
    assert schedule(mx.array(count)).item() == pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("steps", [41, 47, 55, 61, 1000])
def test_a_line_ends_exactly_where_it_should(steps):
    assert schedules.linear(1.0, 0.0, steps)(mx.array(steps)).item() == 0.0
