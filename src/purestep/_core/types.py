"""The names of the shapes that data takes on its way through a step."""

from collections.abc import Callable
from typing import Any, TypeAlias

import mlx.core as mx

Tree: TypeAlias = Any
"""Nested dicts, lists, tuples and NamedTuples of `mx.array`; `None` and empty containers stay in place."""

Params: TypeAlias = Tree
"""A tree of floating-point arrays: what is trained."""

Updates: TypeAlias = Tree
"""A tree like the parameters: gradients on the way in, the delta to add on the way out."""

Batch: TypeAlias = Tree
"""A tree of arrays that share their first axis."""

Metrics: TypeAlias = dict[str, mx.array]
"""A flat dict of 0-d arrays."""

Schedule: TypeAlias = Callable[[mx.array], mx.array]
"""`count -> value`, 0-d array to 0-d float32 array, traceable."""

ScalarOrSchedule: TypeAlias = float | mx.array | Callable[[mx.array], mx.array | float]

LossFn: TypeAlias = Callable[..., Any]
"""`loss_fn(params, batch, rng) -> loss` or `-> (loss, metrics)`; with `model_state` if stateful."""

Step: TypeAlias = Callable[[Any, Batch], tuple[Any, Metrics]]
"""`step(state, batch) -> (state, metrics)`."""
