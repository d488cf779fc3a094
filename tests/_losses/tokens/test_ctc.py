"""CTC against optax and torch, recorded in float64, and against a sum over all alignments."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import ctc_loss
from tests._losses.recorded import cases, compare
from tests.refusals import parts


@pytest.mark.parametrize("case", cases("ctc_loss"))
def test_value_and_gradient_are_those_of_the_reference(case):
    compare(case, ctc_loss, blank_id=4 if case.endswith("last_blank") else 0)


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], []])
def test_the_likelihood_is_the_sum_over_all_alignments(labels):
    frames = 4
    logits = mx.random.normal((1, frames, 3), key=mx.random.key(0))
    probabilities = np.array(mx.softmax(logits[0], axis=-1), np.float64)
    likelihood = 0.0
    for path in itertools.product(range(3), repeat=frames):
        if [c for c, _ in itertools.groupby(path) if c] == labels:
            likelihood += math.prod(probabilities[range(frames), path])
    padded = mx.array([labels + [0] * (2 - len(labels))], mx.int32)
    paddings = mx.array([[0.0] * len(labels) + [1.0] * (2 - len(labels))])
    loss = ctc_loss(logits, mx.zeros((1, frames)), padded, paddings)
    assert loss.value.item() == pytest.approx(-math.log(likelihood), rel=1e-5)


def batch(frames=3, classes=4):
    logits = mx.random.normal((2, frames, classes), key=mx.random.key(1))
    return logits, mx.zeros((2, frames)), mx.array([[1, 2], [3, 3]]), mx.zeros((2, 2))


def test_too_few_frames_cost_infinity_without_a_gradient_and_may_be_left_out():
    logits, logit_paddings, labels, label_paddings = batch(frames=2)
    loss = lambda x, **options: ctc_loss(x, logit_paddings, labels, label_paddings, **options)  # noqa: E731
    value, slope = mx.value_and_grad(lambda x: loss(x).value)(logits)
    assert value.item() == math.inf
    np.testing.assert_array_equal(slope[1], np.zeros((2, 4)))
    kept = loss(mx.where(mx.array([1, 0])[:, None, None] == 1, logits, mx.nan), weights=mx.array([1.0, 0.0]))
    assert math.isfinite(kept.total.item())
    assert kept.weight.item() == 1


def test_padded_frames_may_hold_nan():
    logits, _, labels, label_paddings = batch(frames=5)
    paddings = mx.array([[0, 0, 0, 0, 1]] * 2)
    poisoned = mx.where(paddings[..., None] == 1, mx.nan, logits)
    value, slope = mx.value_and_grad(lambda x: ctc_loss(x, paddings, labels, label_paddings).value)(poisoned)
    cut = ctc_loss(logits[:, :4], paddings[:, :4], labels, label_paddings)
    np.testing.assert_allclose(value, cut.value, 1e-6)
    np.testing.assert_array_equal(slope[:, 4], np.zeros((2, 4)))


@pytest.mark.parametrize("label", [-1, 0, 4])
def test_a_label_that_is_no_class_or_the_blank_makes_nan_unless_it_is_padding(label):
    logits, logit_paddings, _, _ = batch()
    labels = mx.array([[1, label], [1, 2]])
    loss = lambda x, paddings: ctc_loss(x, logit_paddings, labels, paddings).value  # noqa: E731
    value, slope = mx.value_and_grad(loss)(logits, mx.zeros((2, 2)))
    assert math.isnan(value.item())
    assert mx.isnan(slope[0]).any().item()
    assert math.isfinite(loss(logits, mx.array([[False, True], [False, False]])).item())


def test_a_class_ruled_out_by_minus_infinity_has_no_nan():
    logits, logit_paddings, labels, label_paddings = batch(frames=4)
    logits = mx.where(mx.arange(4) == 2, -mx.inf, logits)
    only = mx.array([[1, 3], [3, 3]])
    value, slope = mx.value_and_grad(lambda x: ctc_loss(x, logit_paddings, only, label_paddings).value)(
        logits
    )
    assert math.isfinite(value.item())
    assert mx.isfinite(slope).all().item()
    assert ctc_loss(logits, logit_paddings, labels, label_paddings).value.item() == math.inf


def test_vmap_parts_and_half_precision_agree():
    arrays = batch()
    whole = ctc_loss(*arrays)
    mapped = mx.vmap(lambda *members: ctc_loss(*(member[None] for member in members)))(*arrays)
    np.testing.assert_allclose(mapped.total.sum(), whole.total, 1e-6)
    half = arrays[0].astype(mx.bfloat16)
    low, high = (ctc_loss(x, *arrays[1:]).value for x in (half, half.astype(mx.float32)))
    np.testing.assert_allclose(low, high, 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"blank_id": 4}, ValueError, "blank_id ... 4 classes, got 4"),
        ({"blank_id": -1}, ValueError, "blank_id ... 0, got -1"),
        ({"labels": mx.zeros((2, 2))}, TypeError, "labels ... integers, got mlx.core.float32"),
        (
            {"labels": mx.zeros((3, 2), mx.int32)},
            ValueError,
            "logits and labels ... [batch, frames, classes] ... (2, 3, 4) and (3, 2)",
        ),
        (
            {"label_paddings": mx.zeros((2, 3))},
            ValueError,
            "label_paddings ... labels' shape (2, 2), got (2, 3)",
        ),
        ({"logit_paddings": [[0, 0, 0]] * 2}, TypeError, "logit_paddings ... array, got list"),
        (
            {"logit_paddings": mx.zeros((2, 4))},
            ValueError,
            "logit_paddings ... [batch, frames] (2, 3), got (2, 4)",
        ),
    ],
)
def test_a_bad_argument_is_refused(change, error, message):
    names = ("logits", "logit_paddings", "labels", "label_paddings")
    with pytest.raises(error, match=parts(f"ctc_loss: {message}")):
        ctc_loss(**{**dict(zip(names, batch(), strict=True)), **change})
