"""The contract of a gradient transform, and what every transform is used through."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep import checks, tree
from purestep.types import Params, Tree, Updates


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
    return stateless(lambda updates, params: updates)


def stateless(fn: Callable[[Updates, Params | None], Updates]) -> GradientTransform:
    """Make a transform of a function `(updates, params) -> updates`; its state is `()`.

    >>> import purestep as ps
    >>> double = stateless(lambda updates, params: ps.tree.map(lambda u: 2 * u, updates))
    >>> double.update({"w": mx.array(3.0)}, ())
    ({'w': array(6, dtype=float32)}, ())
    """
    return GradientTransform(
        init=lambda params: (),
        update=lambda updates, state, params=None: (fn(updates, params), state),
    )


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
            raise checks.refuse(
                "apply_updates", f"{path} has shape {update.shape} in updates, {param.shape} in params"
            )
        return (param + update).astype(param.dtype)

    return tree.map_with_path(add, params, updates)


def taking_extra(transform: GradientTransform) -> Callable[..., tuple[Updates, Tree]]:
    """Return the transform's update as a function that takes any keyword argument and drops unknown ones."""
    parameters = inspect.signature(transform.update).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return transform.update
    known = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}

    def update(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        return transform.update(updates, state, params, **{k: v for k, v in extra.items() if k in known})

    return update


def check_transform(where: str, name: str, value: Any) -> None:
    """Refuse what is not a transform: most often a factory that was not called."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(f"{where}: {name} must be a GradientTransform, got {value!r}")


def check_floating(where: str, params: Params) -> None:
    """Refuse parameters that no gradient can move."""
    for path, leaf in tree.items(params):
        if not mx.issubdtype(leaf.dtype, mx.floating):
            raise checks.refuse(where, f"params must be floating, got {leaf.dtype} at {path}")


def check_gradients(where: str, gradients: Updates, params: Params | None) -> None:
    """Refuse gradients of another structure or other shapes than the parameters, which would broadcast."""
    if params is None:
        return
    wrong: list[bool] = []
    tree.map(lambda g, p: wrong.append(g.shape != p.shape), gradients, params)
    if any(wrong):
        named = zip(tree.items(gradients), tree.leaves(params), wrong, strict=True)
        path, got, want = next((path, g.shape, p.shape) for (path, g), p, bad in named if bad)
        raise checks.refuse(where, f"{path} has shape {got} in the gradients, {want} in params")
