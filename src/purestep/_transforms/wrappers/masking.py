"""Transforms that apply to some parameters only, and frozen parameters.

`masked(inner, mask)` applies `inner` to the selected updates and leaves the others *unchanged*: they are
still gradients. `freeze(mask)` sets the selected updates to *zero*, so that those parameters do not change.
"""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import (
    GradientTransform,
    check_transform,
    checked,
    taking_extra,
    without_state,
)
from purestep._transforms.core.masks import Mask, merge, resolve_mask, select, select_extra


class MaskedState(NamedTuple):
    """State of `masked`.

    Attributes:
        inner_state: the state of the wrapped transform. In its trees with the structure of params, `()`
            replaces each parameter that is not selected, so nothing is stored for it.
    """

    inner_state: Tree


def masked(inner: GradientTransform, mask: Mask) -> GradientTransform:
    """Apply `inner` where the mask is true; the other updates are unchanged. See also `freeze`.

    Differences from optax:

    1. Extra arguments with the structure of the updates are always masked too; optax has the option
       `mask_compatible_extra_args`.
    2. Functions of `(path, leaf)` are masks too.
    3. Leaves that are not selected are replaced by `()`; optax uses a `MaskedNode`.

    Args:
        inner: receives the selected leaves, with `()` in place of the others.
        mask: a tree of Python booleans with the structure of the parameters, where one boolean may stand
            for a whole subtree; or a function of the parameters that returns such a tree, for example
            `by_path(...)` or `matrices`; or a function of two arguments, `(path, leaf) -> bool`.

    Raises:
        ValueError: at init or update, if the mask has another structure or a leaf that is not True or False.
            The error names the path.

    >>> from purestep.transforms import scale
    >>> transform = masked(scale(-1.0), {"w": True, "b": False})
    >>> params = {"w": mx.array(0.0), "b": mx.array(0.0)}
    >>> transform.update({"w": mx.array(3.0), "b": mx.array(3.0)}, transform.init(params), params)[0]
    {'w': array(-3, dtype=float32), 'b': array(3, dtype=float32)}
    """
    check_transform("masked", "inner", inner)
    inner_update = taking_extra(inner)

    def init(params: Params) -> MaskedState:
        return MaskedState(inner.init(select(resolve_mask("masked", mask, params), params)))

    def update(
        updates: Updates, state: MaskedState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MaskedState]:
        chosen = resolve_mask("masked", mask, updates if params is None else params)
        some, inner_state = inner_update(
            select(chosen, updates),
            state.inner_state,
            None if params is None else select(chosen, params),
            **select_extra(chosen, extra),
        )
        return merge("masked", chosen, some, updates), MaskedState(inner_state)

    return checked("masked", init, update, elementwise=True)


def set_to_zero() -> GradientTransform:
    """Replace every update by zero, also NaN and infinity; dtypes are unchanged.

    >>> set_to_zero().update({"w": mx.array(3.0)}, ())
    ({'w': array(0, dtype=float32)}, ())
    """
    return without_state("set_to_zero", lambda updates, params: tree.zeros_like(updates), elementwise=True)


def freeze(mask: Mask) -> GradientTransform:
    """Set the updates to zero where the mask is true, so that those parameters do not change.

    Place it last in a chain, since weight decay after it would change them again. The transforms before it
    still receive the gradients of frozen parameters and keep states for them. To save that memory too, use
    `partition` with `set_to_zero()` for the frozen group.

    Args:
        mask: selects the parameters to freeze, in any form that `masked` accepts.

    >>> from purestep.transforms import by_path
    >>> transform = freeze(by_path("encoder.*"))
    >>> updates = {"encoder": {"w": mx.array(3.0)}, "head": mx.array(3.0)}
    >>> transform.update(updates, ())[0]
    {'encoder': {'w': array(0, dtype=float32)}, 'head': array(3, dtype=float32)}
    """

    def update(updates: Updates, params: Params | None) -> Updates:
        chosen = resolve_mask("freeze", mask, updates if params is None else params)
        return tree.map(lambda u, still: mx.zeros_like(u) if still else u, updates, chosen)

    transform = without_state("freeze", update, elementwise=True)

    def init(params: Params) -> tuple[()]:
        resolve_mask("freeze", mask, params)  # refuses a mask of another structure
        return ()

    return checked("freeze", init, taking_extra(transform), elementwise=True)
