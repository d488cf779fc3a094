"""Record optax's schedules at counts 0 to 120, in float64: run with a Python that has optax.

Into `schedules.safetensors` beside this file, as `NAME`, one value a count.
"""

from pathlib import Path

import jax
import numpy as np
import optax
from safetensors.numpy import save_file

CYCLES = [
    {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 40, "end_value": 0.05},
    {"init_value": 0.05, "peak_value": 0.5, "warmup_steps": 10, "decay_steps": 60},
]

SCHEDULES = {
    "polynomial": lambda: optax.polynomial_schedule(0.9, 0.1, 2.5, 60, 15),
    "polynomial_rising": lambda: optax.polynomial_schedule(0.1, 0.9, 0.5, 70),
    "exponential": lambda: optax.exponential_decay(0.8, 30, 0.5, 10),
    "exponential_staircase": lambda: optax.exponential_decay(0.8, 30, 0.5, 7, staircase=True),
    "exponential_bounded": lambda: optax.exponential_decay(0.8, 20, 0.5, end_value=0.2),
    "exponential_growing": lambda: optax.exponential_decay(0.1, 20, 1.7, end_value=0.9),
    "piecewise_constant": lambda: optax.piecewise_constant_schedule(0.7, {30: 0.5, 20: 1.3, 90: 0.0}),
    "piecewise_linear": lambda: optax.piecewise_interpolate_schedule("linear", 0.7, {20: 1.4, 60: 0.1}),
    "piecewise_cosine": lambda: optax.piecewise_interpolate_schedule("cosine", 0.7, {20: 1.4, 60: 0.1}),
    "piecewise_from_0": lambda: optax.piecewise_interpolate_schedule("linear", 0.7, {0: 0.5, 60: 0.1}),
    "linear_onecycle": lambda: optax.linear_onecycle_schedule(100, 0.9, 0.25, 0.7, 10.0, 100.0),
    "linear_onecycle_defaults": lambda: optax.linear_onecycle_schedule(110, 0.9),
    "cosine_onecycle": lambda: optax.cosine_onecycle_schedule(100, 0.9, 0.25, 10.0, 100.0),
    "cosine_onecycle_defaults": lambda: optax.cosine_onecycle_schedule(110, 0.9),
    "sgdr": lambda: optax.sgdr_schedule(CYCLES),
    "warmup_constant": lambda: optax.warmup_constant_schedule(0.1, 0.9, 30),
    "warmup_exponential": lambda: optax.warmup_exponential_decay_schedule(0.1, 0.9, 30, 25, 0.6, 5),
    "warmup_exponential_staircase": lambda: optax.warmup_exponential_decay_schedule(
        0.1, 0.9, 30, 25, 0.6, staircase=True, end_value=0.4
    ),
    # Not in optax by name: put together from its parts.
    "warmup_cosine": lambda: optax.warmup_cosine_decay_schedule(0.1, 0.8, 20, 100, 0.2 * 0.8),
    "warmup_linear_decay": lambda: optax.join_schedules(
        [optax.linear_schedule(0.1, 0.8, 20), optax.linear_schedule(0.8, 0.2 * 0.8, 80)], [20]
    ),
    "warmup_stable_decay": lambda: optax.join_schedules(
        [
            optax.linear_schedule(0.1, 0.8, 20),
            optax.constant_schedule(0.8),
            optax.linear_schedule(0.8, 0.2 * 0.8, 30),
        ],
        [20, 75],
    ),
    "warmup_stable_decay_cosine": lambda: optax.join_schedules(
        [
            optax.linear_schedule(0.1, 0.8, 20),
            optax.constant_schedule(0.8),
            optax.cosine_decay_schedule(0.8, 30, 0.2),
        ],
        [20, 75],
    ),
}


def main():
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    counts = range(121)
    tensors = {name: np.array([make()(n) for n in counts], np.float64) for name, make in SCHEDULES.items()}
    past = np.maximum(np.arange(121.0) - 20, 0)
    rise = np.minimum(np.arange(121) / 20, 1)
    climb = 0.1 + 0.7 * rise
    tensors["inverse_sqrt"] = np.where(past > 0, 0.8 * np.sqrt(20 / (20 + past)), climb)
    tensors["inverse_sqrt_timescale"] = np.where(past > 0, 0.8 * np.sqrt(50 / (50 + past)), climb)
    level = np.clip((np.arange(121) - 75) / 30, 0, 1)
    fall = 0.16 + 0.64 * (1 - np.sqrt(level))
    tensors["warmup_stable_decay_sqrt"] = np.where(level > 0, fall, climb)
    save_file(tensors, Path(__file__).with_name("schedules.safetensors"))


if __name__ == "__main__":
    main()
