"""Transforms that apply at some updates and rest at others."""

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
        step: 0-d int32, updates asked for, made or not.
        inner_state: the state of the wrapped transform.
    """

    step: mx.array
    inner_state: Tree


def conditionally_mask(
    inner: GradientTransform,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool = False,
) -> GradientTransform:
    """Apply `inner` where a condition holds; elsewhere the updates are zero and its state rests.

    Args:
        inner: what is applied.
        should_transform_fn: `step -> bool`, from the 0-d int32 count of calls before this one to a 0-d
            boolean array; it must not branch on the count in Python.
        forward_extra_args: hand it the extra keyword arguments (`value`, `grad_norm`) as well.

    >>> from purestep.transforms import scale
    >>> transform = conditionally_mask(scale(-1.0), lambda step: step % 2 == 1)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state)
    ...     print(updates["w"].item())
    0.0
    -3.0
    """
    caller = "conditionally_mask"
    condition = _condition(caller, inner, should_transform_fn, forward_extra_args)
    inner_update = taking_extra(inner)

    def update(
        updates: Updates, state: ConditionallyMaskState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ConditionallyMaskState]:
        apply = condition(state.step, extra)
        out, new = inner_update(updates, state.inner_state, params, **extra)
        kept = ConditionallyMaskState(
            scalars.increment(state.step), tree.where(apply, new, state.inner_state)
        )
        return zero_unless(apply, out), kept

    return checked(
        caller, lambda params: ConditionallyMaskState(mx.array(0, mx.int32), inner.init(params)), update
    )


class ConditionallyTransformState(NamedTuple):
    """State of `conditionally_transform`.

    Attributes:
        inner_state: the state of the wrapped transform.
        step: 0-d int32, updates asked for, transformed or not.
    """

    inner_state: Tree
    step: mx.array


def conditionally_transform(
    inner: GradientTransform,
    should_transform_fn: Callable[..., Any],
    forward_extra_args: bool = False,
) -> GradientTransform:
    """Apply `inner` where a condition holds; elsewhere updates pass unchanged and its state rests.

    Args:
        inner: what is applied.
        should_transform_fn: as in `conditionally_mask`.
        forward_extra_args: as in `conditionally_mask`.

    >>> from purestep.transforms import scale
    >>> transform = conditionally_transform(scale(-1.0), lambda step: step % 2 == 1)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(2):
    ...     updates, state = transform.update({"w": mx.array(3.0)}, state)
    ...     print(updates["w"].item())
    3.0
    -3.0
    """
    caller = "conditionally_transform"
    condition = _condition(caller, inner, should_transform_fn, forward_extra_args)
    inner_update = taking_extra(inner)

    def update(
        updates: Updates, state: ConditionallyTransformState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ConditionallyTransformState]:
        apply = condition(state.step, extra)
        out, new = inner_update(updates, state.inner_state, params, **extra)
        kept = ConditionallyTransformState(
            tree.where(apply, new, state.inner_state), scalars.increment(state.step)
        )
        return tree.where(apply, out, updates), kept

    return checked(
        caller, lambda params: ConditionallyTransformState(inner.init(params), mx.array(0, mx.int32)), update
    )


def zero_unless(apply: mx.array, updates: Updates) -> Updates:
    """Return the updates, or zeros where the 0-d condition is false; dtypes stay."""
    return tree.map(lambda u: mx.where(apply, u, mx.zeros_like(u)), updates)


def _condition(
    caller: str, inner: Any, fn: Any, forward: bool
) -> Callable[[mx.array, dict[str, Any]], mx.array]:
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
