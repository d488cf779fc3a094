"""Soft targets: gradients of targets that are exactly 0, and rows that are not distributions."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import losses

LOGITS = np.array([[1.0, -0.5, 2.0, 0.3], [0.2, 0.1, -1.0, 0.4]])
TARGETS = np.array([[0.0, 1.0, 0.0, 0.0], [0.25, 0.0, 0.75, 0.0]])
LOG_Q = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


def of_targets(loss, targets=TARGETS, logits=LOGITS):
    """Return the gradient of the total with respect to the targets."""
    slope = mx.grad(lambda t: loss(mx.array(logits, mx.float32), t).total)(mx.array(targets, mx.float32))
    return np.array(slope)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_of_a_target_of_zero_is_what_its_class_would_cost(smoothing):
    found = of_targets(lambda x, t: losses.cross_entropy(x, t, label_smoothing=smoothing))
    np.testing.assert_allclose(found, (1 - smoothing) * -LOG_Q, 1e-5)
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    found = of_targets(lambda x, t: losses.cross_entropy(x, t, class_weights=mx.array(weights, mx.float32)))
    np.testing.assert_allclose(found, weights * -LOG_Q, 1e-5)


def test_so_it_is_for_poly_loss_and_ranking_and_fenchel_young():
    found = of_targets(lambda x, t: losses.poly_loss_cross_entropy(x, t, epsilon=1.5))
    np.testing.assert_allclose(found, -LOG_Q + 1.5 * (1 - np.exp(LOG_Q)), 1e-5)
    np.testing.assert_allclose(of_targets(losses.ranking_softmax_loss), -LOG_Q, 1e-5)
    found = of_targets(losses.make_fenchel_young_loss(mx.logsumexp))
    np.testing.assert_allclose(found - found[:, :1], LOGITS[:, :1] - LOGITS, 1e-5, 1e-6)


def test_the_focal_loss_of_hard_labels_has_the_slope_of_soft_ones_nearby():
    logits, labels = np.array([-2.0, -0.3, 0.0, 1.7]), np.array([0.0, 1.0, 0.0, 1.0])

    def exact(y, gamma=2.0, alpha=0.25):
        p = 1 / (1 + np.exp(-logits))
        cost = -y * np.log(p) - (1 - y) * np.log(1 - p)
        return cost * (y * (1 - p) + (1 - y) * p) ** gamma * (alpha * y + (1 - alpha) * (1 - y))

    want = (exact(labels + 1e-6) - exact(labels - 1e-6)) / 2e-6
    found = of_targets(lambda x, t: losses.sigmoid_focal_loss(x, t, alpha=0.25), labels, logits)
    np.testing.assert_allclose(found, want, 1e-4)
    extreme = of_targets(
        losses.sigmoid_focal_loss, np.array([0.0, 1.0, 1.0, 0.0]), np.array([-1e3, -1e3, 1e3, 1e3])
    )
    assert np.isfinite(extreme).all()


@pytest.mark.parametrize(
    "loss",
    [
        losses.cross_entropy,
        lambda x, t: losses.cross_entropy(x, t, z_loss=0.1),
        losses.poly_loss_cross_entropy,
        losses.ranking_softmax_loss,
        losses.make_fenchel_young_loss(mx.logsumexp),
    ],
)
def test_a_logit_of_minus_infinity_beside_a_target_of_zero_has_no_nan(loss):
    logits = mx.array([[0.5, 0.0, -mx.inf, 0.0]])
    value, slopes = mx.value_and_grad(lambda x, t: loss(x, t).value, argnums=(0, 1))(
        logits, mx.array([[1.0, 0.0, 0.0, 0.0]])
    )
    assert all(mx.isfinite(x).all().item() for x in (value, *slopes))


NOT_DISTRIBUTIONS = [[1.5, -0.5, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("row", NOT_DISTRIBUTIONS)
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.poly_loss_cross_entropy])
def test_a_row_that_is_no_distribution_is_nan_unless_it_weighs_nothing(loss, row):
    logits, targets = mx.array(LOGITS, mx.float32), mx.array([[0.0, 1.0, 0.0, 0.0], row])
    value, slope = mx.value_and_grad(lambda x: loss(x, targets).value)(logits)
    assert mx.isnan(value).item()
    assert mx.isnan(slope[1]).all().item()
    value, slope = mx.value_and_grad(lambda x: loss(x, targets, weights=mx.array([1.0, 0.0])).value)(logits)
    assert value.item() == pytest.approx(loss(logits[:1], targets[:1]).value.item())
    assert mx.isfinite(slope).all().item()


def test_distributions_of_half_precision_are_distributions():
    for dtype in (mx.float16, mx.bfloat16):
        targets = mx.softmax(mx.random.normal((8, 5000), key=mx.random.key(0)), axis=-1).astype(dtype)
        assert mx.isfinite(losses.cross_entropy(mx.zeros((8, 5000)), targets).value).item()


def test_negative_relevance_is_nan_and_unnormalized_relevance_is_not():
    logits = mx.array(LOGITS, mx.float32)
    assert mx.isnan(losses.ranking_softmax_loss(logits, mx.full((2, 4), -0.5)).value).item()
    found = losses.ranking_softmax_loss(logits, mx.full((2, 4), 3.0)).total.item()
    assert found == pytest.approx(-3 * LOG_Q.sum(), rel=1e-6)


def test_a_fenchel_young_loss_of_masses_is_what_it_says():
    logits, targets = np.array([[100.0, 101.0, 99.0]]), np.array([[0.5, 0.0, 0.0]])
    loss = losses.make_fenchel_young_loss(mx.logsumexp)(
        mx.array(logits, mx.float32), mx.array(targets, mx.float32)
    )
    want = np.log(np.exp(logits - 101).sum()) + 101 - (logits * targets).sum()
    assert loss.value.item() == pytest.approx(want, rel=1e-6)


def test_class_weights_divide_distributions_as_they_do_integers():
    """torch.nn.functional.cross_entropy returns total / N, with N = 2 rows here."""
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    mean = losses.cross_entropy(
        mx.array(LOGITS, mx.float32),
        mx.array(TARGETS, mx.float32),
        class_weights=mx.array(weights, mx.float32),
    )
    torch = -(weights * TARGETS * LOG_Q).sum() / 2
    assert (mean.value * mean.weight / 2).item() == pytest.approx(torch, rel=1e-6)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("which", [0, 1])
def test_dice_outside_of_probabilities_is_nan(which, bad):
    for loss, shape, option in (
        (losses.dice_loss, (2, 3, 2), "apply_softmax"),
        (losses.multiclass_generalized_dice_loss, (2, 3, 2), "apply_softmax"),
        (losses.binary_dice_loss, (2, 3), "apply_sigmoid"),
    ):
        arrays = [mx.full(shape, 0.25), mx.full(shape, 0.5)]
        assert mx.isfinite(loss(*arrays, **{option: False}).value).item()
        arrays[which] = mx.where(
            mx.arange(2 * 3 * shape[-1] if len(shape) > 2 else 6).reshape(shape) == 1, bad, arrays[which]
        )
        value, slope = mx.value_and_grad(lambda x, y, f=loss, o=option: f(x, y, **{o: False}).value)(*arrays)
        assert mx.isnan(value).item()
        assert mx.isnan(slope[0]).any().item()
        left_out = loss(*arrays, weights=mx.array([0.0, 1.0]), **{option: False}).value
        assert mx.isfinite(left_out).item()


def test_the_paddings_of_ctc_are_masks():
    logits = mx.random.normal((2, 5, 4), key=mx.random.key(0))
    frames, labels = mx.zeros((2, 5)), mx.array([[1, 2], [3, 1]])
    loss = lambda *x: losses.ctc_loss(x[0], x[1], labels, x[2]).value  # noqa: E731
    alone = mx.grad(loss)(logits, frames, mx.zeros((2, 2)))
    slopes = mx.grad(loss, argnums=(0, 1, 2))(logits, frames, mx.zeros((2, 2)))
    assert mx.array_equal(slopes[0], alone).item()
    assert not any(slope.any().item() for slope in slopes[1:])
