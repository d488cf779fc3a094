"""Measurements of the updates inside a chain, kept in the state."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked, taking_extra


class SnapshotState(NamedTuple):
    """State of `snapshot`.

    Attributes:
        measurement: a dict with one entry, `measure_name`: the measurement of the last updates.
    """

    measurement: dict[str, Tree]


def snapshot(measure_name: str, measure: Callable[[Updates], Tree]) -> GradientTransform:
    """Keep a measurement of the updates in the state; the updates are unchanged.

    Args:
        measure_name: the name of the measurement in the state.
        measure: a function from updates to an array or a tree of arrays, whose shapes and dtypes depend
            only on those of the updates. Before the first update the state holds its value for zeros.

    >>> import mlx.core as mx
    >>> import purestep as ps
    >>> transform = snapshot("norm", ps.tree.norm)
    >>> params = {"w": mx.zeros(2)}
    >>> transform.update({"w": mx.array([3.0, 4.0])}, transform.init(params))[1].measurement["norm"]
    array(5, dtype=float32)
    """
    _check_name("snapshot", measure_name)
    checks.function("snapshot", "measure", measure)

    def update(
        updates: Updates, state: SnapshotState, params: Params | None = None
    ) -> tuple[Updates, SnapshotState]:
        return updates, SnapshotState({measure_name: measure(tree.map(copy.copy, updates))})

    return checked(
        "snapshot", lambda params: SnapshotState({measure_name: measure(tree.zeros_like(params))}), update
    )


class MonitorState(NamedTuple):
    """State of `monitor`.

    Attributes:
        measurements: a dict from name to the measurement of the last updates.
        measure_states: a dict from name to the state of the measure; `()` for a plain function.
    """

    measurements: dict[str, Tree]
    measure_states: dict[str, Tree]


def monitor(measures: Mapping[str, GradientTransform | Callable[[Updates], Tree]]) -> GradientTransform:
    """Keep several measurements of the updates in the state; the updates are unchanged.

    Differences from optax:

    1. The state has the same structure before and after the first update. optax's begins without
       measurements.
    2. `measure_states` is a dict.

    Args:
        measures: a dict from name to a function of the updates, as in `snapshot`, or to a transform. A
            transform is a measure with a state. The updates that it returns are the measurement, and may have
            any structure.

    >>> import mlx.core as mx
    >>> import purestep as ps
    >>> transform = monitor({"norm": ps.tree.norm, "count": lambda updates: mx.array(tree.size(updates))})
    >>> params = {"w": mx.zeros(2)}
    >>> transform.update({"w": mx.array([3.0, 4.0])}, transform.init(params))[1].measurements
    {'norm': array(5, dtype=float32), 'count': array(2, dtype=int32)}
    """
    members: dict[str, Any] = {}
    for name, measure in dict(measures).items():
        _check_name("monitor", name)
        if hasattr(measure, "init") and hasattr(measure, "update"):
            members[name] = measure
        else:
            checks.function("monitor", f"measures[{name!r}]", measure)
            members[name] = _of_function(measure)
    inner_updates = {name: taking_extra(member) for name, member in members.items()}

    def measured(
        updates: Updates, states: dict[str, Tree], params: Params | None, extra: dict[str, Any]
    ) -> MonitorState:
        found = {
            name: update(updates, states[name], params, **extra) for name, update in inner_updates.items()
        }
        return MonitorState(
            {name: measurement for name, (measurement, _) in found.items()},
            {name: state for name, (_, state) in found.items()},
        )

    def init(params: Params) -> MonitorState:
        states = {name: member.init(params) for name, member in members.items()}
        zeros = tree.zeros_like(params)
        return MonitorState(measured(zeros, states, params, {}).measurements, states)

    def update(
        updates: Updates, state: MonitorState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MonitorState]:
        return updates, measured(updates, state.measure_states, params, extra)

    return checked("monitor", init, update)


def _of_function(measure: Any) -> GradientTransform:
    return GradientTransform(lambda params: (), lambda updates, state, params=None: (measure(updates), state))


def _check_name(caller: str, name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{caller}: a measure's name must be a string, got {name!r}")
