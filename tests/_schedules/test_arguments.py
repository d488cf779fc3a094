"""Bad arguments of schedules are refused with their name, rule and value."""

import re

import mlx.core as mx
import pytest

from purestep import schedules

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
def test_a_bad_argument_is_refused_with_its_name_rule_and_value(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
