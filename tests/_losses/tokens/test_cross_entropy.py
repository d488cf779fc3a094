"""Cross entropy of integer targets against torch in float64: weights, ignored targets, bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import Mean
from purestep.losses import cross_entropy
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("optimizers")
RTOL, ATOL = 2e-6, 1e-7
BFLOAT16_RTOL = 2**-8  # half a unit in the last of the 8 binary digits of a gradient

CASES = {
    "plain": {},
    "ignored": {"ignore_index": -100},
    "smoothed": {"label_smoothing": 0.1},
    "ignored_smoothed": {"ignore_index": -100, "label_smoothing": 0.1},
    "weighted": {},
    "large": {},
    "bfloat16": {},
    "bfloat16_smoothed": {"label_smoothing": 0.1},
}


def value_and_gradient(logits, *arguments, **options):
    return mx.value_and_grad(lambda x: cross_entropy(x, *arguments, **options).value)(logits)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_torch_in_float64(case):
    parts = {
        key.split("/")[2]: part for key, part in RECORD.items() if key.startswith(f"cross_entropy/{case}/")
    }
    options = dict(CASES[case])
    if "weights" in parts:
        options["weights"] = mx.array(parts["weights"])
    logits = mx.array(parts["logits"]).astype(mx.bfloat16 if "bfloat16" in case else mx.float32)
    value, gradient = value_and_gradient(logits, mx.array(parts["targets"]), **options)
    assert (value.dtype, gradient.dtype) == (mx.float32, logits.dtype)
    assert value.item() == pytest.approx(parts["value"].item(), rel=RTOL)
    rtol = BFLOAT16_RTOL if logits.dtype == mx.bfloat16 else RTOL
    np.testing.assert_allclose(gradient.astype(mx.float32), parts["gradient"], rtol, ATOL)


def test_every_recorded_case_is_compared():
    assert {key.split("/")[1] for key in RECORD if key.startswith("cross_entropy/")} == set(CASES)


def test_the_mean_is_over_the_targets_that_count():
    loss = cross_entropy(mx.zeros((2, 3, 4)), mx.array([[0, -1, 2], [-1, -1, 3]]), ignore_index=-1)
    assert isinstance(loss, Mean)
    assert loss.weight.item() == 3
    assert loss.total.item() == pytest.approx(3 * np.log(4))


def test_an_ignored_class_is_left_out_too():
    loss = cross_entropy(mx.array([[9.0, 0.0], [0.0, 0.0]]), mx.array([1, 0]), ignore_index=1)
    assert loss.weight.item() == 1
    assert loss.total.item() == pytest.approx(np.log(2))


def test_weights_broadcast_and_multiply_what_is_kept():
    targets = mx.array([[0, 1, -100], [1, -100, 0]])
    loss = cross_entropy(mx.zeros((2, 3, 2)), targets, weights=mx.array([[2.0], [0.5]]), ignore_index=-100)
    assert loss.weight.item() == 2 * 2 + 0.5 * 2
    assert loss.value.item() == pytest.approx(np.log(2))


def test_boolean_weights_are_a_mask():
    loss = cross_entropy(
        mx.array([[9.0, 0.0], [0.0, 0.0]]), mx.array([1, 0]), weights=mx.array([False, True])
    )
    assert loss.weight.item() == 1
    assert loss.total.item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", [-1, 3, 1000, -100])
def test_a_target_out_of_range_makes_the_loss_and_its_gradient_nan(target, smoothing):
    targets = mx.array([0, target])
    value, gradient = value_and_gradient(
        mx.zeros((2, 3)), targets, ignore_index=-7, label_smoothing=smoothing
    )
    assert mx.isnan(value).item()
    assert mx.isnan(gradient[1]).all().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_that_counts_gives_zero_value_zero_weight_and_zero_gradient(smoothing):
    targets = mx.array([-100, -100])
    options = {"ignore_index": -100, "label_smoothing": smoothing}
    value, gradient = value_and_gradient(mx.array([[5.0, 1.0, 2.0]] * 2), targets, **options)
    assert cross_entropy(mx.zeros((2, 3)), targets, **options).weight.item() == 0
    assert value.item() == 0
    assert mx.all(gradient == 0).item()


def test_a_weight_of_zero_leaves_out_a_target_out_of_range_with_its_gradient():
    weights = mx.array([1.0, 0.0])
    value, gradient = value_and_gradient(mx.zeros((2, 4)), mx.array([1, -1]), weights=weights)
    assert value.item() == pytest.approx(np.log(4))
    np.testing.assert_allclose(gradient, [[0.25, -0.75, 0.25, 0.25], [0, 0, 0, 0]], RTOL, ATOL)


@pytest.mark.parametrize(
    ("dtype", "classes"), [(mx.uint8, 256), (mx.int8, 300), (mx.uint16, 70000), (mx.uint32, 9), (mx.int64, 9)]
)
def test_targets_may_be_of_any_integer_dtype(dtype, classes):
    loss = cross_entropy(mx.zeros((2, classes)), mx.array([1, 8], dtype))
    assert loss.value.item() == pytest.approx(np.log(classes))


def test_an_ignore_index_that_the_dtype_of_the_targets_cannot_hold_ignores_nothing():
    loss = cross_entropy(mx.zeros((2, 9)), mx.array([1, 8], mx.uint32), ignore_index=-100)
    assert loss.weight.item() == 2


def test_a_class_ruled_out_by_minus_infinity_costs_the_others_nothing():
    logits = mx.array([[0.0, 0.0, -float("inf")]])
    value, gradient = value_and_gradient(logits, mx.array([0]))
    assert value.item() == pytest.approx(np.log(2))
    np.testing.assert_allclose(gradient, [[-0.5, 0.5, 0.0]], RTOL, ATOL)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_merge_to_the_mean_of_the_whole(smoothing):
    logits, targets = mx.random.normal((6, 5), key=mx.random.key(0)), mx.array([0, -1, -1, 2, 3, 4])
    options = {"ignore_index": -1, "label_smoothing": smoothing}
    parts = [cross_entropy(logits[cut], targets[cut], **options) for cut in (slice(0, 3), slice(3, 6))]
    whole = cross_entropy(logits, targets, **options)
    assert Mean.merge(*parts).value.item() == pytest.approx(whole.value.item(), rel=RTOL)


def test_one_vector_of_logits_has_one_target():
    assert cross_entropy(mx.zeros(4), mx.array(2)).total.item() == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    ("logits", "targets", "options", "error", "message"),
    [
        (
            (2, 3, 4),
            mx.zeros((3, 2), mx.int32),
            {},
            ValueError,
            "targets ... logits' shape ... (3, 2) and (2, 3, 4)",
        ),
        (
            (2, 4),
            mx.zeros((2, 4), mx.int32),
            {},
            ValueError,
            "targets ... logits' shape ... (2, 4) and (2, 4)",
        ),
        ((), mx.array(0), {}, ValueError, "targets ... logits' shape ... () and ()"),
        ((2, 0), mx.array([0, 0]), {}, ValueError, "logits ... one class, got (2, 0)"),
        ((2, 4), mx.zeros(2), {}, TypeError, "targets ... integers, got mlx.core.float32"),
        ((2, 4), mx.array([True, False]), {}, TypeError, "targets ... integers, got mlx.core.bool"),
        (
            (2, 4),
            mx.array([0, 1]),
            {"weights": mx.ones(3)},
            ValueError,
            "weights ... broadcast ... targets' (2,), got (3,)",
        ),
        (
            (2, 4),
            mx.array([0, 1]),
            {"weights": mx.ones((2, 2))},
            ValueError,
            "weights ... broadcast ... (2,), got (2, 2)",
        ),
        ((2, 4), mx.array([0, 1]), {"label_smoothing": 1.0}, ValueError, "label_smoothing ... 1, got 1.0"),
        ((2, 4), mx.array([0, 1]), {"label_smoothing": -0.1}, ValueError, "label_smoothing ... 0, got -0.1"),
        (
            (2, 4),
            mx.array([0, 1]),
            {"label_smoothing": float("nan")},
            ValueError,
            "label_smoothing ... finite, got nan",
        ),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(logits, targets, options, error, message):
    with pytest.raises(error, match=parts(f"cross_entropy: {message}")):
        cross_entropy(mx.zeros(logits), targets, **options)


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match=r"^cross_entropy: logits .* floating, got mlx\.core\.int32"):
        cross_entropy(mx.zeros((2, 4), mx.int32), mx.array([0, 1]))


def test_no_targets_at_all_weigh_nothing():
    mean = cross_entropy(mx.zeros((0, 4)), mx.zeros((0,), mx.int32))
    assert (mean.total.item(), mean.weight.item(), mean.value.item()) == (0.0, 0.0, 0.0)
