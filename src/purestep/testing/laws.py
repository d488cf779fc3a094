"""The laws of gradient transforms, as plain functions: call them on your own.

    from purestep.testing import laws

    laws.check(lambda: my_transform(0.1))

Each law takes a function that makes the transform, and parameters to try it on; it returns nothing, or
raises `LawBroken`, an AssertionError that carries the law's name and says what happened where.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params, Tree, Updates
from purestep._steps.compile import compiled
from purestep._steps.state import check_arrays
from purestep._transforms.core.base import GradientTransform, identity, taking_extra
from purestep._transforms.core.combining import chain
from purestep._transforms.pieces.scaling import scale
from purestep._transforms.wrappers.flattening import flatten
from purestep._transforms.wrappers.masking import masked
from purestep._transforms.wrappers.partitioning import partition
from purestep.checkpoint import from_bytes, to_bytes
from purestep.testing.assertions import bits, first_difference, same_bits
from purestep.testing.samples import like, parameters

Make = Callable[[], GradientTransform]
Law = Callable[[Make, Params], None]


class LawBroken(AssertionError):  # noqa: N818 - it is what a law is, not an error of the program
    """A transform breaks a law.

    Attributes:
        law: the name of the function in this module.
    """

    def __init__(self, law: str, what: str):
        super().__init__(f"{law}: {what}")
        self.law = law


def purity(make: Make, params: Params) -> None:
    """Inputs are untouched, to the bit, and so is MLX's global random stream."""
    transform, gradients = make(), like(params, 1)
    state = transform.init(params)
    before = bits((params, gradients, state))
    stream = _stream()
    mx.eval(_update(transform, gradients, state, params))
    _unless(bits((params, gradients, state)) == before, "purity", "update changed its arguments")
    _unless(_stream() == stream, "purity", "update drew from the global random stream")


def determinism(make: Make, params: Params) -> None:
    """The same input gives the same bits, whatever else the transform was asked in between."""
    transform = make()
    state = transform.init(params)
    first = _update(transform, like(params, 1), state, params)
    mx.eval(first)
    mx.eval(_update(transform, like(params, 2), first[1], params), transform.init(like(params, 3)))
    _same(
        "determinism",
        _update(transform, like(params, 1), state, params),
        first,
        "a second call with one input",
    )
    other = make()
    start = other.init(params)
    mx.eval(_update(other, like(params, 3), start, params))
    again = _update(other, like(params, 1), start, params)
    _same("determinism", again, first, "a second instance, with another past")


def structure(make: Make, params: Params) -> None:
    """Updates have the containers and shapes of the gradients; each dtype stays, or becomes float32."""
    updates, _ = _run(make(), params, 2)
    lines = tree.differences(
        tree.spec(_in_float32(updates)), tree.spec(_in_float32(params)), "updates", "gradients"
    )
    _unless(not lines, "structure", "; ".join(lines))
    for (path, update), param in zip(tree.items(updates), tree.leaves(params), strict=True):
        kept = update.dtype in (param.dtype, mx.float32)
        _unless(kept, "structure", f"{path} came as {param.dtype} and left as {update.dtype}")


def constant_state(make: Make, params: Params) -> None:
    """The state is a tree of arrays whose containers, types, shapes and dtypes never change."""
    transform = make()
    state = transform.init(params)
    begun = tree.spec(state)
    for number in range(3):
        _arrays("constant_state", state)
        _, state = _update(transform, like(params, number), state, params)
        lines = tree.differences(tree.spec(state), begun, "the new state", "the first")
        _unless(not lines, "constant_state", "; ".join(lines))


def order(make: Make, params: Params) -> None:
    """Leaves are matched by path: the order of dict keys in gradients, state or params is nothing."""
    transform = make()
    _, state = _run(transform, params, 1)
    want = _update(transform, like(params, 2), state, params)
    got = _update(transform, _reversed(like(params, 2)), state, params)
    again = _update(transform, like(params, 2), _reversed(state), _reversed(params))
    for other in (got, again):
        _close("order", _sorted(other), _sorted(want), "with dict keys in another order")


