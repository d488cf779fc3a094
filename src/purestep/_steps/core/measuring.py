"""Measurements within a training step: what they receive, and when they are due."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import AnyMean
from purestep._core.rng import fold_in, scope
from purestep._core.types import Batch, Metrics, Params, Updates
from purestep._layers.observing import Observed, Watch

_DRAWS = 0x6D65  # folded into the step's key for the draws of measurements


class Moment(NamedTuple):
    """What a measurement receives: one step, with everything that was computed for it.

    Writing into the arrays and containers does not change the step. All measurements of a step share them, so
    that sums of the same arrays are computed once.

    Attributes:
        gradients: the gradients of the whole batch, before the transform. In `loss_scaled_step` they are
            divided by the scale; in `sam_step` they are those at the second point.
        updates: what the transform returned.
        params: the parameters before the update.
        new_params: the parameters after the update.
        step: 0-d int32, the number of steps made before this one.
        batch: the whole batch.
        microbatches: the number of its parts; 1 in `cached_contrastive_step`, whose loss cannot be cut.
        small_square: the mean of the squared norms of the microbatches' gradients, 0-d, weighted like the
            loss; `None` unless the measurement has `small_squares`.
        weighted_parts: 0-d float32, the number of microbatches with a weight other than 0; `None` unless the
            measurement has `small_squares`.
        observed: the statistics that the `watch` of the measurement recorded, stacked for layers and by
            their paths.
        loss: `loss(params, batch) -> Mean`, the loss function with the key of this step.
    """

    gradients: Updates
    updates: Updates
    params: Params
    new_params: Params
    step: mx.array
    batch: Batch
    microbatches: int
    small_square: mx.array | None
    weighted_parts: mx.array | None
    observed: Observed
    loss: Callable[[Params, Batch], AnyMean]


@dataclass(frozen=True)
class Measurement:
    """A pure function of a training step, whose results become metrics of the step.

    `train_step(..., measure=[...])` computes it, and so do the other training steps. `ps.metrics` has
    constructors of common measurements.

    >>> import mlx.core as mx, purestep as ps
    >>> largest = Measurement("largest", lambda moment: {"w": mx.abs(moment.gradients["w"]).max()})
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array([0.0, 0.0])}, transform)
    >>> loss_fn = lambda params, batch, rng: (params["w"] * batch["x"]).sum()
    >>> step = ps.train_step(loss_fn, transform, measure=[largest])
    >>> step(state, {"x": mx.array([1.0, -3.0])})[1]["largest/w"]
    array(3, dtype=float32)

    Attributes:
        name: the metrics are named `name/key`, or `name` for the empty key.
        measure: `measure(moment) -> {key: 0-d array}`, with a `Moment`. It must not wait for the device.
            Random numbers that it draws without a key are a function of the step's key and the name.
        every: steps from one measurement to the next. It is due at the steps `every`, `2 * every`, ...,
            counted from 1, when the step is taken from `step.at(number)`, as `run` and `fit` do.
        watch: what to record in the layers of modules.
        small_squares: whether the norms of the microbatches' gradients are needed; `microbatches` must then
            be at least 2.
    """

    name: str
    measure: Callable[[Moment], Mapping[str, mx.array]]
    every: int = 1
    watch: Watch | None = None
    small_squares: bool = False

    def __post_init__(self) -> None:
        caller = "Measurement"
        if not isinstance(self.name, str) or not self.name:
            raise checks.error(caller, f"name must be a string that is not empty, got {self.name!r}")
        checks.function(caller, "measure", self.measure)
        checks.integer(caller, "every", self.every, least=1)

    def due(self, number: int) -> bool:
        """Return whether the step after `number` steps is measured."""
        return (number + 1) % self.every == 0


def checked(caller: str, measure: Any, microbatches: int, taken: str = "") -> tuple[Measurement, ...]:
    """Return the measurements of a step; refuse what is none, two of one name, and the name `taken`."""
    if not isinstance(measure, Iterable) or isinstance(measure, (str, Measurement)):
        raise TypeError(f"{caller}: measure must be a list of measurements, got {type(measure).__name__}")
    measurements = tuple(measure)
    names: set[str] = set()
    for each in measurements:
        if not isinstance(each, Measurement):
            raise TypeError(f"{caller}: measure must hold measurements, got {type(each).__name__}")
        if each.name in names:
            raise checks.error(caller, f"measure has two measurements named {each.name!r}; pass name=")
        if each.name == taken:
            raise checks.error(caller, f"a measurement may not be named {taken}")
        names.add(each.name)
        if each.small_squares and microbatches < 2:
            raise checks.error(
                caller,
                f"microbatches must be at least 2 for the measurement {each.name!r}, got {microbatches}",
            )
    return measurements


def results(
    caller: str, measurements: Iterable[Measurement], moment: Moment, observed: list[Observed], key: mx.array
) -> Metrics:
    """Return the metrics of the measurements.

    Args:
        caller: the public name for errors.
        measurements: those that are due.
        moment: the step.
        observed: the statistics of the measurements with a watch.
        key: the key of the step, for draws without a key.
    """
    found: Metrics = {}
    measured_by: dict[str, str] = {}
    remaining = list(observed)
    for each in measurements:
        seen = remaining.pop(0) if each.watch is not None else {}
        own = moment._replace(observed=seen)
        if not each.small_squares:
            own = own._replace(small_square=None, weighted_parts=None)
        with scope(fold_in(fold_in(key, _DRAWS), zlib.crc32(each.name.encode()))):
            returned: Any = each.measure(own)
        for name, value in _named(caller, each.name, returned).items():
            if name in found:
                first, second = measured_by[name], each.name
                raise checks.error(
                    caller, f"the measurements {first!r} and {second!r} both return {name}; pass name="
                )
            found[name], measured_by[name] = value, each.name
    return found


def _named(caller: str, name: str, returned: Any) -> Metrics:
    """Return what a measurement returned as metrics; refuse what is none."""
    if not isinstance(returned, Mapping):
        kind = type(returned).__name__
        raise TypeError(f"{caller}: the measurement {name!r} must return a dict, got a {kind}")
    found: Metrics = {}
    for key, value in returned.items():
        if not isinstance(key, str):
            raise TypeError(f"{caller}: the measurement {name!r} must have strings as keys, got {key!r}")
        full = f"{name}/{key}" if key else name
        if not isinstance(value, mx.array):
            kind = type(value).__name__
            raise TypeError(f"{caller}: the measurement {full} must be a 0-d array, got {kind}")
        if value.ndim:
            raise checks.error(caller, f"the measurement {full} must be a 0-d array, got shape {value.shape}")
        # mx.compile fails on two equal stop_gradients among its outputs, such as those of equal measurements.
        found[full] = mx.stop_gradient(value) + mx.array(0, value.dtype)
    return found


def merged(watches: Iterable[Watch], first: list[Observed], second: list[Observed]) -> list[Observed]:
    """Merge the statistics of two microbatches."""
    return [
        {paths: watch.merge(a[paths], b[paths]) for paths in a}
        for watch, a, b in zip(watches, first, second, strict=True)
    ]
