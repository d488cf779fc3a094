"""Soft targets, class weights and z-loss of cross entropy, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import cross_entropy
from tests._losses.recorded import cases, check_contract, compare
from tests.refusals import parts


def options_of(case):
    if "_all" in case:
        return {"label_smoothing": 0.2, "z_loss": 0.05}
    return {"label_smoothing": 0.1 if "_smoothed" in case else 0.0, "z_loss": 0.01 if "_z" in case else 0.0}


@pytest.mark.parametrize("case", cases("cross_entropy"))
def test_value_weight_and_gradient_are_those_of_the_reference(case):
    compare(case, cross_entropy, **options_of(case))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}])
def test_the_contract_of_every_loss_holds(options):
    logits = mx.random.normal((6, 5), key=mx.random.key(0))
    check_contract(cross_entropy, logits, mx.array([0, 1, 2, 4, 1, 0]), **options)
    check_contract(cross_entropy, logits, mx.softmax(mx.sin(3 * logits), axis=-1), **options)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}])
def test_a_one_hot_target_is_the_integer_with_class_weights_too(options):
    logits, targets = mx.random.normal((4, 3), key=mx.random.key(0)), mx.array([0, 2, 1, 2])
    options |= {"class_weights": mx.array([0.5, 1.0, 2.0]), "weights": mx.array([1.0, 0.0, 2.0, 1.0])}
    hard = cross_entropy(logits, targets, **options)
    soft = cross_entropy(logits, mx.eye(3)[targets], **options)
    np.testing.assert_allclose(soft.total, hard.total, 1e-6)
    assert soft.weight.item() == hard.weight.item() == 0.5 + 2 * 1 + 2


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": mx.ones(3)}])
def test_ignored_logits_may_be_nan(options):
    logits = mx.array([[0.0, 0.0, 0.0], [mx.nan, mx.inf, 0.0]])
    loss = lambda x: cross_entropy(x, mx.array([1, -100]), ignore_index=-100, **options).value  # noqa: E731
    value, gradient = mx.value_and_grad(loss)(logits)
    assert value.item() == pytest.approx(np.log(3))
    np.testing.assert_array_equal(gradient[1], np.zeros(3))


def test_a_class_without_weight_may_be_ruled_out_when_smoothing():
    weights = mx.array([1.0, 1.0, 0.0])
    loss = lambda x: cross_entropy(x, mx.array([0]), class_weights=weights, label_smoothing=0.3).value  # noqa: E731
    value, gradient = mx.value_and_grad(loss)(mx.array([[0.0, 0.0, -mx.inf]]))
    assert value.item() == pytest.approx((0.7 + 0.3 * 2 / 3) * np.log(2))
    assert mx.isfinite(gradient).all().item()


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}])
def test_a_target_of_a_class_without_weight_may_be_impossible(options):
    logits, targets = mx.array([[0.0, -mx.inf], [0.5, 1.0]]), mx.array([1, 0])
    weights = mx.array([1.0, 0.0])
    loss = lambda x, y: cross_entropy(x, y, class_weights=weights, **options)  # noqa: E731
    for slope, want in zip(
        mx.grad(lambda x: loss(x, targets).total)(logits).tolist(),
        [[0, 0], mx.grad(lambda x: loss(x, targets[1:]).total)(logits[1:])[0].tolist()],
        strict=True,
    ):
        assert slope == pytest.approx(want, rel=1e-6)
    assert loss(logits, targets).value.item() == pytest.approx(loss(logits[1:], targets[1:]).value.item())


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}])
def test_logits_of_a_target_of_a_class_without_weight_may_be_nan(options):
    logits = mx.array([[0.0, mx.nan], [0.5, 1.0]])
    loss = lambda x: cross_entropy(x, mx.array([1, 0]), class_weights=mx.array([1.0, 0.0]), **options).total  # noqa: E731
    value, gradient = mx.value_and_grad(loss)(logits)
    assert mx.isfinite(value).item()
    np.testing.assert_array_equal(gradient[0], np.zeros(2))


def test_z_loss_of_a_target_out_of_range_is_nan_too():
    value = cross_entropy(mx.zeros((2, 3)), mx.array([0, 3]), z_loss=0.1, class_weights=mx.ones(3)).value
    assert mx.isnan(value).item()


def test_no_soft_targets_at_all_weigh_nothing():
    mean = cross_entropy(mx.zeros((0, 4)), mx.zeros((0, 4)))
    assert (mean.total.item(), mean.weight.item()) == (0, 0)


def test_compiled_it_is_the_same():
    logits, targets = mx.random.normal((4, 3), key=mx.random.key(0)), mx.array([0, 2, -1, 2])
    loss = lambda x: cross_entropy(x, targets, ignore_index=-1, label_smoothing=0.1).value  # noqa: E731
    eager, compiled = mx.grad(loss)(logits), mx.compile(mx.grad(loss))(logits)
    np.testing.assert_allclose(compiled, eager, 1e-5, 1e-7)


@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        (mx.ones((2, 3)), {}, ValueError, "targets ... logits' shape (2, 4), got (2, 3)"),
        (mx.ones((2, 4)), {"ignore_index": 0}, ValueError, "ignore_index ... None ... distributions, got 0"),
        (
            mx.array([0, 1]),
            {"class_weights": mx.ones(3)},
            ValueError,
            "class_weights ... shape (4,), got (3,)",
        ),
        (mx.array([0, 1]), {"class_weights": [1.0] * 4}, TypeError, "class_weights ... array, got list"),
        (
            mx.array([0, 1]),
            {"weights": [1.0, 1.0]},
            TypeError,
            "weights ... real numbers ... booleans, got list",
        ),
        ([0, 1], {}, TypeError, "targets ... array, got list"),
        (mx.array([0, 1]), {"z_loss": -1e-4}, ValueError, "z_loss ... 0, got -0.0001"),
        (mx.array([0, 1]), {"ignore_index": 1.0}, TypeError, "ignore_index ... integer, got 1.0"),
    ],
)
def test_a_bad_argument_is_refused(targets, options, error, message):
    with pytest.raises(error, match=parts(f"cross_entropy: {message}")):
        cross_entropy(mx.zeros((2, 4)), targets, **options)
