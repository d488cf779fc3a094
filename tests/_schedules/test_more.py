"""The schedules beyond the first: optax's numbers, the exact ends, and what is refused."""

import re

import mlx.core as mx
import numpy as np
import pytest

from purestep import schedules
from tests.references import recorded

RECORD = recorded("schedules")
RTOL, ATOL = 2e-6, 2e-7  # values of at most 1 in float32

CYCLES = [
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 40, "end_value": 0.05},
    {"init_value": 0.05, "peak_value": 0.5, "warmup_steps": 10, "decay_steps": 60},
]

SCHEDULES = {
    "polynomial": schedules.polynomial(0.9, 0.1, 2.5, 60, 15),
    "polynomial_rising": schedules.polynomial(0.1, 0.9, 0.5, 70),
    "exponential": schedules.exponential_decay(0.8, 30, 0.5, 10),
    "exponential_staircase": schedules.exponential_decay(0.8, 30, 0.5, 7, staircase=True),
    "exponential_bounded": schedules.exponential_decay(0.8, 20, 0.5, end_value=0.2),
    "exponential_growing": schedules.exponential_decay(0.1, 20, 1.7, end_value=0.9),
    "piecewise_constant": schedules.piecewise_constant(0.7, {30: 0.5, 20: 1.3, 90: 0.0}),
    "piecewise_linear": schedules.piecewise_interpolate("linear", 0.7, {20: 1.4, 60: 0.1}),
    "piecewise_cosine": schedules.piecewise_interpolate("cosine", 0.7, {20: 1.4, 60: 0.1}),
    "piecewise_from_0": schedules.piecewise_interpolate("linear", 0.7, {0: 0.5, 60: 0.1}),
    "linear_onecycle": schedules.linear_onecycle(100, 0.9, 0.25, 0.7, 10.0, 100.0),
    "linear_onecycle_defaults": schedules.linear_onecycle(110, 0.9),
    "cosine_onecycle": schedules.cosine_onecycle(100, 0.9, 0.25, 10.0, 100.0),
    "cosine_onecycle_defaults": schedules.cosine_onecycle(110, 0.9),
    "sgdr": schedules.sgdr(CYCLES),
    "warmup_constant": schedules.warmup_constant(0.1, 0.9, 30),
    "warmup_exponential": schedules.warmup_exponential_decay(0.1, 0.9, 30, 25, 0.6, 5),
    "warmup_exponential_staircase": schedules.warmup_exponential_decay(
        0.1, 0.9, 30, 25, 0.6, staircase=True, end_value=0.4
    ),
    "warmup_cosine": schedules.warmup_cosine(0.1, 0.8, 20, 100, 0.2),
    "warmup_linear_decay": schedules.warmup_linear_decay(0.1, 0.8, 20, 100, 0.2),
    "warmup_stable_decay": schedules.warmup_stable_decay(0.1, 0.8, 20, 55, 30, 0.2),
    "warmup_stable_decay_cosine": schedules.warmup_stable_decay(0.1, 0.8, 20, 55, 30, 0.2, decay="cosine"),
    "warmup_stable_decay_sqrt": schedules.warmup_stable_decay(0.1, 0.8, 20, 55, 30, 0.2, decay="sqrt"),
    "inverse_sqrt": schedules.inverse_sqrt(0.1, 0.8, 20),
    "inverse_sqrt_timescale": schedules.inverse_sqrt(0.1, 0.8, 20, timescale=50),
}


