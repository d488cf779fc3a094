"""Masks: the choice of some leaves of a tree, given as a tree, a function or patterns of paths."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.packing import holds_packed, uniform, viewed
from purestep._core.tree.patterns import compile_pattern, matched
from purestep._core.types import Params, Tree

Mask: TypeAlias = Tree | Callable[[Params], Tree] | Callable[[str, mx.array], bool]
"""A tree of Python booleans, a function `params -> such a tree`, or a function `(path, leaf) -> bool`."""


def by_path(*patterns: str, required: bool = True) -> Callable[[Params], Tree]:
    """Return the mask function that selects the parameters whose path matches one of the patterns.

    Args:
        patterns: matched against whole paths such as `layers.0.weight`; case matters. `*` matches any
            text, also dots, and `?` one character. Every other character matches itself, also brackets.
        required: refuse a pattern that matches no parameter, since it is probably misspelt.

    >>> by_path("*.bias", "norm.*")({"fc": {"weight": 1, "bias": 2}, "norm": {"scale": 3}})
    {'fc': {'weight': False, 'bias': True}, 'norm': {'scale': True}}
    """
    if not patterns:
        raise checks.error("by_path", "patterns must hold at least one pattern, got none")
    compiled = [compile_pattern("by_path", pattern) for pattern in patterns]

    def mask(params: Params) -> Tree:
        if required:
            matched("by_path", patterns, tree.paths(params))
        return tree.map_with_path(lambda path, _: any(p.fullmatch(path) for p in compiled), params)

    return mask


def resolve_mask(caller: str, mask: Any, params: Params) -> Tree:
    """Return a mask of any form as a tree of Python booleans with the structure of the parameters."""
    values = called_with(mask, viewed(params)) if callable(mask) else mask

    def check(path: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise checks.error(caller, f"mask must hold True or False, got {value!r} at {path}")

    return spread(caller, "mask", values, params, check)


def called_with(mask: Callable[..., Any], params: Params) -> Tree:
    """Return what a mask function of the parameters, or of a path and a leaf, gives for the parameters."""
    return tree.map_with_path(mask, params) if _takes_two(mask) else mask(params)


def spread(caller: str, name: str, values: Tree, params: Params, check: Callable[[str, Any], None]) -> Tree:
    """Return a tree with the structure of `params`, where each leaf of `values` fills its whole subtree.

    Args:
        caller: the public name for errors.
        name: the name of `values` in errors.
        values: a tree whose leaves stand for single parameters or for subtrees of them.
        params: a tree of arrays.
        check: `check(path, value)`, called for each leaf of `values`; raises if the value is not allowed.

    With the vectors of `packed`, `values` may stand for the model's own tree. Each vector then needs one
    value.
    """
    if holds_packed(params) and not holds_packed(values):
        model = viewed(params)
        found = tree.unflatten(model, list(_spread(caller, name, values, model, check, "")))
        try:
            return uniform(found, params)
        except ValueError as error:
            remedy = "ps.packed(params, groups=...) with this mask separates them"
            raise checks.error(caller, f"{name} gives {error}; {remedy}") from None
    return tree.unflatten(params, list(_spread(caller, name, values, params, check, "")))


def _spread(
    caller: str, name: str, value: Any, node: Any, check: Callable[[str, Any], None], path: str
) -> Iterator[Any]:
    """Yield the value for each leaf of the parameters."""
    below, inside = tree.children(node), tree.children(value)
    if below is not None and not below and inside is not None and not inside:
        return  # None or an empty container: it has no leaves
    if inside is None:
        check(path or "the tree", value)
        yield from [value] * len(tree.leaves(node))
        return
    keys, given = [segment for segment, _ in below or []], dict(inside)
    if below is None or type(value) is not type(node) or set(keys) != set(given):
        raise checks.error(
            caller,
            f"{name} must be built like the parameters, got {_shown(value)} for {_shown(node)} "
            f"at {path or 'the tree'}",
        )
    for segment, child in below:
        yield from _spread(caller, name, given[segment], child, check, tree.join(path, segment))


def select(chosen: Tree, values: Tree) -> Tree:
    """Return the tree with `()` in place of the leaves that are not chosen.

    `mx.vmap` and `mx.grad` accept `()` and refuse `None`, so a state of this structure can be vmapped.
    """
    return tree.map(lambda value, yes: value if yes else (), values, chosen)


def select_extra(chosen: Tree, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the extra arguments, with `select` applied to those that have the structure of the updates."""
    # A selected tree is a new object, so `updates is gradients` is false below a mask: a transform there
    # does not use the norm of all gradients as the norm of its own.
    if tree.children(chosen) is None:
        return extra
    return {
        name: select(chosen, value) if tree.children(value) and same_structure(value, chosen) else value
        for name, value in extra.items()
    }


def same_structure(first: Tree, second: Tree) -> bool:
    """Tell whether two trees have the same containers; their leaves may differ."""
    zero = mx.array(0)
    return tree.alike(tree.map(lambda _: zero, first), tree.map(lambda _: zero, second))


def merge(caller: str, chosen: Tree, some: Tree, others: Tree) -> Tree:
    """Return the chosen leaves from `some` and the other leaves from `others`."""
    found = dict(tree.items(some))

    def pick(path: str, other: Any, yes: bool) -> Any:
        if yes and path not in found:
            raise checks.error(caller, f"the wrapped transform returned no update for {path or 'the tree'}")
        return found[path] if yes else other

    return tree.map_with_path(pick, others, chosen)


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
