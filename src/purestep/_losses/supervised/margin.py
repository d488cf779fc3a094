"""Losses of margins: hinge and perceptron, of two classes and of many."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce


def hinge_loss(predictor_outputs: mx.array, targets: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return `max(0, 1 - output target)`, the loss of a support vector machine.

    Args:
        predictor_outputs: floating [...], scores whose sign decides.
        targets: [...], each -1 or 1; any other makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it: what each target counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the outputs are not floating.

    >>> hinge_loss(mx.array([0.5, 2.0, -1.0]), mx.array([1, 1, 1])).total
    array(2.5, dtype=float32)
    """
    caller = "hinge_loss"
    agreement, valid, weights = _agreement(caller, predictor_outputs, targets, weights)
    return reduce.weighted(caller, mx.maximum(1 - agreement, 0) * valid, weights)


def perceptron_loss(
    predictor_outputs: mx.array, targets: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return `max(0, -output target)`: what a wrong sign costs.

    Args and Raises: as `hinge_loss`.

    Reference: Rosenblatt, 1958, doi:10.1037/h0042519.

    >>> perceptron_loss(mx.array([0.5, 2.0, -1.0]), mx.array([1, 1, 1])).total
    array(1, dtype=float32)
    """
    caller = "perceptron_loss"
    agreement, valid, weights = _agreement(caller, predictor_outputs, targets, weights)
    return reduce.weighted(caller, mx.maximum(-agreement, 0) * valid, weights)


def multiclass_hinge_loss(scores: mx.array, labels: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return how far the right class is from leading every other by 1.

        max_c (score_c + [c != label]) - score_label

    Args:
        scores: floating [..., classes].
        labels: integer [...], in [0, classes); any other makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it: what each label counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if scores are not floating or labels not integers.

    Reference: Crammer and Singer, 2001, JMLR 2:265.

    >>> multiclass_hinge_loss(mx.array([[2.0, 1.5, 0.0]]), mx.array([0])).total
    array(0.5, dtype=float32)
    """
    return _multiclass("multiclass_hinge_loss", scores, labels, weights, 1.0)


def multiclass_perceptron_loss(
    scores: mx.array, labels: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return how far the right class is from leading: `max_c score_c - score_label`.

    Args and Raises: as `multiclass_hinge_loss`.

    Reference: Michael Collins, 2002, doi:10.3115/1118693.1118694.

    >>> multiclass_perceptron_loss(mx.array([[2.0, 3.5, 0.0]]), mx.array([0])).total
    array(1.5, dtype=float32)
    """
    return _multiclass("multiclass_perceptron_loss", scores, labels, weights, 0.0)


def margin_ranking_loss(
    inputs1: mx.array,
    inputs2: mx.array,
    targets: mx.array,
    *,
    margin: float = 0.0,
    weights: mx.array | None = None,
) -> Mean:
    """Return what pairs in the wrong order cost: `max(0, -target (input1 - input2) + margin)`.

    Args:
        inputs1: floating [...], scores.
        inputs2: floating [...], of the same shape.
        targets: [...], 1 where the first should be greater, -1 where the second; any other makes the loss
            and its gradient NaN.
        margin: by how much it should be greater.
        weights: [...] or a shape that broadcasts to it: what each pair counts; zero leaves it out.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the inputs are not floating.

    >>> margin_ranking_loss(mx.array([1.0, 1.0]), mx.array([3.0, 0.0]), mx.array([1, 1])).total
    array(2, dtype=float32)
    """
    caller = "margin_ranking_loss"
    margin = checks.number(caller, "margin", margin)
    reduce.floating(caller, "inputs1", inputs1)
    reduce.floating(caller, "inputs2", inputs2)
    reduce.same_shape(caller, "inputs2", inputs2, "inputs1", inputs1)
    reduce.same_shape(caller, "targets", targets, "inputs1", inputs1)
    weights = reduce.counts(caller, weights, inputs1.shape)
    first, second = (reduce.keep(weights, values.astype(mx.float32)) for values in (inputs1, inputs2))
    targets = reduce.keep(weights, targets.astype(mx.float32), 1.0)
    losses = mx.maximum(margin - (first - second) * targets, 0)
    return reduce.weighted(caller, losses * _valid(targets), weights)


def _agreement(
    caller: str, outputs: mx.array, targets: mx.array, weights: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    reduce.floating(caller, "predictor_outputs", outputs)
    reduce.same_shape(caller, "targets", targets, "predictor_outputs", outputs)
    weights = reduce.counts(caller, weights, outputs.shape)
    outputs = reduce.keep(weights, outputs.astype(mx.float32))
    targets = reduce.keep(weights, targets.astype(mx.float32), 1.0)
    return outputs * targets, _valid(targets), weights


def _valid(targets: mx.array) -> mx.array:
    """Return 1 where a target is -1 or 1, and NaN elsewhere, to be multiplied in."""
    return mx.where(mx.abs(targets) == 1, 1.0, mx.nan)


def _multiclass(
    caller: str, scores: mx.array, labels: mx.array, weights: mx.array | None, margin: float
) -> Mean:
    scores, labels, valid, weights = reduce.classes(caller, scores, labels, weights, ("scores", "labels"))
    # Differences first: the margin would be lost in scores of 1e8.
    lead = scores - reduce.chosen(scores, labels)[..., None]
    if margin:
        lead = lead + mx.where(mx.arange(scores.shape[-1]) == labels[..., None], 0.0, margin)
    return reduce.weighted(caller, lead.max(axis=-1) * valid, weights)
