"""Apply a transform to some parameters only; keep others still.

Two things that are easily confused. `masked(inner, mask)` chooses where `inner` applies, and what it does
not apply to passes on *unchanged*: a gradient that nothing turned into a step. `freeze(mask)` sets the
updates of the chosen parameters to *zero*, so that they stay where they are.
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

"""A tree of Python booleans, `params -> such a tree`, or `(path, leaf) -> bool`."""


class MaskedState(NamedTuple):
    """State of `masked`.

    Attributes:
        inner_state: the state of the wrapped transform over the selected parameters; where it is built
            like params, it holds `()` for the others, so they take no memory.
    """

    inner_state: Tree


def masked(inner: GradientTransform, mask: Mask) -> GradientTransform:
    """Apply `inner` where the mask is true; other updates pass unchanged (they are not frozen: see `freeze`).

    Differences from optax:

    1. Extra arguments that are built like the updates are masked as they are, always; optax wants
       `mask_compatible_extra_args` for it.
    2. Functions of `(path, leaf)` are masks too.
    3. What is not selected is `()`, an empty tuple, where optax puts a `MaskedNode`.

    Args:
        inner: sees only the selected leaves, with `()` in place of the others.
        mask: a tree of Python booleans built like the parameters, where one boolean may stand for a
            whole subtree; or a function of the parameters that returns one, such as `by_path(...)` or
            `matrices`; or a function of two arguments, `(path, leaf) -> bool`.

    Raises:
        ValueError: at init or update, if the mask is built differently, or holds something other than True
            and False, with the path.

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

    return checked("masked", init, update)


def set_to_zero() -> GradientTransform:
    """Replace every update by zero, NaN and infinity too; dtypes stay.

    >>> set_to_zero().update({"w": mx.array(3.0)}, ())
    ({'w': array(0, dtype=float32)}, ())
    """
    return without_state("set_to_zero", lambda updates, params: tree.zeros_like(updates))


def freeze(mask: Mask) -> GradientTransform:
    """Set the updates to zero where the mask is true, so that those parameters stay to the bit.

    Put it last in a chain: weight decay after it would move them again. The transforms before it still
    see the frozen gradients; to spare their memory too, use `partition` with `set_to_zero()` for a group.

    Args:
        mask: what is frozen; as in `masked`.

    >>> from purestep.transforms import by_path
    >>> transform = freeze(by_path("encoder.*"))
    >>> updates = {"encoder": {"w": mx.array(3.0)}, "head": mx.array(3.0)}
    >>> transform.update(updates, ())[0]
    {'encoder': {'w': array(0, dtype=float32)}, 'head': array(3, dtype=float32)}
    """

    def update(updates: Updates, params: Params | None) -> Updates:
        chosen = resolve_mask("freeze", mask, updates if params is None else params)
        return tree.map(lambda u, still: mx.zeros_like(u) if still else u, updates, chosen)

    transform = without_state("freeze", update)

    def init(params: Params) -> tuple[()]:
        resolve_mask("freeze", mask, params)  # a mask of another structure is refused here already
        return ()

    return checked("freeze", init, taking_extra(transform))
