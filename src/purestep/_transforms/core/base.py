"""The contract of a gradient transform, and what every transform is used through."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.fitting import StateCheck
from purestep._transforms.core.foreign import meant_instead


class GradientTransform(NamedTuple):
    """A pair of pure functions that turns gradients into the delta to add to the parameters.

    Attributes:
        init: `init(params) -> state`, a tree of arrays.
        update: `update(updates, state, params=None, **extra) -> (updates, state)`. The updates keep the
            structure and shapes of the gradients; the state keeps its structure, shapes and dtypes. A
            transform that wants more than these (`value`, the loss; `weight`, what the loss is a mean
            over) names it as a keyword argument, and is handed it by `train_step` through any `chain`.

    The same contract as optax's, sign included: gradients come in, what is added to the parameters
    comes out, and the sign turns once, in `scale_by_learning_rate`.

    >>> def update(updates, state, params=None):
    ...     return tree.map(lambda u: u / 2, updates), state
    >>> halve = GradientTransform(lambda params: (), update)
    >>> halve.update({"w": mx.array(3.0)}, halve.init({"w": mx.array(0.0)}))
    ({'w': array(1.5, dtype=float32)}, ())
    """

    init: Callable[[Params], Tree]
    update: Callable[..., tuple[Updates, Tree]]


def identity() -> GradientTransform:
    """Return the transform that changes nothing: the neutral element of `chain`.

    >>> identity().update({"w": mx.array(2.0)}, ())
    ({'w': array(2, dtype=float32)}, ())
    """
    return without_state("identity", lambda updates, params: updates)


def stateless(fn: Callable[[Updates, Params | None], Updates]) -> GradientTransform:
    """Make a transform of a function `(updates, params) -> updates`; its state is `()`.

    >>> import purestep as ps
    >>> double = stateless(lambda updates, params: ps.tree.map(lambda u: 2 * u, updates))
    >>> double.update({"w": mx.array(3.0)}, ())
    ({'w': array(6, dtype=float32)}, ())
    """
    return without_state("stateless", fn)


def without_state(caller: str, fn: Callable[[Updates, Params | None], Updates]) -> GradientTransform:
    """Do what `stateless` does, under the public name that errors give."""

    def update(updates: Updates, state: tuple[()], params: Params | None = None) -> tuple[Updates, tuple[()]]:
        return fn(updates, params), ()

    return checked(caller, lambda params: (), update)


def checked(
    caller: str, init: Callable[[Params], Tree], update: Callable[..., tuple[Updates, Tree]]
) -> GradientTransform:
    """Make a transform whose update refuses gradients and states that are not of its parameters.

    Both are compared before anything is computed, once however deep transforms wrap one another: what is
    called through `taking_extra` has been compared as a part of the whole. An update without params takes
    the updates in their place, and floating-point dtypes are not compared.

    Args:
        caller: the public name that errors give.
        init: as in `GradientTransform`.
        update: as in `GradientTransform`.

    Raises:
        ValueError: at update, with the path.

    >>> transform = checked("halve", lambda params: (), lambda updates, state, params=None: (updates, ()))
    >>> transform.update({"w": mx.ones(2)}, (), {"w": mx.ones(3)})
    Traceback (most recent call last):
        ...
    ValueError: halve: w has shape (2,) in updates, (3,) in params
    """
    check = StateCheck(caller, init, strict=False)

    @functools.wraps(update)
    def guarded(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        check_gradients(caller, updates, params)
        check(state, updates if params is None else params)
        return update(updates, state, params, **extra)

    guarded.unchecked = update  # type: ignore[attr-defined]
    return GradientTransform(init, guarded)


def check_state(
    caller: str, transform: GradientTransform, state: Tree, params: Params, *, name: str = "state"
) -> None:
    """Refuse a state that is not one of this transform for these parameters.

    For many checks of one transform keep a `StateCheck(caller, transform.init, name)`: it calls `init` once.

    Raises:
        ValueError: with the path of what differs, before anything is computed.

    >>> from purestep.transforms import trace
    >>> check_state("resume", trace(0.9), (), {"w": mx.ones(2)}, name="opt_state")
    Traceback (most recent call last):
        ...
    ValueError: resume: opt_state is a tuple in the state, a TraceState in transform.init(params)
    """
    StateCheck(caller, transform.init, name)(state, params)


def apply_updates(params: Params, updates: Updates) -> Params:
    """Add the updates to the parameters; each sum is rounded once, to the parameter's dtype.

    Args:
        params: a tree of arrays.
        updates: a tree of the same structure and shapes; a `None` in both stays `None`.

    Raises:
        ValueError: if the structures or shapes differ, with the path.

    >>> apply_updates({"w": mx.array([1.0, 2.0])}, {"w": mx.array([0.5, -0.5])})
    {'w': array([1.5, 1.5], dtype=float32)}
    """

    def add(path: str, param: mx.array, update: mx.array) -> mx.array:
        if param.shape != update.shape:
            raise checks.error(
                "apply_updates",
                f"{path or 'the tree'} has shape {update.shape} in updates, {param.shape} in params",
            )
        return (param + update).astype(param.dtype)

    return tree.map_with_path(add, params, updates)


def taking_extra(transform: GradientTransform) -> Callable[..., tuple[Updates, Tree]]:
    """Return the transform's update as a function that takes any keyword argument and drops unknown ones.

    For wrappers, whose own update has been `checked`: states and gradients are not compared again.
    """
    own = getattr(transform.update, "unchecked", transform.update)
    parameters = inspect.signature(own).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return own
    known = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}

    def update(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        return own(updates, state, params, **{k: v for k, v in extra.items() if k in known})

    return update


def check_transform(caller: str, name: str, value: Any) -> None:
    """Refuse what is not a transform: a factory that was not called, an optimizer of another library."""
    if isinstance(value, GradientTransform):
        return
    meant = meant_instead(value)
    if meant or not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(f"{caller}: {name} must be a GradientTransform, {meant or f'got {value!r}'}")


def check_floating(caller: str, params: Params) -> None:
    """Refuse parameters that no gradient can move."""
    for path, leaf in tree.items(params):
        if not mx.issubdtype(leaf.dtype, mx.floating):
            raise checks.error(caller, f"params must be floating, got {leaf.dtype} at {path or 'the tree'}")


def check_gradients(caller: str, updates: Updates, params: Params | None) -> None:
    """Refuse gradients of another structure or other shapes than the parameters, which would broadcast."""
    if params is None or tree.matches(_same_shape, updates, params):
        return
    got, want = (tree.spec(tree.map(_in_float32, each)) for each in (updates, params))
    raise checks.error(caller, "; ".join(tree.differences(got, want, "updates", "params")[:3]))


def _same_shape(first: Any, second: Any) -> bool:
    return isinstance(first, mx.array) and isinstance(second, mx.array) and first.shape == second.shape


def _in_float32(leaf: Any) -> Any:
    return leaf.astype(mx.float32) if isinstance(leaf, mx.array) else leaf