def neutrality(make: Make, params: Params) -> None:
    """`identity` before or after in a chain changes nothing, to the bit."""
    updates, state = _run(make(), params, 2)
    for chained, position in ((chain(identity(), make()), 1), (chain(make(), identity()), 0)):
        got, states = _run(chained, params, 2)
        _same("neutrality", (got, states[position]), (updates, state), "in a chain with identity")


def associativity(make: Make, params: Params) -> None:
    """How a chain is bracketed changes nothing, to the bit."""
    left, ((a, b), c) = _run(chain(chain(scale(0.5), make()), scale(-2.0)), params, 2)
    right, (d, (e, f)) = _run(chain(scale(0.5), chain(make(), scale(-2.0))), params, 2)
    _same("associativity", (left, a, b, c), (right, d, e, f), "bracketed differently")


def storage(make: Make, params: Params) -> None:
    """A state stored and restored goes on with the same bits."""
    transform = make()
    _, state = _run(transform, params, 2)
    restored = from_bytes(to_bytes(state), like=transform.init(params))
    want = _update(transform, like(params, 9), state, params)
    _same("storage", _update(transform, like(params, 9), restored, params), want, "after a round trip")


def compilation(make: Make, params: Params) -> None:
    """Compiled, an update computes what it computes eagerly, and is traced once.

    Where MLX does not compile, nothing is traced, and a `NotCompiledWarning` says so.
    """
    transform = make()
    compiled_update = compiled(lambda state, given: _update(transform, given[0], state, given[1]))
    state = transform.init(params)
    for number in range(3):
        gradients = like(params, number)
        eager = _update(transform, gradients, state, params)
        try:
            got = compiled_update(state, (gradients, params))
            mx.eval(got)
        except (ValueError, RuntimeError) as error:
            raise LawBroken("compilation", f"it cannot be compiled: {error}") from error
        _close("compilation", got, eager, f"compiled, update {number + 1}")
        state = eager[1]
    traces = compiled_update.traces
    _unless(traces <= 1, "compilation", f"three updates of one shape were traced {traces} times")


def population(make: Make, params: Params) -> None:
    """`mx.vmap` over gradients equals a loop over them."""
    transform = make()
    _, state = _run(transform, params, 1)
    members = [tree.leaves(like(params, seed)) for seed in (5, 6)]

    def update(*gradients: mx.array) -> list[mx.array]:
        updates, new = _update(transform, tree.unflatten(params, list(gradients)), state, params)
        return [*tree.leaves(updates), *tree.leaves(new)]

    _whole_population(make, params)
    alone = [update(*member) for member in members]
    stacked = [mx.stack(list(leaves)) for leaves in zip(*members, strict=True)]
    try:
        together = mx.vmap(update)(*stacked)
        mx.eval(together)
    except (ValueError, RuntimeError) as error:
        raise LawBroken("population", f"it cannot be vmapped: {error}") from error
    for index, expected in enumerate(alone):
        # A leaf that no gradient reaches, such as a counter, comes back without the population's axis.
        got = [t[index] if t.ndim > e.ndim else t for t, e in zip(together, expected, strict=True)]
        _close("population", got, expected, f"member {index} of a vmapped population")


def _whole_population(make: Make, params: Params) -> None:
    """Stack gradients, states and params alike, as a step over a population does."""
    if any(node[0] == "none" for _, node in tree.spec_nodes(tree.spec(params))):
        return  # MLX's own tree functions refuse None, which is then in the params and not of the transform
    transform = make()
    members = []
    for seed in (5, 6):
        own = like(params, seed)
        _, state = _update(transform, like(params, seed + 2), transform.init(own), own)
        members.append((like(params, seed + 4), state, own))
    stacked = [
        tree.map(lambda *leaves: mx.stack(list(leaves)), *parts) for parts in zip(*members, strict=True)
    ]
    try:
        together = mx.vmap(lambda g, s, p: _update(transform, g, s, p))(*stacked)
        mx.eval(together)
    except (ValueError, RuntimeError) as error:
        raise LawBroken("population", f"with stacked states it cannot be vmapped: {error}") from error
    for index, member in enumerate(members):
        want = _update(transform, *member)
        got = tree.map(lambda t, w, index=index: t[index] if t.ndim > w.ndim else t, together, want)
        _close("population", got, want, f"member {index} of stacked states")


