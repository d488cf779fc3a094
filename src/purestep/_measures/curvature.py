"""The curvature of the loss: along an update, and in the direction where it is largest."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, norms, sums, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
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
        direction = _scaled(moment.updates)[0]
        weights = _weights(moment, parts)
        found: Mean | None = None
        for part in parts:
            # In order, so that one part at a time is in memory, and after the step itself.
            before = [*tree.leaves(moment.updates), *([] if found is None else found)]
            part = tree.unflatten(part, ordering.after(tree.leaves(part), before))
            bend, weight = _second(moment.loss, moment.params, direction, part, weights)
            mean = Mean(bend * weight, weight)
            found = mean if found is None else Mean.merge(found, mean)
        assert found is not None
        bend, length = found.value if weights is None else found.total, mx.square(norms.norm(direction))
        return {"": mx.where(length == 0, 0.0, bend / length)}

    return Measurement(name, measure, every)


class Sharpness(NamedTuple):
    """The largest curvature of a loss, from `sharpness`.

    Attributes:
        value: the eigenvalue of the Hessian with the largest absolute value, 0-d.
        vector: its eigenvector of norm 1, a tree like the parameters, in float32.
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
        start: the first vector, such as that of an earlier call, in any floating-point dtype. By default it
            is random. A vector of zeros has no direction: the results are NaN.

    Raises:
        ValueError: if `iterations` is less than 1, if there are no parameters, or if `start` has other paths
            or shapes.
        TypeError: for a parameter that is not a floating-point array, and a loss that is not a number.

    >>> loss_fn = lambda params, batch, rng: (batch * mx.square(params["w"])).sum()
    >>> found = sharpness(loss_fn, {"w": mx.ones(3)}, mx.array([1.0, -4.0, 2.0]), key=mx.random.key(0))
    >>> round(found.value.item(), 3)
    -8.0
    """
    caller = "sharpness"
    checks.function(caller, "loss_fn", loss_fn)
    checks.integer(caller, "iterations", iterations, least=1)
    check_key(caller, key)
    _check_floating(caller, "params", params)
    if not tree.leaves(params):
        raise checks.error(caller, "params must hold at least one array, got none")
    if start is not None:
        _check_floating(caller, "start", start)
        same, wanted = tree.cast(start, mx.float32), tree.cast(params, mx.float32)
        if tree.differences(tree.spec(same), tree.spec(wanted), "start", "params"):
            raise checks.error(caller, "start must be like params")
    keys = list(mx.random.split(key, len(tree.leaves(params))))
    draws = [mx.random.normal(x.shape, key=each) for x, each in zip(tree.leaves(params), keys, strict=True)]
    vector, length = _unit(tree.unflatten(params, draws) if start is None else start)
    vector = tree.map(lambda x: mx.where(length == 0, mx.nan, x), vector)

    def loss(params: Params) -> mx.array:
        with scope(fold_in(key, 1)):
            returned = loss_fn(params, batch, key)
        value: Any = returned[0] if type(returned) is tuple else returned
        value = value.value if isinstance(value, (Mean, MeanSum)) else value
        if not isinstance(value, mx.array) or value.ndim or not mx.issubdtype(value.dtype, mx.floating):
            got = f"{value.dtype} of shape {value.shape}" if isinstance(value, mx.array) else repr(value)
            raise TypeError(f"{caller}: the loss must be a floating-point scalar or a Mean, got {got}")
        return value

    value, product = mx.array(0.0), vector
    for index in range(iterations):
        if index:
            following, length = _unit(product)
            zero = length == 0  # of a loss without curvature in this direction
            vector = tree.map(lambda a, b, zero=zero: mx.where(zero, a, b), vector, following)
        product = _hessian_product(loss, params, vector)
        value = _inner(vector, product)
    rest = tree.map(lambda p, v: p - value * v, product, vector)
    return Sharpness(value, vector, _unit(rest)[1])


def _check_floating(caller: str, name: str, values: Tree) -> None:
    for path, leaf in tree.items(values):
        if not isinstance(leaf, mx.array) or not mx.issubdtype(leaf.dtype, mx.floating):
            kind = tree.dtype_name(leaf.dtype) if isinstance(leaf, mx.array) else type(leaf).__name__
            raise TypeError(f"{caller}: {name} must be floating-point arrays, got {kind} at {path}")


def _hessian_product(loss: Callable[[Params], mx.array], params: Params, vector: Tree) -> Tree:
    def slope(leaves: list[mx.array]) -> mx.array:
        gradients = mx.grad(lambda held: loss(tree.unflatten(params, held)))(leaves)
        return _inner(gradients, tree.leaves(vector))

    with differentiable_twice():
        product = mx.grad(slope)(tree.leaves(params))
    return tree.map(lambda x: x.astype(mx.float32), tree.unflatten(params, product))


def _second(
    loss: Callable[[Params, Batch], AnyMean],
    params: Params,
    direction: Tree,
    batch: Batch,
    weights: list[mx.array] | None,
) -> tuple[mx.array, mx.array]:
    """Return the second derivative of the loss along a direction, and the weight of the loss.

    With the `weights` of the terms of a sum of means over the whole batch, the derivatives of its parts add
    up.
    """
    direction = [mx.stop_gradient(x) for x in tree.leaves(direction)]
    weight = mx.array(1.0)

    def value(leaves: list[mx.array], others: list[mx.array], whole: list[mx.array]) -> mx.array:
        nonlocal weight
        mean: Any = loss(tree.unflatten(params, leaves), tree.unflatten(batch, others))
        if whole:
            terms = zip(mean.terms, whole, strict=True)
            return sum((Mean(term.total, each).value for term, each in terms), mx.array(0.0))
        weight = mx.stop_gradient(mean.weight)
        return mean.value

    def slope(leaves: list[mx.array], *others: list[mx.array]) -> mx.array:
        return _inner(mx.grad(value)(leaves, *others), direction)

    # The batch and the weights are arguments too: they are computed after the updates, which depend on the
    # parameters. If the functions captured them, the second derivative would be wrong.
    with differentiable_twice():
        product = mx.grad(slope)(tree.leaves(params), tree.leaves(batch), weights or [])
    return _inner(product, direction), weight


def _weights(moment: Moment, parts: list[Batch]) -> list[mx.array] | None:
    """Return the weight of each term of a sum of means over all parts; `None` for one part or one mean.

    Evaluation is lazy: the device computes only what the weights depend on, which is mostly a mask.
    """
    summed: list[mx.array] | None = None
    for part in parts if len(parts) > 1 else []:
        mean = moment.loss(moment.params, part)
        if not isinstance(mean, MeanSum):
            return None
        weights = [mx.stop_gradient(term.weight) for term in mean.terms]
        summed = weights if summed is None else [a + b for a, b in zip(summed, weights, strict=True)]
    return summed


def _inner(first: Tree, second: Tree) -> mx.array:
    pairs = zip(tree.leaves(first), tree.leaves(second), strict=True)
    products = [a.astype(mx.float32) * b.astype(mx.float32) for a, b in pairs]
    return sums.total(norms.partial_sums(products, lambda x: x).vector)


def _unit(vector: Tree) -> tuple[Tree, mx.array]:
    """Return a vector of norm 1 in float32, and the norm of the given one; zeros stay zeros."""
    scaled, divisor = _scaled(vector)
    norm = norms.norm(scaled)
    return tree.map(lambda x: x / mx.where(norm == 0, 1.0, norm), scaled), norm * divisor


def _scaled(vector: Tree) -> tuple[Tree, mx.array]:
    """Divide a vector by a power of two, so that its largest element is between 1 and 2; return both.

    Squares of large and of small numbers leave float32, and small numbers float16. A power of two keeps the
    elements exact in every dtype.
    """
    vector = tree.cast(vector, mx.float32)
    highest = [mx.abs(x).max() for x in tree.leaves(vector) if x.size]
    largest = mx.stop_gradient(mx.stack(highest or [mx.array(0.0)]).max())
    power = (largest.view(mx.int32) & 0x7F800000).view(mx.float32)  # without the digits
    divisor = mx.where(power == 0, 1.0, power)
    return tree.map(lambda x: x / divisor, vector), divisor


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
