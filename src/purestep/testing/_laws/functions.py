"""Laws of a transform as a pure function: its arguments, its results and its state."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, Tree
from purestep._steps.state import check_arrays
from purestep.checkpoint import from_bytes, to_bytes
from purestep.testing._laws.core import LawBroken, Make, close, run, same, unless, updated
from purestep.testing.assertions import bits
from purestep.testing.samples import like


def purity(make: Make, params: Params) -> None:
    """An update changes neither its arguments nor MLX's global random stream."""
    transform, gradients = make(), like(params, 1)
    state = transform.init(params)
    before = bits((params, gradients, state))
    stream = _stream()
    mx.eval(updated(transform, gradients, state, params))
    unless(bits((params, gradients, state)) == before, "purity", "update changed its arguments")
    unless(_stream() == stream, "purity", "update drew from the global random stream")


def determinism(make: Make, params: Params) -> None:
    """The same input gives the same bits, also after other computations."""
    transform = make()
    state = transform.init(params)
    first = updated(transform, like(params, 1), state, params)
    mx.eval(first)
    mx.eval(updated(transform, like(params, 2), first[1], params), transform.init(like(params, 3)))
    same(
        "determinism",
        updated(transform, like(params, 1), state, params),
        first,
        "a second call with the same input",
    )
    other = make()
    start = other.init(params)
    mx.eval(updated(other, like(params, 3), start, params))
    again = updated(other, like(params, 1), start, params)
    same("determinism", again, first, "a second instance with another history")


def structure(make: Make, params: Params) -> None:
    """Updates have the containers and shapes of the gradients. Each dtype stays or becomes float32."""
    updates, _ = run(make(), params, 2)
    lines = tree.differences(
        tree.spec(_in_float32(updates)), tree.spec(_in_float32(params)), "updates", "gradients"
    )
    unless(not lines, "structure", "; ".join(lines))
    for (path, update), param in zip(tree.items(updates), tree.leaves(params), strict=True):
        kept = update.dtype in (param.dtype, mx.float32)
        unless(kept, "structure", f"{path} has dtype {param.dtype} in gradients, {update.dtype} in updates")


def constant_state(make: Make, params: Params) -> None:
    """The state is a tree of arrays whose containers, types, shapes and dtypes never change."""
    transform = make()
    state = transform.init(params)
    begun = tree.spec(state)
    for number in range(3):
        _arrays("constant_state", state)
        _, state = updated(transform, like(params, number), state, params)
        lines = tree.differences(tree.spec(state), begun, "the new state", "the first")
        unless(not lines, "constant_state", "; ".join(lines))


def order(make: Make, params: Params) -> None:
    """Leaves are matched by path: the order of dict keys in gradients, state and params has no effect."""
    transform = make()
    _, state = run(transform, params, 1)
    want = updated(transform, like(params, 2), state, params)
    got = updated(transform, _reversed(like(params, 2)), state, params)
    again = updated(transform, like(params, 2), _reversed(state), _reversed(params))
    for other in (got, again):
        close("order", _sorted(other), _sorted(want), "with dict keys in another order")


def storage(make: Make, params: Params) -> None:
    """An update from a restored state equals one from the stored state bit for bit."""
    transform = make()
    _, state = run(transform, params, 2)
    restored = from_bytes(to_bytes(state), like=transform.init(params))
    want = updated(transform, like(params, 9), state, params)
    same("storage", updated(transform, like(params, 9), restored, params), want, "after a round trip")


def saturation(make: Make, params: Params) -> None:
    """Counts at the largest int32 stay there; they do not wrap to negative numbers."""
    transform = make()
    full = mx.array(2**31 - 1, mx.int32)
    state = tree.map(lambda x: full if x.dtype == mx.int32 and x.ndim == 0 else x, transform.init(params))
    for number in range(2):
        updates, state = updated(transform, like(params, number), state, params)
        for path, leaf in tree.items(state):
            kept = leaf.dtype != mx.int32 or bool((leaf >= 0).all().item())
            unless(kept, "saturation", f"{path} went from 2147483647 to {leaf.tolist()}")
        finite = all(mx.isfinite(u).all().item() for u in tree.leaves(updates))
        unless(finite, "saturation", "updates are not finite once counts are full")


def _stream() -> Any:
    state: Any = mx.random.state
    return state[0].tolist()


def _in_float32(value: Tree) -> Tree:
    return tree.map(lambda x: x.astype(mx.float32), value)


def _arrays(law: str, state: Tree) -> None:
    try:
        check_arrays("", "state", state)
    except TypeError as error:
        raise LawBroken(law, str(error).removeprefix(": ")) from None


def _reversed(node: Tree) -> Tree:
    return _reordered(node, lambda keys: keys[::-1])


def _sorted(node: Tree) -> Tree:
    return _reordered(node, lambda keys: sorted(keys, key=tree.key_segment))


def _reordered(node: Any, order: Callable[[list[Any]], list[Any]]) -> Any:
    if type(node) is dict:
        keys = order(list(node))
        return {key: _reordered(node[key], order) for key in keys}
    below = tree.children(node)
    if below is None or node is None:
        return node
    children = [_reordered(child, order) for _, child in below]
    return type(node)(*children) if tree.is_namedtuple(node) else type(node)(children)