def differentiation(make: Make, params: Params) -> None:
    """`mx.grad` through two updates, to gradients and params, is what a finite difference finds.

    For transforms that are smooth where they are tried: not for signs, rounding or thresholds. The tolerance
    is that of a central difference in float32.
    """
    transform, params = make(), tree.cast(params, mx.float32)
    _, state = _update(transform, like(params, 1), transform.init(like(params, 7)), like(params, 8))
    point = [*tree.leaves(like(params, 2)), *tree.leaves(params)]
    along = [*tree.leaves(like(params, 3)), *tree.leaves(like(params, 4))]

    def loss(leaves: list[mx.array]) -> mx.array:
        half = len(leaves) // 2
        gradients, current = (tree.unflatten(params, part) for part in (leaves[:half], leaves[half:]))
        now, total = state, mx.array(0.0)
        for scale_of in (1.0, 2.0):
            scaled = tree.map(lambda g, scale_of=scale_of: scale_of * g, gradients)
            updates, now = _update(transform, scaled, now, current)
            current = tree.map(lambda p, u: p + u.astype(mx.float32), current, updates)
            total = total + sum((mx.square(p).sum() for p in tree.leaves(current)), mx.array(0.0))
        return total

    try:
        slopes = mx.grad(loss)(point)
        mx.eval(slopes)
    except (ValueError, RuntimeError) as error:
        raise LawBroken("differentiation", f"it cannot be differentiated: {error}") from error
    _unless(all(mx.isfinite(s).all().item() for s in slopes), "differentiation", "a gradient is not finite")
    step = 3e-3
    ahead, behind = (
        loss([x + sign * step * a for x, a in zip(point, along, strict=True)]).item() for sign in (1, -1)
    )
    found = (ahead - behind) / (2 * step)
    expected = sum(float((s * a).sum().item()) for s, a in zip(slopes, along, strict=True))
    near = abs(found - expected) <= 0.02 * max(1.0, abs(found), abs(ahead))
    _unless(near, "differentiation", f"the slope is {expected}, a finite difference {found}")


def saturation(make: Make, params: Params) -> None:
    """Counts that have reached the largest int32 stay there: they do not wrap to negative ones."""
    transform = make()
    full = mx.array(2**31 - 1, mx.int32)
    state = tree.map(lambda x: full if x.dtype == mx.int32 and x.ndim == 0 else x, transform.init(params))
    for number in range(2):
        updates, state = _update(transform, like(params, number), state, params)
        for path, leaf in tree.items(state):
            kept = leaf.dtype != mx.int32 or bool((leaf >= 0).all().item())
            _unless(kept, "saturation", f"{path} went from 2147483647 to {leaf.tolist()}")
        finite = all(mx.isfinite(u).all().item() for u in tree.leaves(updates))
        _unless(finite, "saturation", "updates are not finite once counts are full")


def complement(make: Make, params: Params) -> None:
    """For transforms that treat leaves apart: masking a set, then the rest, equals no mask."""
    chosen = {path: index % 2 == 0 for index, path in enumerate(tree.paths(params))}
    mask = tree.map_with_path(lambda path, _: chosen[path], params)
    rest = tree.map(lambda m: not m, mask)
    got, _ = _run(chain(masked(make(), mask), masked(make(), rest)), params, 3)
    want, _ = _run(make(), params, 3)
    _close("complement", got, want, "masked, and masked with the complement")


def separation(make: Make, params: Params) -> None:
    """For transforms that treat leaves apart: a partition equals a separate run on each part."""
    labels = {path: "ab"[index % 2] for index, path in enumerate(tree.paths(params))}
    label_tree = tree.map_with_path(lambda path, _: labels[path], params)
    got, _ = _run(partition({"a": make(), "b": make()}, label_tree), params, 3)
    for label in "ab":

        def part(values: Tree, label: str = label) -> dict[str, mx.array]:
            return {path: leaf for path, leaf in tree.items(values) if labels[path] == label}

        transform = make()
        state, updates = transform.init(part(params)), None
        for number in range(3):
            updates, state = _update(transform, part(like(params, number)), state, part(params))
        _close("separation", part(got), updates, f"part {label}")


