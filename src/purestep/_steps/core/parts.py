"""A step of training with its gradients and updates in sight."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from purestep._core.types import Batch, Metrics, Step, Tree, Updates


class Parts(NamedTuple):
    """What one step makes, and what it makes it from.

    Attributes:
        state: the new state.
        metrics: the step's metrics.
        gradients: a tree like the parameters, as the transform receives it.
        updates: a tree like the parameters, as the transform returns it.
    """

    state: Tree
    metrics: Metrics
    gradients: Updates
    updates: Updates


PartsFn: TypeAlias = Callable[[Any, Batch], Parts]
"""`parts(state, batch) -> Parts`."""


def step_of(parts: PartsFn) -> Step:
    """Return the step that a function takes apart, with that function as its attribute `parts`.

    Evaluation is lazy, so what the step does not return costs it nothing.

    >>> step = step_of(lambda state, batch: Parts(state, {}, {"w": 1}, {"w": -1}))
    >>> step("state", "batch"), parts_of(step)("state", "batch").updates
    (('state', {}), {'w': -1})
    """

    def step(state: Any, batch: Batch) -> tuple[Any, Metrics]:
        made = parts(state, batch)
        return made.state, made.metrics

    step.parts = parts  # type: ignore[attr-defined]
    return step


def parts_of(step: Any) -> PartsFn:
    """Return the function that takes a step apart.

    Raises:
        AttributeError: if the step has none: it was not built by this package.
    """
    return step.parts
