"""Checks of the arguments of a save: the step, the metrics and the metadata."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Tree
from purestep._steps.state import check_arrays

Metadata = Mapping[str, Any] | Callable[[], Mapping[str, Any]]
"""Plain JSON values, or a function that returns them."""

LARGEST_STEP = 10**18 - 1
_DEEPEST = 100  # containers within containers


def checked_step(caller: str, state: Tree, step: int | None) -> int:
    """Return `step`, or `state.step`, which waits for the device."""
    if step is None:
        found = getattr(state, "step", None)
        if not isinstance(found, mx.array) or found.ndim != 0:
            raise checks.error(caller, "step must be given: the state has no step")
        number: Any = found.item()
        step = int(number)
    step = checks.integer(caller, "step", step, least=0)
    if step > LARGEST_STEP:
        raise checks.error(caller, f"step must be at most {LARGEST_STEP}, got {checks.shown(step)}")
    return step


def check_rated(caller: str, metrics: Mapping[str, float], metric: str | None) -> None:
    """Refuse a NaN for the metric that selects the best checkpoint."""
    if metric is not None and math.isnan(metrics.get(metric, 0.0)):
        raise checks.error(caller, f"metrics[{metric!r}] must not be NaN: save without this metric")


class Numbers(Mapping[str, float]):
    """Metrics as Python numbers. A 0-d array is read, which waits for the device, when it is accessed."""

    def __init__(self, caller: str, metrics: Mapping[str, Any] | None):
        if metrics is not None and not isinstance(metrics, Mapping):
            raise TypeError(f"{caller}: metrics must map names to numbers, got {checks.shown(metrics)}")
        self._metrics = {} if metrics is None else dict(metrics)
        for name, value in self._metrics.items():
            if not isinstance(name, str):
                raise TypeError(f"{caller}: metrics must have names, got the key {name!r}")
            array = isinstance(value, mx.array) and value.ndim == 0 and value.dtype != mx.complex64
            if not (array or checks.is_number(value)):
                raise TypeError(f"{caller}: metrics[{name!r}] must be a number or a 0-d array, got {value!r}")
            if isinstance(value, int) and abs(value) > 2**63:
                raise checks.error(caller, f"metrics[{name!r}] must be less than 2**63, got a larger integer")

    def __getitem__(self, name: str) -> float:
        given = self._metrics[name]
        value: Any = given.item() if isinstance(given, mx.array) else given
        return float(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)


def checked_facts(
    caller: str, state: Tree, step: int | None, metrics: Any, metadata: Any, metric: str | None
) -> tuple[int, dict[str, float], dict[str, Any]]:
    """Return the step, the metrics and the metadata of a save; `metadata` may be a function."""
    check_arrays(caller, "state", state)
    step = checked_step(caller, state, step)
    numbers = dict(Numbers(caller, metrics))
    check_rated(caller, numbers, metric)
    values = metadata() if callable(metadata) else metadata
    return step, numbers, plain_values(caller, "metadata", {} if values is None else values)


def without_nan(caller: str, step: int, numbers: Mapping[str, float], metric: str | None) -> dict[str, float]:
    """Return the metrics, without the one that selects the best checkpoint if it is NaN; then warn."""
    kept = dict(numbers)
    if metric is not None and math.isnan(kept.get(metric, 0.0)):
        # An error here would lose the last checkpoint of a run that is about to stop.
        del kept[metric]
        warnings.warn(f"{caller}: step {step} is saved without {metric}, which is NaN", stacklevel=3)
    return kept


def plain_values(caller: str, path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a dict of JSON values; refuse values that JSON would not restore.

    Numbers of other libraries, such as numpy, become Python numbers.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{caller}: {path} must be a dict, got {checks.shown(value)}")
    return _plain(caller, path, dict(value), 0)


def _plain(caller: str, path: str, value: Any, depth: int) -> Any:
    value = checks.python_number(value)
    if depth > _DEEPEST:
        raise checks.error(
            caller, f"metadata must be nested at most {_DEEPEST} deep, got more in {path[:80]}"
        )
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"{caller}: {path} has the key {key!r}; keys must be strings")
        return {key: _plain(caller, f"{path}[{key!r}]", child, depth + 1) for key, child in value.items()}
    if type(value) is list:
        return [_plain(caller, f"{path}[{number}]", child, depth + 1) for number, child in enumerate(value)]
    if type(value) is int and abs(value) > 2**63:
        raise checks.error(
            caller, f"{path} must be less than 2**63, got an integer of {value.bit_length()} bits"
        )
    if value is None or type(value) in (str, int, float, bool):
        return value
    found = type(value).__name__
    raise TypeError(f"{caller}: {path} must be plain (dict, list, str, int, float, bool, None), got {found}")
