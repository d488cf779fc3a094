"""The parameters to evaluate with, such as averages, which transforms keep in the optimizer state.

A state that keeps them has a method `eval_params(params) -> params`. The function of the same name finds
that method at any depth of an optimizer state.
"""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Params, Tree


def eval_params(opt_state: Tree, params: Params | None = None) -> Params:
    """Return the parameters to evaluate with: averages where a transform keeps them, else the trained ones.

    If two averaging transforms are nested, the outer one's average is returned.

    Args:
        opt_state: an optimizer state; or a whole `TrainState`, which holds the parameters too.
        params: the trained parameters; required with an optimizer state.

    Raises:
        ValueError: if params is missing; or if two transforms that are not nested average the same
            parameter, with its path.

    >>> from purestep.transforms import averaged, scale
    >>> params = {"w": mx.array(1.0)}
    >>> eval_params(scale(0.5).init(params), params) is params
    True
    >>> eval_params(averaged(scale(0.5)).init(params), params)
    {'w': array(1, dtype=float32)}
    """
    caller = "eval_params"
    if params is None:
        if not (tree.is_namedtuple(opt_state) and {"opt_state", "params"} <= set(opt_state._fields)):
            raise checks.error(caller, "params is needed with an optimizer state")
        opt_state, params = opt_state.opt_state, opt_state.params
    result, taken = params, set()
    for state in _averaging(opt_state):
        own = state.eval_params(params)
        changed = _changed(params, own)
        if taken & changed:
            raise checks.error(caller, f"two averages are kept of {', '.join(sorted(taken & changed))}")
        taken |= changed
        result = tree.map_with_path(
            lambda path, old, new, changed=changed: new if path in changed else old, result, own
        )
    return result


def _averaging(node: Any) -> Iterator[Any]:
    """Yield the outermost states that have a method `eval_params`."""
    if hasattr(node, "eval_params"):
        yield node
        return
    for _, child in tree.children(node) or []:
        yield from _averaging(child)


def where_held(fn: Callable[[mx.array, mx.array], mx.array], held: Tree, params: Params) -> Params:
    """Return `fn(held, param)` where a tree holds a leaf, and the parameter itself where it holds none.

    The `eval_params` methods of states use it: inside `masked` and `partition` a state holds `()` for the
    parameters that are not selected.
    """
    found = dict(tree.items(held))

    def pick(path: str, param: mx.array) -> mx.array:
        return fn(found[path], param) if path in found else param

    return tree.map_with_path(pick, params)


def _changed(before: Params, after: Params) -> set[str]:
    found: set[str] = set()

    def compare(path: str, a: mx.array, b: mx.array) -> None:
        if a is not b:
            found.add(path)

    tree.map_with_path(compare, before, after)
    return found
