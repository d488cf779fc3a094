"""Schedules: optax's numbers, recorded and live, the exact ends, and what is refused."""

import re

import mlx.core as mx
import numpy as np
import pytest

from purestep import schedules
from tests.references import recorded

RECORD = recorded("optimizers")
RTOL, ATOL = 2e-6, 2e-7  # values of at most 1 in float32

SCHEDULES = {
    "constant": schedules.constant(0.3),
    "linear": schedules.linear(0.2, 1.0, 50),
    "linear_late": schedules.linear(1.0, 0.25, 40, transition_begin=20),
    "cosine": schedules.cosine_decay(0.5, 80, alpha=0.1),
    "cosine_squared": schedules.cosine_decay(0.5, 80, alpha=0.1, exponent=2.0),
    "warmup_cosine": schedules.warmup_cosine_decay(0.1, 1.0, 20, 100, 0.05),
    "warmup_cosine_squared": schedules.warmup_cosine_decay(0.1, 1.0, 20, 100, 0.05, exponent=2.0),
    "joined": schedules.join_schedules(
        [schedules.linear(0.0, 1.0, 30), schedules.constant(0.5), schedules.cosine_decay(1.0, 40)],
        [30, 60],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_up_to_120_give_the_values_that_optax_gives(name):
    want = RECORD[f"schedules/{name}"]
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
    ],
)
def test_the_ends_and_the_middle_are_as_documented(schedule, count, value):
    assert schedule(mx.array(count)).item() == pytest.approx(value, rel=1e-6, abs=1e-6)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.constant(NAN), ValueError, "schedules.constant: value must be finite, got nan"),
        (lambda: schedules.constant("1"), TypeError, "value must be a number, got '1'"),
        (lambda: schedules.constant(True), TypeError, "value must be a number, got True"),
        (
            lambda: schedules.constant(mx.ones(2)),
            ValueError,
            "value must be a number or a 0-d array, got shape",
        ),
        (
            lambda: schedules.linear(INF, 0.0, 1),
            ValueError,
            "schedules.linear: init_value must be finite, got",
        ),
        (lambda: schedules.linear(0.0, NAN, 1), ValueError, "end_value must be finite, got nan"),
        (lambda: schedules.linear(0.0, 1.0, -1), ValueError, "transition_steps must be at least 0, got -1"),
        (lambda: schedules.linear(0.0, 1.0, 2.5), TypeError, "transition_steps must be an integer, got 2.5"),
        (
            lambda: schedules.linear(0.0, 1.0, 1, -2),
            ValueError,
            "transition_begin must be at least 0, got -2",
        ),
        (
            lambda: schedules.cosine_decay(NAN, 1),
            ValueError,
            "schedules.cosine_decay: init_value must be finite",
        ),
        (lambda: schedules.cosine_decay(1.0, 0), ValueError, "decay_steps must be at least 1, got 0"),
        (lambda: schedules.cosine_decay(1.0, 1e3), TypeError, "decay_steps must be an integer, got 1000.0"),
        (lambda: schedules.cosine_decay(1.0, 1, alpha=NAN), ValueError, "alpha must be finite, got nan"),
        (
            lambda: schedules.cosine_decay(1.0, 1, exponent=0),
            ValueError,
            "exponent must be greater than 0, got 0",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 10, 10),
            ValueError,
            "warmup_cosine_decay: decay_steps includes the warmup and must be greater than 10, got 10",
        ),
        (lambda: schedules.warmup_cosine_decay(0.0, 1.0, 0, 0), ValueError, "must be greater than 0, got 0"),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 9, 1.5),
            ValueError,
            "schedules.warmup_cosine_decay: end_value must not be larger than peak_value, 1.0, got 1.5",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 0.0, 1, 9, 0.1),
            ValueError,
            "larger than peak_value, 0.0",
        ),
        (lambda: schedules.warmup_cosine_decay(NAN, 1.0, 1, 2), ValueError, "init_value must be finite"),
        (
            lambda: schedules.warmup_cosine_decay(0.0, INF, 1, 2),
            ValueError,
            "peak_value must be finite, got inf",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, -1, 2),
            ValueError,
            "warmup_steps must be at least 0",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 2.5),
            TypeError,
            "decay_steps must be an integer",
        ),
        (lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 2, NAN), ValueError, "end_value must be finite"),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 2, 0.0, -1),
            ValueError,
            "exponent must be greater",
        ),
        (
            lambda: schedules.join_schedules([], []),
            ValueError,
            "schedules.join_schedules: boundaries must be one fewer than schedules, got 0 and 0",
        ),
        (lambda: schedules.join_schedules([schedules.constant(1.0)], [1]), ValueError, "got 1 and 1"),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)] * 3, [4, 4]),
            ValueError,
            "boundaries must increase, got (4, 4)",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)] * 2, [-1]),
            ValueError,
            "boundaries must be at least 0, got -1",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)] * 2, [1.0]),
            TypeError,
            "boundaries must be an integer, got 1.0",
        ),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("steps", [41, 47, 55, 61, 1000])
def test_a_line_ends_exactly_where_it_should(steps):
    assert schedules.linear(1.0, 0.0, steps)(mx.array(steps)).item() == 0.0
