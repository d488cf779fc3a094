"""Apply a transform to some parameters only; keep others still.

Two things that are easily confused. `masked(inner, mask)` chooses where `inner` applies, and what it does
not apply to passes on *unchanged*: a gradient that nothing turned into a step. `freeze(mask)` sets the
updates of the chosen parameters to *zero*, so that they stay where they are.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx

from purestep import checks, tree
from purestep.transforms.base import GradientTransform, check_transform, checked, taking_extra, without_state
from purestep.types import Params, Tree, Updates

Mask: TypeAlias = Tree | Callable[[Params], Tree] | Callable[[str, mx.array], bool]
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

    >>> from purestep.transforms.scaling import scale
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


def by_path(*patterns: str, required: bool = True) -> Callable[[Params], Tree]:
    """Return the mask function that selects the parameters whose path matches one of the patterns.

    Args:
        patterns: matched against whole paths such as `layers.0.weight`, case and all. `*` stands for any
            characters, dots included, `?` for one; everything else, brackets too, for itself.
        required: refuse, by name, a pattern that matches no parameter: most often it is misspelt.

    >>> by_path("*.bias", "norm.*")({"fc": {"weight": 1, "bias": 2}, "norm": {"scale": 3}})
    {'fc': {'weight': False, 'bias': True}, 'norm': {'scale': True}}
    """
    if not patterns:
        raise checks.refuse("by_path", "patterns must hold at least one pattern, got none")
    compiled = [compile_pattern("by_path", pattern) for pattern in patterns]

    def mask(params: Params) -> Tree:
        if required:
            paths = tree.paths(params)
            for text, pattern in zip(patterns, compiled, strict=True):
                if not any(pattern.fullmatch(path) for path in paths):
                    raise checks.refuse("by_path", f"pattern {text!r} matches none of {shown_paths(paths)}")
        return tree.map_with_path(lambda path, _: any(p.fullmatch(path) for p in compiled), params)

    return mask


def resolve_mask(where: str, mask: Any, params: Params) -> Tree:
    """Return a mask, in whichever form, as a tree of Python booleans built like the parameters."""
    if callable(mask):
        values = tree.map_with_path(mask, params) if _takes_two(mask) else mask(params)
    else:
        values = mask

    def check(path: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise checks.refuse(where, f"mask must hold True or False, got {value!r} at {path}")

    return spread(where, "mask", values, params, check)


def spread(where: str, name: str, values: Tree, params: Params, check: Callable[[str, Any], None]) -> Tree:
    """Return a tree built like `params` of the leaves of `values`, each for all the parameters below it."""
    return tree.unflatten(params, list(_spread(where, name, values, params, check, "")))


def _spread(
    where: str, name: str, value: Any, node: Any, check: Callable[[str, Any], None], path: str
) -> Iterator[Any]:
    """Yield the value for each leaf of the parameters."""
    below, inside = tree.children(node), tree.children(value)
    if below is not None and not below and inside is not None and not inside:
        return  # None, or an empty container: nothing to say a value for
    if inside is None:
        check(path or "the tree", value)
        yield from [value] * len(tree.leaves(node))
        return
    keys, given = [segment for segment, _ in below or []], dict(inside)
    if below is None or type(value) is not type(node) or set(keys) != set(given):
        raise checks.refuse(
            where,
            f"{name} must be built like the parameters, got {_shown(value)} for {_shown(node)} "
            f"at {path or 'the tree'}",
        )
    for segment, child in below:
        yield from _spread(where, name, given[segment], child, check, tree.join(path, segment))


def select(chosen: Tree, values: Tree) -> Tree:
    """Return the tree with `()` for the leaves that are not chosen.

    Not `None`, which `mx.vmap` and `mx.grad` refuse: a state built like this can be vmapped.
    """
    return tree.map(lambda value, yes: value if yes else (), values, chosen)


def select_extra(chosen: Tree, extra: dict[str, Any]) -> dict[str, Any]:
    """Return extra arguments with those that are built like the updates selected as these are."""
    # A selected tree is always a new object, so `updates is gradients` is false below a mask and no
    # transform there takes the norm of all gradients for that of its own.
    if tree.children(chosen) is None:
        return extra
    return {
        name: select(chosen, value) if tree.children(value) and same_structure(value, chosen) else value
        for name, value in extra.items()
    }


def same_structure(first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same containers, whatever their leaves."""
    zero = mx.array(0)
    return tree.alike(tree.map(lambda _: zero, first), tree.map(lambda _: zero, second))


def merge(where: str, chosen: Tree, some: Tree, others: Tree) -> Tree:
    """Return the chosen leaves of `some`, which holds no more, and the others of `others`."""
    found = dict(tree.items(some))

    def pick(path: str, other: Any, yes: bool) -> Any:
        if yes and path not in found:
            raise checks.refuse(where, f"the wrapped transform returned no update for {path or 'the tree'}")
        return found[path] if yes else other

    return tree.map_with_path(pick, others, chosen)


def compile_pattern(where: str, pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a path pattern."""
    if not isinstance(pattern, str):
        raise TypeError(f"{where}: a pattern must be a string, got {pattern!r}")
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.DOTALL)


def shown_paths(paths: Sequence[str]) -> str:
    """Return up to eight paths as text."""
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    named = ", ".join(path or "the tree" for path in paths[:8])
    return f"the paths {named}{more}" if paths else "no paths: the tree is empty"


def _takes_two(fn: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) == 2


def _shown(node: Any) -> str:
    below = tree.children(node)
    if below is None:
        return "a leaf"
    if node is None:
        return "None"
    keys = ", ".join(segment for segment, _ in below[:6]) + (", ..." if len(below) > 6 else "")
    return f"a {type(node).__name__} of ({keys})"
