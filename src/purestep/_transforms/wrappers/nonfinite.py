"""Gradients with NaN or infinity: skip the update, or replace the NaN."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, collective, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.wrappers.conditional import zero_unless

_SMALL = 1 << 14  # leaves of at most this many elements are checked together, in one kernel


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`.

    Attributes:
        consecutive: 0-d int32, the number of non-finite gradients in a row; 0 after a finite one.
        total: 0-d int32, the number of non-finite gradients so far.
        inner: the state of the wrapped transform, which does not count skipped updates.
    """

    consecutive: mx.array
    total: mx.array
    inner: Tree


def skip_nonfinite(inner: GradientTransform, max_consecutive: int | None = None) -> GradientTransform:
    """Skip an update whose gradients have a NaN or an infinite element: return zeros.

    The whole inner state is then unchanged bit for bit: moments, counts, schedules, averages. Read
    `state.consecutive` between steps to stop a run that no longer recovers.

    Args:
        inner: the transform to apply to finite gradients.
        max_consecutive: at least 0. After this many skipped updates in a row, the next one is applied even if
            it is not finite, so that a failed run is visible. `consecutive` then restarts at 0. `None`: every
            non-finite gradient is skipped.

    >>> from purestep.transforms import trace
    >>> transform = skip_nonfinite(trace(0.5))
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (1.0, mx.nan, 1.0):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    ...     print(updates["w"].item(), state.consecutive.item(), state.total.item())
    1.0 0 0
    0.0 1 1
    1.5 0 1
    """
    check_transform("skip_nonfinite", "inner", inner)
    if max_consecutive is not None:
        max_consecutive = checks.integer("skip_nonfinite", "max_consecutive", max_consecutive, least=0)
    inner_update = taking_extra(inner)

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(mx.array(0, mx.int32), mx.array(0, mx.int32), inner.init(params))

    def update(
        updates: Updates, state: SkipNonfiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SkipNonfiniteState]:
        finite = all_finite(updates)
        consecutive = mx.where(finite, 0, scalars.increment(state.consecutive))
        total = scalars.increment(state.total, (~finite).astype(mx.int32))
        apply = finite
        if max_consecutive is not None:
            enough = consecutive > max_consecutive
            apply, consecutive = finite | enough, mx.where(enough, 0, consecutive)
        out, new = inner_update(updates, state.inner, params, **extra)
        kept = SkipNonfiniteState(consecutive, total, tree.where(apply, new, state.inner))
        return zero_unless(apply, out), kept

    return checked("skip_nonfinite", init, update, elementwise=True)


class ApplyIfFiniteState(NamedTuple):
    """State of `apply_if_finite`.

    Attributes:
        notfinite_count: 0-d int32, the number of non-finite gradients in a row; 0 after a finite one.
        last_finite: 0-d bool, whether the last gradients were finite.
        total_notfinite: 0-d int32, the number of non-finite gradients so far.
        inner_state: the state of the wrapped transform.
    """

    notfinite_count: mx.array
    last_finite: mx.array
    total_notfinite: mx.array
    inner_state: Tree


def apply_if_finite(inner: GradientTransform, max_consecutive_errors: int) -> GradientTransform:
    """Skip updates from non-finite gradients, but apply one after `max_consecutive_errors` in a row.

    It is `skip_nonfinite(inner, max_consecutive_errors)` with optax's state.

    Differences from optax:

    1. After a non-finite gradient has been applied, `notfinite_count` restarts at 0. In optax, all later ones
       are applied too, until a finite gradient comes (optax #1746).

    Args:
        inner: the transform to apply.
        max_consecutive_errors: how many non-finite gradients in a row are skipped, at least 0.

    >>> from purestep.transforms import scale
    >>> transform = apply_if_finite(scale(-1.0), 1)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for _ in range(3):
    ...     updates, state = transform.update({"w": mx.array(mx.inf)}, state)
    ...     print(updates["w"].item(), state.notfinite_count.item())
    0.0 1
    -inf 0
    0.0 1
    """
    max_consecutive_errors = checks.integer(
        "apply_if_finite", "max_consecutive_errors", max_consecutive_errors, least=0
    )
    check_transform("apply_if_finite", "inner", inner)
    skip = skip_nonfinite(inner, max_consecutive_errors)
    skipping = taking_extra(skip)

    def init(params: Params) -> ApplyIfFiniteState:
        consecutive, total, inner_state = skip.init(params)
        return ApplyIfFiniteState(consecutive, mx.array(True), total, inner_state)

    def update(
        updates: Updates, state: ApplyIfFiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, ApplyIfFiniteState]:
        before = SkipNonfiniteState(state.notfinite_count, state.total_notfinite, state.inner_state)
        out, after = skipping(updates, before, params, **extra)
        last_finite = after.total == before.total
        return out, ApplyIfFiniteState(after.consecutive, last_finite, after.total, after.inner)

    return checked("apply_if_finite", init, update, elementwise=True)


class ZeroNansState(NamedTuple):
    """State of `zero_nans`.

    Attributes:
        found_nan: like params, 0-d bools: whether the leaf's last update contained a NaN.
    """

    found_nan: Tree


def zero_nans() -> GradientTransform:
    """Replace each NaN by zero; all other values are unchanged, also infinities.

    >>> transform = zero_nans()
    >>> transform.update({"w": mx.array([1.0, mx.nan])}, transform.init({"w": mx.zeros(2)}))
    ({'w': array([1, 0], dtype=float32)}, ZeroNansState(found_nan={'w': array(True, dtype=bool)}))
    """

    def update(
        updates: Updates, state: ZeroNansState, params: Params | None = None
    ) -> tuple[Updates, ZeroNansState]:
        found = tree.map(lambda u: mx.isnan(u).any(), updates)
        return tree.map(lambda u: mx.where(mx.isnan(u), mx.zeros_like(u), u), updates), ZeroNansState(found)

    return checked(
        "zero_nans", lambda params: ZeroNansState(tree.map(lambda _: mx.array(False), params)), update
    )


def all_finite(values: Tree) -> mx.array:
    """Return whether no element of any leaf is NaN or infinite, as a 0-d bool array.

    >>> all_finite({"a": mx.array([1.0, mx.inf]), "b": mx.array(2.0)})
    array(False, dtype=bool)
    """
    found = tree.leaves(values)
    small = [x.astype(mx.float32).reshape(-1) for x in found if x.size <= _SMALL]
    parts = [x for x in found if x.size > _SMALL] + ([mx.concatenate(small)] if small else [])
    finite = mx.stack([mx.isfinite(x).all() for x in parts]).all() if parts else mx.array(True)
    return collective.all_completed(finite)
