"""Laws of an update under MLX's transformations: compiled, vmapped and differentiated."""

import mlx.core as mx

from purestep._core import tree
from purestep._core.types import Params
from purestep._steps.compile import compiled
from purestep.testing._laws.core import LawBroken, Make, close, run, unless, updated
from purestep.testing.samples import like


def compilation(make: Make, params: Params) -> None:
    """A compiled update equals the eager one, and is traced once.

    If MLX does not compile, nothing is traced, and a `NotCompiledWarning` is given.
    """
    transform = make()
    compiled_update = compiled(lambda state, given: updated(transform, given[0], state, given[1]))
    state = transform.init(params)
    for number in range(3):
        gradients = like(params, number)
        eager = updated(transform, gradients, state, params)
        try:
            got = compiled_update(state, (gradients, params))
            mx.eval(got)
        except (ValueError, RuntimeError) as error:
            raise LawBroken("compilation", f"it cannot be compiled: {error}") from error
        close("compilation", got, eager, f"compiled, update {number + 1}")
        state = eager[1]
    traces = compiled_update.traces
    unless(traces <= 1, "compilation", f"three updates of one shape were traced {traces} times")


def population(make: Make, params: Params) -> None:
    """`mx.vmap` over gradients, or over gradients, states and params, equals a loop."""
    transform = make()
    _, state = run(transform, params, 1)
    members = [tree.leaves(like(params, seed)) for seed in (5, 6)]

    def update(*gradients: mx.array) -> list[mx.array]:
        updates, new = updated(transform, tree.unflatten(params, list(gradients)), state, params)
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
        # A leaf that depends on no gradient, such as a counter, has no axis for the population.
        got = [t[index] if t.ndim > e.ndim else t for t, e in zip(together, expected, strict=True)]
        close("population", got, expected, f"member {index} of a vmapped population")


def _whole_population(make: Make, params: Params) -> None:
    """Check gradients, states and params with a population axis, as a step over a population has them."""
    nodes = (node for _, node in tree.spec_nodes(tree.spec(params)))
    if any(isinstance(node, tree.NodeSpec) and node.kind == "none" for node in nodes):
        return  # MLX's tree functions refuse None, and here the params hold it
    transform = make()
    members = []
    for seed in (5, 6):
        own = like(params, seed)
        _, state = updated(transform, like(params, seed + 2), transform.init(own), own)
        members.append((like(params, seed + 4), state, own))
    stacked = [
        tree.map(lambda *leaves: mx.stack(list(leaves)), *parts) for parts in zip(*members, strict=True)
    ]
    try:
        together = mx.vmap(lambda g, s, p: updated(transform, g, s, p))(*stacked)
        mx.eval(together)
    except (ValueError, RuntimeError) as error:
        raise LawBroken("population", f"with stacked states it cannot be vmapped: {error}") from error
    for index, member in enumerate(members):
        want = updated(transform, *member)
        got = tree.map(lambda t, w, index=index: t[index] if t.ndim > w.ndim else t, together, want)
        close("population", got, want, f"member {index} of stacked states")


def differentiation(make: Make, params: Params) -> None:
    """`mx.grad` through two updates, for gradients and params, equals a finite difference.

    For transforms that are smooth at the parameters: not for signs, rounding or thresholds. The tolerance is
    that of a central difference in float32.
    """
    transform, params = make(), tree.cast(params, mx.float32)
    _, state = updated(transform, like(params, 1), transform.init(like(params, 7)), like(params, 8))
    point = [*tree.leaves(like(params, 2)), *tree.leaves(params)]
    along = [*tree.leaves(like(params, 3)), *tree.leaves(like(params, 4))]

    def loss(leaves: list[mx.array]) -> mx.array:
        half = len(leaves) // 2
        gradients, current = (tree.unflatten(params, part) for part in (leaves[:half], leaves[half:]))
        now, total = state, mx.array(0.0)
        for scale_of in (1.0, 2.0):
            scaled = tree.map(lambda g, scale_of=scale_of: scale_of * g, gradients)
            updates, now = updated(transform, scaled, now, current)
            current = tree.map(lambda p, u: p + u.astype(mx.float32), current, updates)
            total = total + sum((mx.square(p).sum() for p in tree.leaves(current)), mx.array(0.0))
        return total

    try:
        slopes = mx.grad(loss)(point)
        mx.eval(slopes)
    except (ValueError, RuntimeError) as error:
        raise LawBroken("differentiation", f"it cannot be differentiated: {error}") from error
    unless(all(mx.isfinite(s).all().item() for s in slopes), "differentiation", "a gradient is not finite")
    step = 3e-3
    ahead, behind = (
        loss([x + sign * step * a for x, a in zip(point, along, strict=True)]).item() for sign in (1, -1)
    )
    found = (ahead - behind) / (2 * step)
    expected = sum(float((s * a).sum().item()) for s, a in zip(slopes, along, strict=True))
    near = abs(found - expected) <= 0.02 * max(1.0, abs(found), abs(ahead))
    unless(near, "differentiation", f"the slope is {expected}, a finite difference {found}")
