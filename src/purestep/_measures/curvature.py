"""The curvature of the loss: along an update, and in the direction where it is largest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, norms, sums, tree
from purestep._core.mean import AnyMean, Mean
from purestep._core.rng import check_key, fold_in, scope
from purestep._core.tracing import ordering
from purestep._core.types import Batch, Params, Tree
from purestep._layers.attention import differentiable_twice
from purestep._steps.core.batches import microbatch
from purestep._steps.core.measuring import Measurement, Moment


def curvature(*, rows: int | None = None, every: int = 100, name: str = "curvature") -> Measurement:
    """Measure the curvature of the loss along the update of a step: `u H u / (u u)`, `H` the Hessian.

    It is exact, a Hessian-vector product with the key of the step, so with the same dropout masks if there is
    one microbatch. It is the only measurement with a backward pass of its own: with all rows it takes about
    as long as two steps and as much memory as two backward passes of a microbatch. Choose `every` and `rows`
    for the cost that you accept: a tenth of the rows every 100 steps costs about 0.2 %.

    Above `2 / learning_rate`, plain gradient descent diverges along that direction.

    Args:
        rows: use the first rows of the batch. `None`: the whole batch, in the microbatches of the step.
        every: steps from one measurement to the next.
        name: the name of the metric.

    Raises:
        ValueError: in the first step, if the batch has fewer rows.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: 3 * mx.square(params["w"]).sum() + 0 * batch["x"].sum()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create({"w": mx.array([1.0, 2.0])}, transform)
    >>> step = ps.train_step(loss_fn, transform, measure=[curvature()])
    >>> step(state, {"x": mx.zeros(1)})[1]["curvature"]
    array(6, dtype=float32)
    """
    caller = "curvature"
    if rows is not None:
        rows = checks.integer(caller, "rows", rows, least=1)

    def measure(moment: Moment) -> dict[str, mx.array]:
        parts = _parts(caller, moment.batch, moment.microbatches, rows)
        found: Mean | None = None
        for part in parts:
            # In order, so that one part at a time is in memory, and after the step itself.
            before = [*tree.leaves(moment.updates), *([] if found is None else found)]
            part = tree.unflatten(part, ordering.after(tree.leaves(part), before))
            bend, weight = _second(moment.loss, moment.params, moment.updates, part)
            mean = Mean(bend * weight, weight)
            found = mean if found is None else Mean.merge(found, mean)
        assert found is not None
        length = mx.square(norms.norm(moment.updates))
        return {"": mx.where(length == 0, 0.0, found.value / length)}

    return Measurement(name, measure, every)


class Sharpness(NamedTuple):
    """The largest curvature of a loss, from `sharpness`.

    Attributes:
        value: the eigenvalue of the Hessian with the largest absolute value, 0-d.
        vector: its eigenvector of norm 1, a tree like the parameters.
        residual: the norm of `H v - value v`, 0-d: the eigenvalue is off by at most that.
    """

    value: mx.array
    vector: Tree
    residual: mx.array


def sharpness(
    loss_fn: Callable[[Params, Batch, Any], Any],
    params: Params,
    batch: Batch,
    *,
    key: mx.array,
    iterations: int = 20,
    start: Params | None = None,
) -> Sharpness:
    """Return the largest curvature of a loss, by power iteration with Hessian-vector products.

    Call it between steps, on a part of a batch: each iteration takes as long as two to three steps on it. It
    is a pure function and can be compiled.

    Args:
        loss_fn: as in `train_step`, not stateful.
        params: where the curvature is computed, a tree of floating-point arrays.
        batch: the data.
        key: uint32 [2], for the first vector and the draws of the loss function; each iteration has the same
            draws.
        iterations: Hessian-vector products, at least 1.
        start: the first vector, such as that of an earlier call. By default it is random.

    Raises:
        ValueError: if `iterations` is less than 1, or `start` is not like the parameters.

    >>> loss_fn = lambda params, batch, rng: (batch * mx.square(params["w"])).sum()
    >>> found = sharpness(loss_fn, {"w": mx.ones(3)}, mx.array([1.0, -4.0, 2.0]), key=mx.random.key(0))
    >>> round(found.value.item(), 3)
    -8.0
    """
    caller = "sharpness"
    checks.function(caller, "loss_fn", loss_fn)
    checks.integer(caller, "iterations", iterations, least=1)
    check_key(caller, key)
    if start is not None and tree.differences(tree.spec(start), tree.spec(params), "start", "params"):
        raise checks.error(caller, "start must be like params")
    keys = list(mx.random.split(key, len(tree.leaves(params))))
    draws = [mx.random.normal(x.shape, key=each) for x, each in zip(tree.leaves(params), keys, strict=True)]
    vector = _unit(tree.unflatten(params, draws) if start is None else start)

    def loss(params: Params) -> mx.array:
        with scope(fold_in(key, 1)):
            returned = loss_fn(params, batch, key)
        value: Any = returned[0] if type(returned) is tuple else returned
        return value if isinstance(value, mx.array) else value.value

    value, product = mx.array(0.0), vector
    for index in range(iterations):
        if index:
            vector = _unit(product)
        product = _hessian_product(loss, params, vector)
        value = _inner(vector, product)
    rest = tree.map(lambda p, v: p - value * v, product, vector)
    return Sharpness(value, vector, norms.norm(rest))


def _hessian_product(loss: Callable[[Params], mx.array], params: Params, vector: Tree) -> Tree:
    def slope(leaves: list[mx.array]) -> mx.array:
        gradients = mx.grad(lambda held: loss(tree.unflatten(params, held)))(leaves)
        return _inner(gradients, tree.leaves(vector))

    with differentiable_twice():
        product = mx.grad(slope)(tree.leaves(params))
    return tree.map(lambda x: x.astype(mx.float32), tree.unflatten(params, product))


def _second(
    loss: Callable[[Params, Batch], AnyMean], params: Params, direction: Tree, batch: Batch
) -> tuple[mx.array, mx.array]:
    """Return the second derivative of the loss along a direction, and the weight of the loss."""
    direction = [mx.stop_gradient(x) for x in tree.leaves(direction)]
    weight = mx.array(1.0)

    def value(leaves: list[mx.array], others: list[mx.array]) -> mx.array:
        nonlocal weight
        mean: Any = loss(tree.unflatten(params, leaves), tree.unflatten(batch, others))
        weight = mx.stop_gradient(mean.weight)
        return mean.value

    def slope(leaves: list[mx.array], others: list[mx.array]) -> mx.array:
        return _inner(mx.grad(value)(leaves, others), direction)

    # The batch is an argument too: it is computed after the updates, which depend on the parameters. If the
    # functions captured it, the second derivative would be wrong.
    with differentiable_twice():
        product = mx.grad(slope)(tree.leaves(params), tree.leaves(batch))
    return _inner(product, direction), weight


def _inner(first: Tree, second: Tree) -> mx.array:
    pairs = zip(tree.leaves(first), tree.leaves(second), strict=True)
    products = [a.astype(mx.float32) * b.astype(mx.float32) for a, b in pairs]
    return sums.total(norms.partial_sums(products, lambda x: x).vector)


def _unit(vector: Tree) -> Tree:
    norm = norms.norm(vector)
    return tree.map(lambda x: x.astype(mx.float32) / mx.where(norm == 0, 1.0, norm), vector)


def _parts(caller: str, batch: Batch, microbatches: int, rows: int | None) -> list[Batch]:
    if rows is None:
        return (
            [microbatch(batch, index, microbatches) for index in range(microbatches)]
            if microbatches > 1
            else [batch]
        )
    lengths: Mapping[str, int] = {path: leaf.shape[0] if leaf.ndim else 0 for path, leaf in tree.items(batch)}
    for path, length in lengths.items():
        if length < rows:
            raise checks.error(caller, f"rows must be at most the {length} rows of batch {path}, got {rows}")
    return [tree.map(lambda leaf: leaf[:rows], batch)]
