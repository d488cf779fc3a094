"""Bad arguments of schedules are refused with their name, rule and value."""

import mlx.core as mx
import pytest

from purestep import schedules
from tests.refusals import parts

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.constant(NAN), ValueError, "schedules.constant: value ... finite, got nan"),
        (lambda: schedules.constant("1"), TypeError, "schedules.constant: value ... number, got '1'"),
        (lambda: schedules.constant(True), TypeError, "schedules.constant: value ... number, got True"),
        (
            lambda: schedules.constant(mx.ones(2)),
            ValueError,
            "schedules.constant: value ... 0-d array, got shape",
        ),
        (
            lambda: schedules.linear(INF, 0.0, 1),
            ValueError,
            "schedules.linear: init_value ... finite, got inf",
        ),
        (lambda: schedules.linear(0.0, NAN, 1), ValueError, "end_value ... finite, got nan"),
        (
            lambda: schedules.linear(0.0, 1.0, -1),
            ValueError,
            "schedules.linear: transition_steps ... 0, got -1",
        ),
        (
            lambda: schedules.linear(0.0, 1.0, 2.5),
            TypeError,
            "schedules.linear: transition_steps ... integer, got 2.5",
        ),
        (
            lambda: schedules.linear(0.0, 1.0, 1, -2),
            ValueError,
            "schedules.linear: transition_begin ... 0, got -2",
        ),
        (
            lambda: schedules.cosine_decay(NAN, 1),
            ValueError,
            "schedules.cosine_decay: init_value ... finite, got nan",
        ),
        (
            lambda: schedules.cosine_decay(1.0, 0),
            ValueError,
            "schedules.cosine_decay: decay_steps ... 1, got 0",
        ),
        (
            lambda: schedules.cosine_decay(1.0, 1e3),
            TypeError,
            "schedules.cosine_decay: decay_steps ... integer, got 1000.0",
        ),
        (
            lambda: schedules.cosine_decay(1.0, 1, alpha=NAN),
            ValueError,
            "schedules.cosine_decay: alpha ... finite, got nan",
        ),
        (
            lambda: schedules.cosine_decay(1.0, 1, exponent=0),
            ValueError,
            "schedules.cosine_decay: exponent ... 0, got 0",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 10, 10),
            ValueError,
            "schedules.warmup_cosine_decay: decay_steps ... 10, got 10",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 0, 0),
            ValueError,
            "schedules.warmup_cosine_decay: decay_steps ... 0, got 0",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 9, 1.5),
            ValueError,
            "schedules.warmup_cosine_decay: end_value ... larger than peak_value, 1.0, got 1.5",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 0.0, 1, 9, 0.1),
            ValueError,
            "schedules.warmup_cosine_decay: end_value ... larger than peak_value, 0.0, got 0.1",
        ),
        (lambda: schedules.warmup_cosine_decay(NAN, 1.0, 1, 2), ValueError, "init_value ... finite"),
        (
            lambda: schedules.warmup_cosine_decay(0.0, INF, 1, 2),
            ValueError,
            "schedules.warmup_cosine_decay: peak_value ... finite, got inf",
        ),
        (lambda: schedules.warmup_cosine_decay(0.0, 1.0, -1, 2), ValueError, "warmup_steps ... 0, got -1"),
        (lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 2.5), TypeError, "decay_steps ... integer"),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 2, NAN),
            ValueError,
            "end_value ... finite, got nan",
        ),
        (
            lambda: schedules.warmup_cosine_decay(0.0, 1.0, 1, 2, 0.0, -1),
            ValueError,
            "schedules.warmup_cosine_decay: exponent ... 0, got -1",
        ),
        (
            lambda: schedules.join_schedules([], []),
            ValueError,
            "schedules.join_schedules: boundaries ... fewer ... 0 and 0",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)], [1]),
            ValueError,
            "schedules.join_schedules: boundaries ... fewer ... 1 and 1",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)] * 3, [4, 4]),
            ValueError,
            "schedules.join_schedules: boundaries ... increase, got (4, 4)",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)] * 2, [-1]),
            ValueError,
            "schedules.join_schedules: boundaries ... 0, got -1",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant(1.0)] * 2, [1.0]),
            TypeError,
            "schedules.join_schedules: boundaries ... integer, got 1.0",
        ),
        (
            lambda: schedules.polynomial(NAN, 0.0, 1, 2),
            ValueError,
            "schedules.polynomial: init_value ... finite, got nan",
        ),
        (
            lambda: schedules.polynomial(1.0, "0", 1, 2),
            TypeError,
            "schedules.polynomial: end_value ... number, got '0'",
        ),
        (
            lambda: schedules.polynomial(1.0, 0.0, 0, 2),
            ValueError,
            "schedules.polynomial: power ... 0, got 0",
        ),
        (lambda: schedules.polynomial(1.0, 0.0, 1, -2), ValueError, "transition_steps ... 0, got"),
        (lambda: schedules.polynomial(1.0, 0.0, 1, 2, -1), ValueError, "transition_begin ... 0, got -1"),
        (lambda: schedules.exponential_decay(NAN, 2, 0.5), ValueError, "init_value ... finite"),
        (
            lambda: schedules.exponential_decay(1.0, 2.5, 0.5),
            TypeError,
            "transition_steps ... integer, got 2.5",
        ),
        (lambda: schedules.exponential_decay(1.0, 2, 0.0), ValueError, "decay_rate ... 0, got 0.0"),
        (
            lambda: schedules.exponential_decay(1.0, 2, mx.array(0.5)),
            TypeError,
            "schedules.exponential_decay: decay_rate ... Python number, got an array",
        ),
        (
            lambda: schedules.exponential_decay(1.0, 2, 0.5, -1),
            ValueError,
            "schedules.exponential_decay: transition_begin ... 0, got -1",
        ),
        (
            lambda: schedules.exponential_decay(1.0, 2, 0.5, end_value=NAN),
            ValueError,
            "end_value ... finite, got nan",
        ),
        (
            lambda: schedules.piecewise_constant(1.0, {-1: 1.0}),
            ValueError,
            "schedules.piecewise_constant: boundaries_and_scales ... 0, got -1",
        ),
        (
            lambda: schedules.piecewise_constant(1.0, {1.5: 1.0}),
            TypeError,
            "schedules.piecewise_constant: boundaries_and_scales ... integer, got 1.5",
        ),
        (
            lambda: schedules.piecewise_constant(1.0, {1: -1.0}),
            ValueError,
            "schedules.piecewise_constant: boundaries_and_scales ... 0, got -1.0",
        ),
        (
            lambda: schedules.piecewise_constant(NAN),
            ValueError,
            "schedules.piecewise_constant: init_value ... finite, got nan",
        ),
        (
            lambda: schedules.piecewise_interpolate("cubic", 1.0),
            ValueError,
            "schedules.piecewise_interpolate: interpolate_type ... 'linear' ... 'cosine', got 'cubic'",
        ),
        (lambda: schedules.linear_onecycle(-1, 1.0), ValueError, "transition_steps ... 0, got"),
        (
            lambda: schedules.linear_onecycle(9, NAN),
            ValueError,
            "schedules.linear_onecycle: peak_value ... finite, got nan",
        ),
        (lambda: schedules.linear_onecycle(9, 1.0, 0.5, 0.4), ValueError, "pct_final ... 0.5, got 0.4"),
        (lambda: schedules.linear_onecycle(9, 1.0, 0.5, 1.4), ValueError, "pct_final ... 1, got 1.4"),
        (lambda: schedules.cosine_onecycle(9, 1.0, -0.1), ValueError, "pct_start ... 0, got -0.1"),
        (lambda: schedules.cosine_onecycle(9, 1.0, 1.1), ValueError, "pct_start ... 1, got 1.1"),
        (
            lambda: schedules.cosine_onecycle(9, 1.0, 0.3, 0.0),
            ValueError,
            "schedules.cosine_onecycle: div_factor ... 0, got 0.0",
        ),
        (
            lambda: schedules.cosine_onecycle(9, 1.0, 0.3, 1.0, 0.0),
            ValueError,
            "final_div_factor ... 0, got 0.0",
        ),
        (lambda: schedules.sgdr([]), ValueError, "schedules.sgdr: cosine_kwargs ... one"),
        (lambda: schedules.sgdr([{"peak": 1.0}]), TypeError, "unexpected keyword argument 'peak'"),
        (
            lambda: schedules.warmup_constant(0.0, 1.0, -1),
            ValueError,
            "schedules.warmup_constant: warmup_steps ... 0, got -1",
        ),
        (
            lambda: schedules.warmup_constant(NAN, 1.0, 1),
            ValueError,
            "schedules.warmup_constant: init_value ... finite, got nan",
        ),
        (
            lambda: schedules.warmup_exponential_decay(0.0, NAN, 1, 2, 0.5),
            ValueError,
            "schedules.warmup_exponential_decay: peak_value ... finite, got nan",
        ),
        (lambda: schedules.warmup_cosine(0.0, 1.0, 1, 2, 1.5), ValueError, "min_ratio ... 1, got 1.5"),
        (
            lambda: schedules.warmup_linear_decay(0.0, 1.0, 5, 4),
            ValueError,
            "schedules.warmup_linear_decay: decay_steps ... 5, got 4",
        ),
        (lambda: schedules.warmup_linear_decay(0.0, 1.0, 1, 2.0), TypeError, "decay_steps ... integer"),
        (
            lambda: schedules.warmup_linear_decay(0.0, 1.0, 1, 2, -1),
            ValueError,
            "schedules.warmup_linear_decay: min_ratio ... 0, got -1",
        ),
        (
            lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, -1, 2),
            ValueError,
            "schedules.warmup_stable_decay: stable_steps ... 0, got -1",
        ),
        (
            lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, 1, -2),
            ValueError,
            "schedules.warmup_stable_decay: decay_steps ... 0, got -2",
        ),
        (
            lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, 1, 2, NAN),
            ValueError,
            "min_ratio ... finite, got nan",
        ),
        (
            lambda: schedules.warmup_stable_decay(0.0, 1.0, 1, 1, 2, decay="step"),
            ValueError,
            "schedules.warmup_stable_decay: decay ... linear, cosine, sqrt, got 'step'",
        ),
        (
            lambda: schedules.inverse_sqrt(0.0, 1.0, -1),
            ValueError,
            "schedules.inverse_sqrt: warmup_steps ... 0, got -1",
        ),
        (
            lambda: schedules.inverse_sqrt(0.0, 1.0, 1, 0),
            ValueError,
            "schedules.inverse_sqrt: timescale ... 1, got 0",
        ),
    ],
)
def test_a_bad_argument_is_refused_with_its_name_rule_and_value(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()
