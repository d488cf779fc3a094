"""Chains of transforms, with and without names."""

from typing import Any

from purestep._core import checks
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import (
    GradientTransform,
    check_floating,
    check_transform,
    checked,
    taking_extra,
)


def chain(*transforms: GradientTransform) -> GradientTransform:
    """Apply transforms one after another; the first receives the gradients.

    The state is the tuple of the members' states. Extra keyword arguments reach only the members that
    name them. `chain()` is `identity()`.

    Raises:
        TypeError: if a member is not a transform.
        ValueError: at init, for parameters that are not floating-point; at update, for gradients whose
            structure or shapes differ from those of the parameters, or for the state of another chain. The
            error names the path.

    >>> import mlx.core as mx
    >>> from purestep.transforms import scale
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

    return checked("chain", init, update, elementwise=True)


def named_chain(*args: tuple[str, GradientTransform]) -> GradientTransform:
    """Apply transforms one after another, as `chain` does, and keep their states in a dict by name.

    A member's state is found by its name, so inserting another member does not move it.

    Args:
        args: pairs `(name, transform)` with different names.

    Raises:
        TypeError: if a pair is not a name and a transform.
        ValueError: if a name is used twice; at update, if the state has other names.

    >>> import mlx.core as mx
    >>> from purestep.transforms import scale_by_learning_rate, trace
    >>> transform = named_chain(("momentum", trace(0.9)), ("rate", scale_by_learning_rate(0.1)))
    >>> transform.init({"w": mx.array(0.0)})["rate"].learning_rate
    array(0.1, dtype=float32)
    """
    caller = "named_chain"
    members: dict[str, GradientTransform] = {}
    for index, pair in enumerate(args):
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"{caller}: args[{index}] must be a pair (name, transform), got {pair!r}")
        name, transform = pair
        check_transform(caller, name, transform)
        if name in members:
            raise checks.error(caller, f"names must differ, got {name!r} twice")
        members[name] = transform
    inner_updates = {name: taking_extra(transform) for name, transform in members.items()}

    def init(params: Params) -> dict[str, Tree]:
        return {name: transform.init(params) for name, transform in members.items()}

    def update(
        updates: Updates, state: dict[str, Tree], params: Params | None = None, **extra: Any
    ) -> tuple[Updates, dict[str, Tree]]:
        states = {}
        for name, inner_update in inner_updates.items():
            updates, states[name] = inner_update(updates, state[name], params, **extra)
        return updates, states

    return checked(caller, init, update, elementwise=True)
