"""Transforms that apply only at the updates where a condition holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.core.scheduled import called


class ConditionallyMaskState(NamedTuple):
    """State of `conditionally_mask`.

    Attributes:
        step: 0-d int32, the number of calls of `update`, applied or not.
        inner_state: the state of the wrapped transform.
    """

    step: mx.array
    inner_state: Tree


class ConditionallyTransformState(NamedTuple):
    """State of `conditionally_transform`.

    Attributes:
        inner_state: the state of the wrapped transform.
        step: 0-d int32, the number of calls of `update`, applied or not.
    """

    inner_state: Tree
    step: mx.array


def conditionally_mask(
    inner: GradientTransform, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> GradientTransform:
    """Apply `inner` at the calls where a condition holds; at others, return zeros and keep its state.

    Args:
        inner: the transform to apply.
        should_transform_fn: `step -> condition`, where `step` is the number of earlier calls, 0-d int32, and
            the condition is a 0-d boolean array. It must not branch on `step` in Python.
        forward_extra_args: also pass it all extra keyword arguments of `update`, such as `value` and
            `grad_norm`.

    >>> from purestep.transforms import scale
    >>> transform = conditionally_mask(scale(-1.0), lambda step: step % 2 == 1)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state)
    ...     print(updates["w"].item())
    0.0
    -3.0
    """
    condition = _condition("conditionally_mask", inner, should_transform_fn, forward_extra_args)

    def otherwise_zero(apply: mx.array, out: Updates, updates: Updates) -> Updates:
        return zero_unless(apply, out)

    return _conditional("conditionally_mask", inner, condition, ConditionallyMaskState, otherwise_zero)


def conditionally_transform(
    inner: GradientTransform, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> GradientTransform:
    """Apply `inner` at the calls where a condition holds; at others, return the updates and keep its state.

    Args:
        inner: the transform to apply.
        should_transform_fn: as in `conditionally_mask`.
        forward_extra_args: as in `conditionally_mask`.

    >>> from purestep.transforms import scale
    >>> transform = conditionally_transform(scale(-1.0), lambda step: step >= 1)
    >>> first, state = transform.update({"w": mx.array(3.0)}, transform.init({"w": mx.array(0.0)}))
    >>> second, state = transform.update({"w": mx.array(3.0)}, state)
    >>> first["w"].item(), second["w"].item()
    (3.0, -3.0)
    """
    condition = _condition("conditionally_transform", inner, should_transform_fn, forward_extra_args)
    return _conditional("conditionally_transform", inner, condition, ConditionallyTransformState, tree.where)


def zero_unless(apply: mx.array, updates: Updates) -> Updates:
    """Return the updates, or zeros of the same dtypes if the 0-d condition is false."""
    return tree.map(lambda u: mx.where(apply, u, mx.zeros_like(u)), updates)


def _condition(
    caller: str, inner: Any, fn: Any, forward: bool
) -> Callable[[mx.array, dict[str, Any]], mx.array]:
    """Check the arguments and return the condition `(step, extra arguments) -> 0-d boolean array`."""
    check_transform(caller, "inner", inner)
    checks.function(caller, "should_transform_fn", fn)

    def condition(step: mx.array, extra: dict[str, Any]) -> mx.array:
        value = called(caller, "should_transform_fn", fn, step, **(extra if forward else {}))
        if isinstance(value, bool):
            value = mx.array(value)
        if not isinstance(value, mx.array) or value.ndim != 0 or value.dtype != mx.bool_:
            raise TypeError(f"{caller}: should_transform_fn must return a 0-d boolean array, got {value!r}")
        return value

    return condition


def _conditional(
    caller: str,
    inner: GradientTransform,
    condition: Callable[[mx.array, dict[str, Any]], mx.array],
    state_type: type[ConditionallyMaskState] | type[ConditionallyTransformState],
    choose: Callable[[mx.array, Updates, Updates], Updates],
) -> GradientTransform:
    """Apply `inner` where the condition holds; `choose(apply, transformed, updates)` gives the updates."""
    inner_update = taking_extra(inner)

    def init(params: Params) -> ConditionallyMaskState | ConditionallyTransformState:
        return state_type(step=mx.array(0, mx.int32), inner_state=inner.init(params))

    def update(
        updates: Updates,
        state: ConditionallyMaskState | ConditionallyTransformState,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Updates, ConditionallyMaskState | ConditionallyTransformState]:
        apply = condition(state.step, extra)
        out, new = inner_update(updates, state.inner_state, params, **extra)
        kept = state_type(
            step=scalars.increment(state.step), inner_state=tree.where(apply, new, state.inner_state)
        )
        return choose(apply, out, updates), kept

    return checked(caller, init, update, elementwise=True)
