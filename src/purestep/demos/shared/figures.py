"""The figures of a step and of a state, as Python numbers."""

import math
from collections.abc import Iterable, Mapping
from typing import cast

import mlx.core as mx

import purestep as ps


def as_float(value: mx.array) -> float:
    """Return a 0-d array as a Python number. Waits for the device."""
    return cast(float, value.item())


def made(state: ps.TrainState) -> int:
    """Return the number of steps that led to a state. Waits for the device."""
    return cast(int, state.step.item())


def means_over(
    measure: ps.types.EvalStepFn, state: ps.TrainState, batches: Iterable[ps.types.Batch]
) -> dict[str, float]:
    """Return the means of a state over all batches; they are merged and divided in float32."""
    found: dict[str, list[ps.Mean]] = {}
    for batch in batches:
        means = measure(state, batch)
        mx.eval(means)
        for name, mean in means.items():
            found.setdefault(name, []).append(cast(ps.Mean, mean))
    return {name: as_float(ps.Mean.merge(*means).value) for name, means in found.items()}


def check_finite(place: str, figures: Mapping[str, float], *states: ps.TrainState, note: str = "") -> None:
    """Raise if a figure of a step is NaN or infinite.

    Args:
        place: the step, as the message names it.
        figures: the metrics of the step.
        states: where to look for the first array that is not finite.
        note: the end of the message.

    Raises:
        FloatingPointError: if a figure is not finite.
    """
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        paths = [path for state in states for path in ps.metrics.nonfinite_paths(state)]
        first = paths[0] if paths else "the loss itself"
        raise FloatingPointError(f"{' and '.join(broken)} not finite in {place}; first in {first}{note}")
