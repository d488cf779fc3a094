"""Dynamic loss scaling for float16 gradients."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, check_transform, checked, taking_extra
from purestep._transforms.wrappers.conditional import zero_unless
from purestep._transforms.wrappers.nonfinite import all_finite


class DynamicLossScaleState(NamedTuple):
    """State of `dynamic_loss_scale`.

    Attributes:
        loss_scale: 0-d float32, the factor for the next loss.
        good_steps: 0-d int32 in [0, growth_interval), finite gradients counted towards the next growth.
        skipped: 0-d int32, the number of updates skipped so far because of gradients that are not finite.
        inner: the state of the wrapped transform, which does not count skipped updates.
    """

    loss_scale: mx.array
    good_steps: mx.array
    skipped: mx.array
    inner: Tree


def dynamic_loss_scale(
    inner: GradientTransform,
    init_scale: float = 2.0**15,
    growth_interval: int = 2000,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    *,
    min_scale: float = 1.0,
    max_scale: float = 2.0**24,
) -> GradientTransform:
    """Divide gradients by the scale of their loss, skip those that are not finite, and adapt the scale.

    The gradients of a float16 model are often too small for float16. If the loss is multiplied by
    `loss_scale`, they are larger. This transform divides them by the scale in float32, and passes them to
    `inner`. An update with a gradient that is not finite is skipped, as by `skip_nonfinite`, and the scale
    is multiplied by `backoff_factor`. After `growth_interval` finite gradients in a row, the scale is
    multiplied by `growth_factor`.

    `loss_scaled_step` builds a training step that multiplies the loss by the scale in the state. A step of
    your own reads the scale with `loss_scale(opt_state)`.

    Args:
        inner: the chain of all other transforms, also gradient clipping.
        init_scale: in [min_scale, max_scale]. A power of two causes no rounding; choose one for both factors
            too.
        growth_interval: in updates, at least 1.
        growth_factor: at least 1.
        backoff_factor: in (0, 1).
        min_scale: the lower bound of the scale, greater than 0.
        max_scale: the upper bound of the scale, at least `min_scale`.

    Reference: Micikevicius et al., Mixed precision training, arXiv:1710.03740.

    >>> from purestep.transforms import scale
    >>> transform = dynamic_loss_scale(scale(-1.0), init_scale=8.0)
    >>> state = transform.init({"w": mx.array(0.0)})
    >>> for gradient in (8.0, mx.inf):
    ...     updates, state = transform.update({"w": mx.array(gradient)}, state)
    ...     print(updates["w"].item(), loss_scale(state).item())
    -1.0 8.0
    0.0 4.0
    """
    caller = "dynamic_loss_scale"
    check_transform(caller, "inner", inner)
    growth_interval = checks.integer(caller, "growth_interval", growth_interval, least=1)
    growth_factor = checks.number(caller, "growth_factor", growth_factor, least=1)
    backoff_factor = checks.number(caller, "backoff_factor", backoff_factor, above=0, below=1)
    min_scale = checks.number(caller, "min_scale", min_scale, above=0)
    max_scale = checks.number(caller, "max_scale", max_scale, least=min_scale)
    init_scale = checks.number(caller, "init_scale", init_scale, least=min_scale, most=max_scale)
    inner_update = taking_extra(inner)

    def adapted(scale: mx.array, finite: mx.array, grow: mx.array) -> mx.array:
        grown = mx.where(grow, mx.minimum(growth_factor * scale, max_scale), scale)
        return mx.where(finite, grown, mx.maximum(backoff_factor * scale, min_scale))

    def init(params: Params) -> DynamicLossScaleState:
        return DynamicLossScaleState(
            loss_scale=mx.array(init_scale, mx.float32),
            good_steps=mx.array(0, mx.int32),
            skipped=mx.array(0, mx.int32),
            inner=inner.init(params),
        )

    def update(
        updates: Updates, state: DynamicLossScaleState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, DynamicLossScaleState]:
        unscaled, extra = _unscaled(1 / state.loss_scale, updates, extra)
        finite = all_finite(updates)
        out, new = inner_update(unscaled, state.inner, params, **extra)
        grow = finite & (state.good_steps == growth_interval - 1)
        kept = DynamicLossScaleState(
            loss_scale=adapted(state.loss_scale, finite, grow),
            good_steps=mx.where(finite & ~grow, scalars.increment(state.good_steps), 0),
            skipped=scalars.increment(state.skipped, (~finite).astype(mx.int32)),
            inner=tree.where(finite, new, state.inner),
        )
        return zero_unless(finite, out), kept

    return checked(caller, init, update, elementwise=True)


def loss_scale(opt_state: Tree) -> mx.array:
    """Return the scale of the next loss, 0-d float32, from any depth of an optimizer state.

    Raises:
        ValueError: if the state has no `loss_scale`, or more than one.

    >>> from purestep.transforms import scale
    >>> loss_scale(dynamic_loss_scale(scale(1.0)).init({"w": mx.array(0.0)}))
    array(32768, dtype=float32)
    """
    found = tree.fields(opt_state, "loss_scale")
    if len(found) != 1:
        raise checks.error(
            "loss_scale", f"the state must hold one loss_scale, of dynamic_loss_scale, got {len(found)}"
        )
    return found[0][1]


def _unscaled(inverse: mx.array, updates: Updates, extra: dict[str, Any]) -> tuple[Updates, dict[str, Any]]:
    """Return the updates times the inverse scale, and extra arguments with unscaled gradients and norm."""

    def unscale(values: Updates) -> Updates:
        return tree.map(lambda g: inverse * g.astype(mx.float32), values)

    unscaled = unscale(updates)
    if extra.get("gradients") is not None:
        same = extra["gradients"] is updates
        extra["gradients"] = unscaled if same else unscale(extra["gradients"])
    if extra.get("grad_norm") is not None:
        extra["grad_norm"] = inverse * extra["grad_norm"]
    return unscaled, extra
