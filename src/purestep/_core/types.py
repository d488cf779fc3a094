"""The types of the data in a step, and of the functions that users write."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, overload

import mlx.core as mx

from purestep._core.mean import Mean, MeanSum

Tree: TypeAlias = Any
"""Nested dicts, lists, tuples and NamedTuples of `mx.array`; `None` and empty containers stay in place."""

Params: TypeAlias = Tree
"""The trained parameters: a tree of floating-point arrays."""

Updates: TypeAlias = Tree
"""A tree with the structure of the parameters. A transform turns gradients into the delta to add."""

Batch: TypeAlias = Tree
"""A tree of arrays that share their first axis."""

Metrics: TypeAlias = dict[str, mx.array]
"""A flat dict of 0-d arrays."""

Schedule: TypeAlias = Callable[[mx.array], mx.array]
"""`count -> value`, 0-d array to 0-d float32 array, traceable."""

ScalarOrSchedule: TypeAlias = float | mx.array | Callable[[mx.array], mx.array | float]
"""A Python number, a 0-d array, or a schedule."""

Loss: TypeAlias = mx.array | Mean | MeanSum
"""A loss or a metric: a 0-d array, a `Mean`, or a sum of `Mean`s."""

LossOutput: TypeAlias = Loss | tuple[Loss, Mapping[str, Loss]]
"""`loss` or `(loss, metrics)`; `metrics` must be a dict."""

PlainLossFn: TypeAlias = Callable[[Params, Batch, mx.array], LossOutput]
"""`loss_fn(params, batch, rng) -> loss` or `-> (loss, metrics)`."""

StatefulLossFn: TypeAlias = Callable[[Params, Tree, Batch, mx.array], tuple[Loss, Mapping[str, Loss], Tree]]
"""`loss_fn(params, model_state, batch, rng) -> (loss, metrics, model_state)`, for `stateful=True`."""

LossFn: TypeAlias = PlainLossFn | StatefulLossFn
"""A loss function for `train_step` or `eval_step`, which may call it with `None` for `rng`."""

Encoder: TypeAlias = (
    Callable[[Params, Batch, mx.array], Tree] | Callable[[Params, Tree, Batch, mx.array], tuple[Tree, Tree]]
)
"""An encoder for `cached_contrastive_step`, plain or stateful."""

StepFn: TypeAlias = Callable[[Any, Batch], tuple[Any, Metrics]]
"""`step(state, batch) -> (state, metrics)`: any function with this signature, such as a `Step`."""

EvalStepFn: TypeAlias = Callable[[Any, Batch], dict[str, Mean | MeanSum]]
"""`eval_step(state, batch) -> {"loss": Mean, ...}`: any function with this signature."""


class Source(Protocol):
    """Batches as a pure function of the step number.

    A resumed run sees the same batches as an uninterrupted one, because a source has no iterator whose state
    must be saved.
    """

    def at(self, step: int, /) -> Batch:
        """Return the batch of one step, counted from 0; every call with one step returns the same batch."""
        ...


class OnPolicySource(Protocol):
    """Batches as a function of the training state, such as completions sampled from it.

    Attributes:
        on_policy: true. It tells `run` and `fit` to call `at` with the state.
    """

    on_policy: bool

    def at(self, state: Any, /) -> Batch:
        """Return the batch of one state; equal states give equal batches."""
        ...


class Init(Protocol):
    """`init(params) -> state`."""

    def __call__(self, params: Params, /) -> Tree:
        """Return the state before the first update, a tree of arrays."""
        ...


class Update(Protocol):
    """`update(updates, state, params=None, **extra) -> (updates, state)`."""

    # To type checkers, `*args: Any, **extra: Any` accepts updates with any other arguments, or with none.
    def __call__(
        self, updates: Updates, state: Tree, /, params: Params | None = None, *args: Any, **extra: Any
    ) -> tuple[Updates, Tree]:
        """Return the changed updates and the next state."""
        ...


class Apply(Protocol):
    """The forward pass of a module as a pure function of its arrays; `functional` documents it."""

    @overload
    def __call__(
        self,
        params: Params,
        *args: Any,
        rng: mx.array | None = None,
        model_state: None = None,
        train: bool | None = None,
        method: str | Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> Any: ...

    @overload
    def __call__(
        self,
        params: Params,
        *args: Any,
        rng: mx.array | None = None,
        model_state: dict[str, Any],
        train: bool | None = None,
        method: str | Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]: ...
