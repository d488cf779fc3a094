"""The contract of a gradient transform, and the functions that build and use transforms."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Init, Params, Tree, Update, Updates
from purestep._transforms.core.fitting import StateCheck, check_gradients
from purestep._transforms.core.foreign import meant_instead
from purestep._transforms.core.unpacking import accepting, init_by_leaf, update_by_leaf


class _Functions(NamedTuple):
    init: Init
    update: Update


class GradientTransform(_Functions):
    """A pair of pure functions that turns gradients into the delta to add to the parameters.

    Attributes:
        init: `init(params) -> state`, a tree of arrays.
        update: `update(updates, state, params=None, **extra) -> (updates, state)`. The updates keep the
            structure and shapes of the gradients; the state keeps its structure, shapes and dtypes. Extra
            arguments are keyword arguments, such as `value` (the loss) and `weight` (the weight of the
            loss). A transform receives those that its `update` names, also as a member of a `chain`.

    With the vectors of `ps.packed`, both functions receive the model's own trees, as views, and the updates
    are packed again.

    The contract and the signs are those of optax: gradients come in, and the updates that come out are added
    to the parameters. `scale_by_learning_rate` flips the sign.

    >>> def update(updates, state, params=None):
    ...     return tree.map(lambda u: u / 2, updates), state
    >>> halve = GradientTransform(lambda params: (), update)
    >>> halve.update({"w": mx.array(3.0)}, halve.init({"w": mx.array(0.0)}))
    ({'w': array(1.5, dtype=float32)}, ())
    """

    __slots__ = ()

    def __new__(cls, init: Init, update: Update) -> Self:
        return super().__new__(cls, init_by_leaf(init), update_by_leaf("update", update, users=True))


def identity() -> GradientTransform:
    """Return the transform that changes nothing: the neutral element of `chain`.

    >>> identity().update({"w": mx.array(2.0)}, ())
    ({'w': array(2, dtype=float32)}, ())
    """
    return without_state("identity", lambda updates, params: updates, elementwise=True)


def stateless(
    fn: Callable[[Updates, Params | None], Updates], *, elementwise: bool = False
) -> GradientTransform:
    """Make a transform from a function `(updates, params) -> updates`; its state is `()`.

    Args:
        fn: the function.
        elementwise: whether `fn` treats all elements alike, whatever the shapes and paths. It then receives
            the vectors of `ps.packed` as they are; otherwise the model's own trees.

    >>> import purestep as ps
    >>> double = stateless(lambda updates, params: ps.tree.map(lambda u: 2 * u, updates))
    >>> double.update({"w": mx.array(3.0)}, ())
    ({'w': array(6, dtype=float32)}, ())
    """
    return without_state("stateless", fn, elementwise=elementwise, users=True)


def without_state(
    caller: str,
    fn: Callable[[Updates, Params | None], Updates],
    *,
    elementwise: bool = False,
    users: bool = False,
) -> GradientTransform:
    """Return `stateless(fn)` with errors that name `caller`; `users` is that of `checked`."""

    def update(updates: Updates, state: tuple[()], params: Params | None = None) -> tuple[Updates, tuple[()]]:
        return fn(updates, params), ()

    return checked(caller, lambda params: (), update, elementwise=elementwise, users=users)


def checked(
    caller: str, init: Init, update: Update, *, elementwise: bool = False, users: bool = False
) -> GradientTransform:
    """Make a transform whose update compares gradients and state with the parameters before it computes.

    Nested transforms are compared once, by the outermost one: `taking_extra` calls them without checks.
    Without params, the state is compared with the updates instead. Any floating-point dtype is accepted.

    Args:
        caller: the public name for errors.
        init: as in `GradientTransform`.
        update: as in `GradientTransform`.
        elementwise: whether both may receive the vectors of `packed`: what they compute does not depend on
            the shapes and paths of the leaves, and the state has arrays like the parameters, 0-d arrays, or
            what other transforms keep. Otherwise they receive the model's own trees.
        users: whether a user wrote what `update` computes: it may write into its arguments.

    Raises:
        ValueError: at update, if gradients or state do not fit the parameters, with the path.

    >>> transform = checked("halve", lambda params: (), lambda updates, state, params=None: (updates, ()))
    >>> transform.update({"w": mx.ones(2)}, (), {"w": mx.ones(3)})
    Traceback (most recent call last):
        ...
    ValueError: halve: w has shape (2,) in updates, (3,) in params
    """
    if elementwise:
        accepting(init)
        accepting(update)
    else:
        init, update = init_by_leaf(init), update_by_leaf(caller, update, users=users)
    check = StateCheck(caller, init, strict=False)

    @functools.wraps(update)
    def guarded(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        check_gradients(caller, updates, params)
        check(state, updates if params is None else params)
        return update(updates, state, params, **extra)

    guarded.unchecked = _on_copies(update) if users else update  # type: ignore[attr-defined]
    return GradientTransform(init, accepting(guarded))


def taking_extra(transform: GradientTransform) -> Update:
    """Return the transform's update as a function that accepts any keyword argument and drops unknown ones.

    Wrappers call their members through it. The wrapper's own update is `checked`, so the members' states
    and gradients are not compared again. A user's own update receives copies of its arguments: if it writes
    into them, those of the step and of other members stay as they are. Its updates are its `gradients` where
    the caller's are.
    """
    return dropping_unknown(getattr(transform.update, "unchecked", None) or _on_copies(transform.update))


def dropping_unknown(own: Update) -> Update:
    """Return an update as a function that accepts any keyword argument and drops unknown ones."""
    parameters = inspect.signature(own).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return own
    named = (p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    known = [name for name in named if name not in ("updates", "state", "params")]

    def update(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        if not known:
            return own(updates, state, params)
        return own(updates, state, params, **{name: extra[name] for name in known if name in extra})

    return update


def _on_copies(update: Update) -> Update:
    @functools.wraps(update)
    def copied(
        updates: Updates, state: Tree, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        seen: dict[int, Any] = {}  # one copy of one argument: a transform may compare them with `is`

        def own(value: Any) -> Any:
            if id(value) not in seen:
                seen[id(value)] = tree.map(_copied, value)
            return seen[id(value)]

        return update(
            own(updates), own(state), own(params), **{name: own(value) for name, value in extra.items()}
        )

    return copied


def _copied(leaf: Any) -> Any:
    return copy.copy(leaf) if isinstance(leaf, mx.array) else leaf


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

    def add(param: mx.array, update: mx.array) -> mx.array:
        if param.shape != update.shape:
            raise _ShapesError
        return (param + update).astype(param.dtype)

    def checked_add(path: str, param: mx.array, update: mx.array) -> mx.array:
        if param.shape != update.shape:
            raise checks.error(
                "apply_updates",
                f"{path or 'the tree'} has shape {update.shape} in updates, {param.shape} in params",
            )
        return add(param, update)

    try:
        return tree.map(add, params, updates)
    except _ShapesError:
        return tree.map_with_path(checked_add, params, updates)  # raises, with the path


class _ShapesError(Exception):
    """An update has another shape than its parameter; a map with paths finds it."""


def check_transform(caller: str, name: str, value: Any) -> None:
    """Refuse a value that is not a transform, such as another library's optimizer or an uncalled factory."""
    if isinstance(value, GradientTransform):
        return
    meant = meant_instead(value)
    if meant or not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(f"{caller}: {name} must be a GradientTransform, {meant or f'got {value!r}'}")


def check_floating(caller: str, params: Params) -> None:
    """Refuse parameters of integer and boolean dtypes, which have no gradient."""
    for path, leaf in tree.items(params):
        if not mx.issubdtype(leaf.dtype, mx.floating):
            raise checks.error(caller, f"params must be floating, got {leaf.dtype} at {path or 'the tree'}")


def required(caller: str, params: Params | None) -> Params:
    """Return the params of an update; refuse `None`."""
    if params is None:
        raise checks.error(caller, "params is needed: call update(updates, state, params)")
    return params