def packing(make: Make, params: Params) -> None:
    """For elementwise transforms: all leaves in one vector equal the leaves apart."""
    params = tree.cast(params, mx.float32)
    got, _ = _run(flatten(make()), params, 3)
    want, _ = _run(make(), params, 3)
    _close("packing", got, want, "packed in one vector")


ALWAYS: tuple[Law, ...] = (
    constant_state,
    purity,
    determinism,
    structure,
    order,
    neutrality,
    associativity,
    storage,
    compilation,
    population,
)


def check(
    make: Make | GradientTransform,
    *,
    params: Params = None,
    leafwise: bool = False,
    elementwise: bool = False,
    without: tuple[Law, ...] = (),
) -> None:
    """Hold a transform to the laws; raise `LawBroken` for the first that it breaks.

    Args:
        make: makes the transform, such as `lambda: my_transform(0.1)`; a transform itself will do where
            building it again is of no interest.
        params: what to try it on; by default `samples.parameters()`, two small trees of mixed dtypes.
        leafwise: it treats each leaf apart from the others: adds `complement` and `separation`.
        elementwise: it treats each element apart: adds `packing` too.
        without: laws to leave out, such as `population` for a transform that MLX cannot vmap.

    >>> from purestep.transforms import trace
    >>> check(lambda: trace(0.9), params={"w": mx.ones(3)}, elementwise=True, without=(compilation,))
    """
    builder: Make = (lambda: make) if isinstance(make, GradientTransform) else make
    laws = ALWAYS + (complement, separation) * (leafwise or elementwise) + (packing,) * elementwise
    for sample in [params] if params is not None else parameters():
        for law in laws:
            if law not in without:
                law(builder, sample)


def _update(
    transform: GradientTransform, gradients: Updates, state: Tree, params: Params
) -> tuple[Updates, Tree]:
    # What train_step hands to every transform, for those that ask.
    return taking_extra(transform)(gradients, state, params, value=mx.array(0.5), weight=mx.array(2.0))


def _run(transform: GradientTransform, params: Params, updates: int) -> tuple[Updates, Any]:
    state, out = transform.init(params), None
    for number in range(updates):
        out, state = _update(transform, like(params, number), state, params)
    return out, state


def _stream() -> Any:
    state: Any = mx.random.state
    return state[0].tolist()


def _in_float32(value: Tree) -> Tree:
    return tree.map(lambda x: x.astype(mx.float32), value)


def _reordered(node: Any, order: Callable[[list[Any]], list[Any]]) -> Any:
    if type(node) is dict:
        keys = order(list(node))
        return {key: _reordered(node[key], order) for key in keys}
    below = tree.children(node)
    if below is None or node is None:
        return node
    children = [_reordered(child, order) for _, child in below]
    return type(node)(*children) if tree.is_namedtuple(node) else type(node)(children)


def _reversed(node: Tree) -> Tree:
    return _reordered(node, lambda keys: keys[::-1])


def _sorted(node: Tree) -> Tree:
    return _reordered(node, lambda keys: sorted(keys, key=tree.key_segment))


def _unless(held: bool, law: str, what: str) -> None:
    if not held:
        raise LawBroken(law, what)


def _arrays(law: str, state: Tree) -> None:
    try:
        check_arrays("", "state", state)
    except TypeError as error:
        raise LawBroken(law, str(error).removeprefix(": ")) from None


def _same(law: str, got: Tree, want: Tree, when: str) -> None:
    if not same_bits(got, want):
        raise LawBroken(law, f"{when}: {first_difference(got, want, factor=0.0) or 'other bits'}")


def _close(law: str, got: Tree, want: Tree, when: str) -> None:
    difference = first_difference(got, want)
    _unless(difference is None, law, f"{when}: {difference}")
