"""Checks that a state and gradients fit the parameters: structure, shapes and dtypes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates

_SHOWN = 3  # the most differences in one message


class _Form:
    """The shape and dtype of an array, without its memory."""

    __slots__ = ("dtype", "shape")

    def __init__(self, leaf: Any):
        self.shape, self.dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", type(leaf))


class StateCheck:
    """Compare states with the state that `init` makes for the parameters.

    `init` is called once for each structure of parameters. After that, a check compares two trees in
    Python and computes nothing.

    Args:
        caller: the public name for errors.
        init: the `init` of a transform.
        name: the name of the state in errors, a path such as `state.opt_state`.
        strict: refuse another floating-point dtype too.

    >>> check = StateCheck("sgd", lambda params: (tree.zeros_like(params),))
    >>> check(({"w": mx.zeros(2)},), {"w": mx.ones(2)})
    >>> check((), {"w": mx.ones(2)})
    Traceback (most recent call last):
        ...
    ValueError: sgd: state.0 is in transform.init(params), not in the state
    """

    def __init__(
        self, caller: str, init: Callable[[Params], Tree], name: str = "state", *, strict: bool = True
    ):
        self._caller, self._init, self._name, self._strict = caller, init, name, strict
        self._known: tuple[Tree, Tree] | None = None

    def __call__(self, state: Tree, params: Params) -> None:
        """Refuse a state whose structure, shapes or dtypes differ from those of `init(params)`.

        Raises:
            ValueError: with the paths that differ.
        """
        known = self._known
        if known is None or not tree.matches(_same, known[0], params):
            known = tree.map(_Form, params), tree.map(_Form, self._init(params))
            self._known = known  # one assignment, so that several threads may check at once
        if self._fits(known[1], state):
            return
        got, want = (_named(self._name, tree.spec(each)) for each in (state, self._init(params)))
        lines = tree.differences(got, want, "the state", "transform.init(params)", cast=not self._strict)
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise checks.error(self._caller, "; ".join(lines[:_SHOWN]) + more)

    def _fits(self, form: Tree, state: Tree) -> bool:
        def same(want: Any, leaf: Any) -> bool:
            if not isinstance(leaf, mx.array) or want.shape != leaf.shape:
                return False
            return want.dtype == leaf.dtype or (not self._strict and _floating(want) and _floating(leaf))

        return tree.matches(same, form, state)


def check_gradients(caller: str, updates: Updates, params: Params | None) -> None:
    """Refuse gradients whose structure or shapes differ from the parameters: some shapes would broadcast."""
    if params is None or tree.matches(_same_shape, updates, params):
        return
    got, want = (tree.spec(tree.map(_in_float32, each)) for each in (updates, params))
    raise checks.error(caller, "; ".join(tree.differences(got, want, "updates", "params")[:_SHOWN]))


def _same(form: Any, leaf: Any) -> bool:
    return form.shape == getattr(leaf, "shape", None) and form.dtype == getattr(leaf, "dtype", type(leaf))


def _floating(leaf: Any) -> bool:
    return mx.issubdtype(leaf.dtype, mx.floating)


def _named(name: str, spec: tree.Spec) -> tree.Spec:
    """Return the spec of a tree that holds this one at a path."""
    for segment in reversed(name.split(".")):
        spec = tree.NodeSpec("dict", "dict", ((segment, spec),))
    return spec


def _same_shape(first: Any, second: Any) -> bool:
    return isinstance(first, mx.array) and isinstance(second, mx.array) and first.shape == second.shape


def _in_float32(leaf: Any) -> Any:
    return leaf.astype(mx.float32) if isinstance(leaf, mx.array) else leaf
