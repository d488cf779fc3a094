"""Transforms made of transforms."""

from typing import Any

from purestep.transforms.base import (
    GradientTransform,
    check_floating,
    check_transform,
    checked,
    taking_extra,
)
from purestep.types import Params, Tree, Updates


def chain(*transforms: GradientTransform) -> GradientTransform:
    """Apply transforms one after another; the first sees the gradients.

    The state is the tuple of the members' states. Extra keyword arguments reach only the members that
    name them. `chain()` is `identity()` with an empty tuple for its state.

    Raises:
        TypeError: if a member is not a transform.
        ValueError: for integer parameters, gradients that are not built and shaped like the parameters, or
            a state that is not that of as many members; with the path.

    >>> import mlx.core as mx
    >>> from purestep.transforms.scaling import scale
    >>> both = chain(scale(2.0), scale(-0.5))
    >>> both.update({"w": mx.array(3.0)}, both.init({"w": mx.array(0.0)}))
    ({'w': array(-3, dtype=float32)}, ((), ()))
    """
    for index, transform in enumerate(transforms):
        check_transform("chain", f"transforms[{index}]", transform)
    members = [taking_extra(transform) for transform in transforms]

    def init(params: Params) -> tuple[Tree, ...]:
        check_floating("chain", params)
        return tuple(transform.init(params) for transform in transforms)

    def update(
        updates: Updates, state: tuple[Tree, ...], params: Params | None = None, **extra: Any
    ) -> tuple[Updates, tuple[Tree, ...]]:
        states = []
        for member, member_state in zip(members, state, strict=True):
            updates, new = member(updates, member_state, params, **extra)
            states.append(new)
        return updates, tuple(states)

    return checked("chain", init, update)
