"""Schedules that tests compare with recorded values, by the name of the record."""

from purestep import schedules

CYCLES = [
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 40, "end_value": 0.05},
    {"init_value": 0.05, "peak_value": 0.5, "warmup_steps": 10, "decay_steps": 60},
]

SCHEDULES = {
    "schedules/constant": schedules.constant(0.3),
    "schedules/linear": schedules.linear(0.2, 1.0, 50),
    "schedules/linear_late": schedules.linear(1.0, 0.25, 40, transition_begin=20),
    "schedules/cosine": schedules.cosine_decay(0.5, 80, alpha=0.1),
    "schedules/cosine_squared": schedules.cosine_decay(0.5, 80, alpha=0.1, exponent=2.0),
    "schedules/warmup_cosine": schedules.warmup_cosine_decay(0.1, 1.0, 20, 100, 0.05),
    "schedules/warmup_cosine_squared": schedules.warmup_cosine_decay(0.1, 1.0, 20, 100, 0.05, exponent=2.0),
    "schedules/joined": schedules.join_schedules(
        [schedules.linear(0.0, 1.0, 30), schedules.constant(0.5), schedules.cosine_decay(1.0, 40)],
        [30, 60],
    ),
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
