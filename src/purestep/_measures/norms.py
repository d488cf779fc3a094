"""Norms of gradients and weights by layer, and the ratios of updates to weights."""

import copy

import mlx.core as mx

from purestep._core import tree
from purestep._core.norms import PartialSums, distance_sums, partial_sums
from purestep._core.packing import unpacked
from purestep._core.types import Params, Tree
from purestep._measures.groups import Grouped, Groups, check_groups, group_sums, layer_of
from purestep._steps.core.measuring import Measurement, Moment


def grad_norms(*, by: Groups = layer_of, every: int = 1, name: str = "grad_norms") -> Measurement:
    """Measure the norm of the gradient of each layer, before the transform.

    In a compiled step the gradients are not read again: the partial sums of the metric `grad_norm` are used.

    Args:
        by: `path -> group` for the paths of the parameters. By default a group is a layer: the path up to the
            first number (`layers.2`). `by=str` makes each array a group.
        every: steps from one measurement to the next.
        name: the metrics are `name/group`, in natural order: `layers.2` comes before `layers.10`.

    >>> import purestep as ps
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create({"layers": [{"w": mx.zeros(2)}, {"w": mx.zeros(1)}]}, transform)
    >>> loss_fn = lambda params, batch, rng: (batch["x"] * params["layers"][0]["w"]).sum()
    >>> step = ps.train_step(loss_fn, transform, measure=[ps.metrics.grad_norms()])
    >>> metrics = step(state, {"x": mx.array([3.0, 4.0])})[1]
    >>> metrics["grad_norms/layers.0"], metrics["grad_norms/layers.1"]
    (array(5, dtype=float32), array(0, dtype=float32))
    """
    by = check_groups("grad_norms", by)
    return Measurement(name, lambda moment: norms(moment.gradients, by), every)


def weight_norms(*, by: Groups = layer_of, every: int = 1, name: str = "weight_norms") -> Measurement:
    """Measure the norm of the parameters of each layer, before the update.

    Args:
        by: as in `grad_norms`.
        every: steps from one measurement to the next.
        name: the metrics are `name/group`.

    >>> weight_norms(every=10).every
    10
    """
    by = check_groups("weight_norms", by)
    return Measurement(name, lambda moment: norms(moment.params, by), every)


def drift(reference: Params, *, by: Groups = layer_of, every: int = 1, name: str = "drift") -> Measurement:
    """Measure the distance of the parameters of each layer from those of a reference, before the update.

    Args:
        reference: a tree like the parameters, such as `state.params` at the beginning, packed or not, in any
            floating-point dtypes. The measurement keeps these arrays in memory.
        by: as in `grad_norms`.
        every: steps from one measurement to the next.
        name: the metrics are `name/group`.

    Raises:
        ValueError: in the first step, if the reference has another structure or other shapes.

    >>> drift({"w": mx.zeros(2)}).name
    'drift'
    """
    by = check_groups("drift", by)
    kept = tree.map(copy.copy, reference)

    def measure(moment: Moment) -> dict[str, mx.array]:
        before = unpacked(kept)
        _check_like(moment.params, before)
        return _roots(moment.params, distance_sums(moment.params, before), by).each()

    return Measurement(name, measure, every)


def update_ratios(*, by: Groups = layer_of, every: int = 1, name: str = "update_ratios") -> Measurement:
    """Measure the norm of the change of each layer divided by the norm of its weights before it.

    The change is that of the stored parameters: in bfloat16, an update that rounding loses counts as 0. It is
    computed from the parameters before and after the step, which are in memory anyway. The ratio is infinite
    for a layer whose weights were all zero, and 0 for one that did not change.

    Args:
        by: as in `grad_norms`.
        every: steps from one measurement to the next.
        name: the metrics are `name/group`.

    >>> update_ratios().name
    'update_ratios'
    """
    by = check_groups("update_ratios", by)

    def measure(moment: Moment) -> dict[str, mx.array]:
        params = moment.params
        names, change = _roots(params, distance_sums(moment.new_params, params), by)
        weights = _roots(params, partial_sums(params), by).vector
        return Grouped(names, mx.where(change == 0, 0.0, change / weights)).each()

    return Measurement(name, measure, every)


def norms(values: Tree, by: Groups = layer_of) -> dict[str, mx.array]:
    """Return the Euclidean norm of each group of leaves, 0-d float32, in natural order.

    Squares are summed in float32: an element above 1.8e19 gives infinity, and elements below 1e-19 are lost.

    Args:
        values: a tree of real arrays.
        by: as in `grad_norms`.

    Raises:
        TypeError: for a leaf that is not an array, or is complex; if `by` returns no string.

    >>> norms({"layers": [{"w": mx.array([3.0, 4.0])}, {"w": mx.array(2.0)}]})
    {'layers.0': array(5, dtype=float32), 'layers.1': array(2, dtype=float32)}
    """
    for path, leaf in tree.items(values):
        if not isinstance(leaf, mx.array) or mx.issubdtype(leaf.dtype, mx.complexfloating):
            kind = tree.dtype_name(leaf.dtype) if isinstance(leaf, mx.array) else type(leaf).__name__
            raise TypeError(f"norms: {path or 'the tree'} must be a real array, got {kind}")
    by = check_groups("norms", by)
    return _roots(values, partial_sums(values), by).each() if tree.leaves(values) else {}


def _roots(values: Tree, squares: PartialSums, by: Groups) -> Grouped:
    """Return the square root of the sum of each group."""
    names, totals = group_sums(values, squares, by)
    return Grouped(names, mx.sqrt(totals))


def _check_like(params: Params, reference: Params) -> None:
    """Refuse a reference with other paths or shapes, or without numbers; any floating-point dtype will do."""
    cast = tree.map(
        lambda leaf: (
            leaf.astype(mx.float32)
            if isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)
            else leaf
        ),
        reference,
    )
    wanted = tree.cast(params, mx.float32)
    differing = tree.differences(tree.spec(cast), tree.spec(wanted), "reference", "the parameters")
    if differing:
        raise ValueError("drift: reference must be like the parameters: " + "; ".join(differing))
