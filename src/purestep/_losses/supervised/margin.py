"""Margin losses: hinge and perceptron losses of two or more classes, and the ranking of pairs."""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, numerics, validity, weighting


def hinge_loss(predictor_outputs: mx.array, targets: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return `max(0, 1 - output * target)`, the loss of a support vector machine.

    Args:
        predictor_outputs: floating [...], scores; their sign is the prediction.
        targets: [...], each -1 or 1; any other value makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it; targets of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the outputs are not floating.

    >>> hinge_loss(mx.array([0.5, 2.0, -1.0]), mx.array([1, 1, 1])).total
    array(2.5, dtype=float32)
    """
    caller = "hinge_loss"
    agreement, valid, weights = _agreement(caller, predictor_outputs, targets, weights)
    return weighting.mean(caller, mx.maximum(1 - agreement, 0) * valid, weights)


def perceptron_loss(
    predictor_outputs: mx.array, targets: mx.array, *, weights: mx.array | None = None
) -> Mean:
    """Return `max(0, -output * target)`, which is positive only for a wrong sign.

    Args and Raises: as `hinge_loss`.

    Reference: Rosenblatt, 1958, doi:10.1037/h0042519.

    >>> perceptron_loss(mx.array([0.5, 2.0, -1.0]), mx.array([1, 1, 1])).total
    array(1, dtype=float32)
    """
    caller = "perceptron_loss"
    agreement, valid, weights = _agreement(caller, predictor_outputs, targets, weights)
    return weighting.mean(caller, mx.maximum(-agreement, 0) * valid, weights)


def multiclass_hinge_loss(scores: mx.array, labels: mx.array, *, weights: mx.array | None = None) -> Mean:
    """Return the loss that is zero if the score of the label exceeds every other score by at least 1.

        max_c (score_c + [c != label]) - score_label

    Args:
        scores: floating [..., classes].
        labels: integer [...], in [0, classes); any other value makes the loss and its gradient NaN.
        weights: [...] or a shape that broadcasts to it; labels of weight 0 are skipped.

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
    """Return the difference of the largest score and that of the label: `max_c score_c - score_label`.

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
    """Return the loss of pairs in the wrong order: `max(0, -target * (input1 - input2) + margin)`.

    Args:
        inputs1: floating [...], scores.
        inputs2: floating [...], of the same shape.
        targets: [...], 1 if the first score should be greater, -1 if the second should; any other value
            makes the loss and its gradient NaN.
        margin: the greater score should exceed the other by this much.
        weights: [...] or a shape that broadcasts to it; pairs of weight 0 are skipped.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the inputs are not floating.

    >>> margin_ranking_loss(mx.array([1.0, 1.0]), mx.array([3.0, 0.0]), mx.array([1, 1])).total
    array(2, dtype=float32)
    """
    caller = "margin_ranking_loss"
    margin = checks.number(caller, "margin", margin)
    inputs.floating(caller, "inputs1", inputs1)
    inputs.floating(caller, "inputs2", inputs2)
    inputs.same_shape(caller, "targets", targets, "inputs1", inputs1)
    first, second, weights = inputs.pair(caller, inputs1, inputs2, weights, ("inputs1", "inputs2"))
    targets = weighting.masked(weights, targets.astype(mx.float32), 1.0)
    losses = mx.maximum(margin - (first - second) * targets, 0)
    return weighting.mean(caller, losses * _is_sign(targets), weights)


def _agreement(
    caller: str, outputs: mx.array, targets: mx.array, weights: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    names = ("predictor_outputs", "targets")
    outputs, targets, weights = inputs.pair(caller, outputs, targets, weights, names, fill=(0.0, 1.0))
    return outputs * targets, _is_sign(targets), weights


def _is_sign(targets: mx.array) -> mx.array:
    return validity.nan_unless(mx.abs(targets) == 1)


def _multiclass(
    caller: str, scores: mx.array, labels: mx.array, weights: mx.array | None, margin: float
) -> Mean:
    scores, labels, valid, weights = inputs.classes(caller, scores, labels, weights, ("scores", "labels"))
    # The difference comes first: at scores of 1e8 float32 would lose the margin.
    lead = scores - numerics.gather(scores, labels)[..., None]
    if margin:
        lead = lead + mx.where(mx.arange(scores.shape[-1]) == labels[..., None], 0.0, margin)
    return weighting.mean(caller, lead.max(axis=-1) * valid, weights)