def test_every_recorded_schedule_is_compared():
    assert set(RECORD) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_up_to_120_give_the_recorded_values(name):
    want = RECORD[name]
    got = [SCHEDULES[name](mx.array(count)).item() for count in range(len(want))]
    assert len(want) == 121
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


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: schedules.polynomial(NAN, 0.0, 1, 2),
            ValueError,
            "schedules.polynomial: init_value must be",
        ),
        (lambda: schedules.polynomial(1.0, "0", 1, 2), TypeError, "end_value must be a number, got '0'"),
        (lambda: schedules.polynomial(1.0, 0.0, 0, 2), ValueError, "power must be greater than 0, got 0"),
        (lambda: schedules.polynomial(1.0, 0.0, 1, -2), ValueError, "transition_steps must be at least 0"),
        (lambda: schedules.polynomial(1.0, 0.0, 1, 2, -1), ValueError, "transition_begin must be at least 0"),
        (lambda: schedules.exponential_decay(NAN, 2, 0.5), ValueError, "init_value must be finite"),
        (
            lambda: schedules.exponential_decay(1.0, 2.5, 0.5),
            TypeError,
            "transition_steps must be an integer",
        ),
        (lambda: schedules.exponential_decay(1.0, 2, 0.0), ValueError, "decay_rate must be greater than 0"),
        (
            lambda: schedules.exponential_decay(1.0, 2, mx.array(0.5)),
            TypeError,
            "decay_rate must be a Python",
        ),
        (lambda: schedules.exponential_decay(1.0, 2, 0.5, -1), ValueError, "transition_begin must be at"),
        (lambda: schedules.exponential_decay(1.0, 2, 0.5, end_value=NAN), ValueError, "end_value must be"),
        (lambda: schedules.piecewise_constant(1.0, {-1: 1.0}), ValueError, "boundaries_and_scales must be"),
        (lambda: schedules.piecewise_constant(1.0, {1.5: 1.0}), TypeError, "must be an integer, got 1.5"),
        (lambda: schedules.piecewise_constant(1.0, {1: -1.0}), ValueError, "must be at least 0, got -1.0"),
        (lambda: schedules.piecewise_constant(NAN), ValueError, "piecewise_constant: init_value must be"),
        (
            lambda: schedules.piecewise_interpolate("cubic", 1.0),
            ValueError,
            "interpolate_type must be 'linear' or 'cosine', got 'cubic'",
        ),
        (lambda: schedules.linear_onecycle(-1, 1.0), ValueError, "transition_steps must be at least 0"),
        (lambda: schedules.linear_onecycle(9, NAN), ValueError, "peak_value must be finite, got nan"),
        (lambda: schedules.linear_onecycle(9, 1.0, 0.5, 0.4), ValueError, "pct_final must be at least 0.5"),
        (lambda: schedules.linear_onecycle(9, 1.0, 0.5, 1.4), ValueError, "pct_final must be at most 1"),
        (lambda: schedules.cosine_onecycle(9, 1.0, -0.1), ValueError, "pct_start must be at least 0"),
        (lambda: schedules.cosine_onecycle(9, 1.0, 1.1), ValueError, "pct_start must be at most 1"),
        (lambda: schedules.cosine_onecycle(9, 1.0, 0.3, 0.0), ValueError, "div_factor must be greater than"),
        (
            lambda: schedules.cosine_onecycle(9, 1.0, 0.3, 1.0, 0.0),
            ValueError,
            "final_div_factor must be greater than 0",
        ),
        (lambda: schedules.sgdr([]), ValueError, "schedules.sgdr: cosine_kwargs must hold at least one"),
        (lambda: schedules.sgdr([{"peak": 1.0}]), TypeError, "unexpected keyword argument 'peak'"),
        (
            lambda: schedules.warmup_constant(0.0, 1.0, -1),
            ValueError,
            "warmup_constant: warmup_steps must be",
        ),
        (lambda: schedules.warmup_constant(NAN, 1.0, 1), ValueError, "init_value must be finite, got nan"),
        (
            lambda: schedules.warmup_exponential_decay(0.0, NAN, 1, 2, 0.5),
            ValueError,
            "warmup_exponential_decay: peak_value must be finite, got nan",
        ),
        (lambda: schedules.warmup_cosine(0.0, 1.0, 1, 2, 1.5), ValueError, "min_ratio must be at most 1"),
        (
            lambda: schedules.warmup_linear_decay(0.0, 1.0, 5, 4),
            ValueError,
            "decay_steps includes the warmup and must be at least 5, got 4",
        ),
        (
            lambda: schedules.warmup_linear_decay(0.0, 1.0, 1, 2.0),
            TypeError,
            "decay_steps must be an integer",
        ),
        (lambda: schedules.warmup_linear_decay(0.0, 1.0, 1, 2, -1), ValueError, "min_ratio must be at least"),
        (lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, -1, 2), ValueError, "stable_steps must be at"),
        (lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, 1, -2), ValueError, "decay_steps must be at"),
        (
            lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, 1, 2, NAN),
            ValueError,
            "min_ratio must be finite",
        ),
        (
            lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, 1, 2, decay="step"),
            ValueError,
            "decay must be one of linear, cosine, sqrt, got 'step'",
        ),
        (lambda: schedules.inverse_sqrt(0.0, 1.0, -1), ValueError, "inverse_sqrt: warmup_steps must be"),
        (lambda: schedules.inverse_sqrt(0.0, 1.0, 1, 0), ValueError, "timescale must be at least 1, got 0"),
    ],
)
def test_arguments_are_refused_with_their_name_rule_and_value(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
