"""Distillation against torch in float64: full and top-k teachers, masks, and bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import Mean
from purestep._losses.core.divergence import DIVERGENCES
from purestep.losses import cross_entropy, distillation_loss, soft_target_loss, top_k_logits
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("distillation")
SETS = ("random", "extreme")
RTOL, ATOL = 1e-5, 1e-6
TOP = ("forward_kl_top", "reverse_kl_top", "jsd_top")
CASES = {
    **{name: {"divergence": name} for name in DIVERGENCES},
    **{name: {"divergence": name.removesuffix("_top"), "temperature": 2.0} for name in TOP},
    **{f"{name}_bare": {"divergence": name, "temperature": 2.0} for name in ("forward_kl", "jsd")},
    "jsd_0.2": {"divergence": "jsd", "temperature": 1.0, "beta": 0.2},
    "mixed": {},
}


def top_k(name, temperature=2.0, with_rest=True):
    """Return the teacher's largest logits, and the arguments for their classes and, on request, the rest."""
    teacher, indices = RECORD[f"{name}/teacher"], RECORD[f"{name}/indices"]
    out = {"teacher_indices": mx.array(indices)}
    if with_rest:
        wide = teacher.astype(np.float64) / temperature
        np.put_along_axis(wide, indices, -np.inf, -1)
        largest = wide.max(-1)
        total = largest + np.log(np.exp(wide - largest[..., None]).sum(-1))
        out["teacher_rest"] = mx.array(total.astype(np.float32))
    return mx.array(np.take_along_axis(teacher, indices, -1)), out


def loss_of(name, case, student):
    options, weights = dict(CASES[case]), mx.array(RECORD[f"{name}/weights"])
    teacher = mx.array(RECORD[f"{name}/teacher"])
    if case == "mixed":
        targets = mx.array(RECORD[f"{name}/targets"])
        return distillation_loss(student, teacher, targets, ignore_index=-100, weights=weights)[0].value
    if case in TOP or case.endswith("_bare"):
        teacher, more = top_k(name, with_rest=case in TOP)
        options |= more
    return soft_target_loss(student, teacher, weights=weights, **options).value


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_torch_in_float64(case, name):
    value, gradient = mx.value_and_grad(lambda x: loss_of(name, case, x))(mx.array(RECORD[f"{name}/student"]))
    want = RECORD[f"{name}/{case}/value"].item()
    assert value.item() == pytest.approx(want, rel=RTOL)
    wanted = RECORD[f"{name}/{case}/gradient"]
    # At 1e4 a gradient is a small difference of large numbers: its error is relative to the largest.
    atol = ATOL * max(1, np.abs(wanted).max())
    np.testing.assert_allclose(gradient, wanted, RTOL, atol)


def test_the_largest_logits_of_a_teacher_are_cut_out_with_what_the_others_weigh():
    logits, indices, rest = top_k_logits(mx.array(RECORD["random/teacher"]), 3, temperature=2.0)
    want, more = top_k("random", 2.0)
    np.testing.assert_array_equal(logits, want)
    np.testing.assert_array_equal(indices, more["teacher_indices"])
    np.testing.assert_allclose(rest, more["teacher_rest"], RTOL)


def test_every_recorded_distillation_case_is_compared():
    assert {key.split("/")[1] for key in RECORD if key.count("/") == 2} == set(CASES)


def test_the_defaults_are_temperature_4_and_seven_tenths_of_the_soft_targets():
    student, teacher = (mx.array(RECORD[f"random/{name}"]) for name in ("student", "teacher"))
    targets = mx.zeros(student.shape[:-1], mx.int32)
    loss, metrics = distillation_loss(student, teacher, targets)
    soft, hard = soft_target_loss(student, teacher, temperature=4.0), cross_entropy(student, targets)
    assert loss.value.item() == pytest.approx(0.7 * soft.value.item() + 0.3 * hard.value.item(), rel=RTOL)
    assert metrics["soft"].value.item() == pytest.approx(soft.value.item(), rel=RTOL)
    assert metrics["hard"].value.item() == pytest.approx(hard.value.item(), rel=RTOL)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_teacher_has_no_gradient_and_a_student_equal_to_it_no_loss(divergence):
    student, teacher = (mx.array(RECORD[f"random/{name}"]) for name in ("student", "teacher"))
    gradient = mx.grad(lambda t: soft_target_loss(student, t, divergence=divergence).value)(teacher)
    assert mx.all(gradient == 0).item()
    value, gradient = mx.value_and_grad(lambda s: soft_target_loss(s, teacher, divergence=divergence).value)(
        teacher + 3.0
    )
    assert abs(value.item()) < 1e-5
    np.testing.assert_allclose(gradient, np.zeros(gradient.shape), atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_classes_given_by_index_are_the_whole_distribution(divergence):
    student, teacher = (mx.array(RECORD[f"random/{name}"]) for name in ("student", "teacher"))
    order = mx.argsort(-teacher, axis=-1)
    shuffled = mx.take_along_axis(teacher, order, axis=-1)
    more = {"teacher_rest": mx.full(order.shape[:-1], -float("inf")), "teacher_indices": order}
    whole = soft_target_loss(student, teacher, divergence=divergence)
    assert soft_target_loss(student, shuffled, divergence=divergence, **more).value.item() == pytest.approx(
        whole.value.item(), rel=RTOL
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_largest_classes_never_diverge_more_than_all(divergence):
    student, teacher = (mx.array(RECORD[f"random/{name}"]) for name in ("student", "teacher"))
    part, more = top_k("random", 2.0)
    whole = soft_target_loss(student, teacher, divergence=divergence, temperature=2.0).value.item()
    assert (
        0
        < soft_target_loss(student, part, divergence=divergence, temperature=2.0, **more).value.item()
        < whole
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_classes_ruled_out_for_both_cost_nothing(divergence):
    off = -float("inf")
    student, teacher = mx.array([[1.0, off, 0.0]]), mx.array([[0.0, off, 2.0]])
    options = {"divergence": divergence}
    value, gradient = mx.value_and_grad(lambda x: soft_target_loss(x, teacher, **options).value)(student)
    without = soft_target_loss(mx.array([[1.0, 0.0]]), mx.array([[0.0, 2.0]]), **options)
    assert value.item() == pytest.approx(without.value.item(), rel=RTOL)
    assert mx.isfinite(gradient).all().item()


@pytest.mark.parametrize("case", ["full", "top", "mixed"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_is_left_out_may_be_nan_and_nothing_left_is_zero(divergence, case):
    nan = float("nan")
    logits = mx.array([[1.0, 2.0, 0.0], [nan, float("inf"), -float("inf")]])
    indices = mx.array([[0, 1], [-5, 99]])
    more = {"teacher_indices": indices, "teacher_rest": mx.array([3.0, nan])} if case == "top" else {}
    teacher = logits[:, :2] if case == "top" else logits

    def loss_of(x, weights):
        if case == "mixed":
            return distillation_loss(x, teacher, mx.array([0, 99]), divergence=divergence, weights=weights)[0]
        return soft_target_loss(x, teacher, divergence=divergence, weights=weights, **more)

    def gradient(weights):
        return mx.grad(lambda x: loss_of(x, weights).value)(logits)

    some, none = mx.array([1.0, 0.0]), mx.array([False, False])
    assert mx.isfinite(loss_of(logits, some).value).item()
    assert mx.isfinite(gradient(some)).all().item()
    assert mx.all(gradient(some)[1] == 0).item()
    assert (loss_of(logits, none).total.item(), loss_of(logits, none).weight.item()) == (0, 0)
    assert mx.all(gradient(none) == 0).item()


def test_indices_and_targets_out_of_range_make_the_loss_nan():
    student, teacher = mx.zeros((1, 4)), mx.zeros((1, 2))
    for bad in (-1, 4):
        assert mx.isnan(soft_target_loss(student, teacher, teacher_indices=mx.array([[0, bad]])).value).item()
        loss, _ = distillation_loss(student, student, mx.array([bad]), ignore_index=-100)
        assert mx.isnan(loss.value).item()


def test_parts_merge_to_the_mean_of_the_whole():
    student, teacher, targets = (mx.array(RECORD[f"random/{n}"]) for n in ("student", "teacher", "targets"))
    flat = student.reshape(-1, 9), teacher.reshape(-1, 9), targets.reshape(-1)
    parts = [
        distillation_loss(*(x[c] for x in flat), ignore_index=-100)[0] for c in (slice(0, 3), slice(3, 10))
    ]
    whole = distillation_loss(*flat, ignore_index=-100)[0]
    assert whole.weight.item() == 9
    assert Mean.merge(*parts).value.item() == pytest.approx(whole.value.item(), rel=RTOL)


def test_compiled_mapped_and_narrow_inputs_agree():
    student, teacher = (mx.array(RECORD[f"random/{name}"]) for name in ("student", "teacher"))
    want = soft_target_loss(student, teacher).value
    compiled = mx.compile(lambda s, t, temperature: soft_target_loss(s, t, temperature=temperature).value)
    np.testing.assert_allclose(compiled(student, teacher, mx.array(4.0)), want, RTOL)
    mapped = mx.vmap(lambda s, t: soft_target_loss(s, t, divergence="jsd").total)(student, teacher)
    np.testing.assert_allclose(mapped.sum(), soft_target_loss(student, teacher, divergence="jsd").total, RTOL)
    part, more = top_k("random", 4.0)
    mapped = mx.vmap(lambda s, t, i, z: soft_target_loss(s, t, teacher_indices=i, teacher_rest=z).total)(
        student, part, more["teacher_indices"], more["teacher_rest"]
    )
    np.testing.assert_allclose(mapped.sum(), soft_target_loss(student, part, **more).total, RTOL)
    narrow = [x.astype(mx.bfloat16) for x in (student, teacher)]
    got, wide = (
        soft_target_loss(*narrow).value,
        soft_target_loss(*(x.astype(mx.float32) for x in narrow)).value,
    )
    assert (got.dtype, got.item()) == (mx.float32, wide.item())


X, IDS, T = mx.zeros((2, 4)), mx.zeros((2, 2), mx.int32), mx.array([0, 1])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: soft_target_loss(X, mx.zeros((2, 3))), ValueError,
         "soft_target_loss: teacher_logits ... student_logits' shape (2, 4), got (2, 3)"),
        (lambda: soft_target_loss(X, X, temperature=0), ValueError,
         "soft_target_loss: temperature ... 0, got 0"),
        (lambda: distillation_loss(X, X, T, temperature=0.0), ValueError,
         "distillation_loss: temperature ... 0, got 0.0"),
        (lambda: soft_target_loss(X, X, divergence="kl"), ValueError,
         "soft_target_loss: divergence ... forward_kl, reverse_kl, jsd, got 'kl'"),
        (lambda: soft_target_loss(X, X, beta=1.0), ValueError, "soft_target_loss: beta ... 1, got 1.0"),
        (lambda: soft_target_loss(X, X, beta=mx.array(0.5)), TypeError,
         "soft_target_loss: beta ... Python number, got an array"),
        (lambda: soft_target_loss(X, X, teacher_rest=mx.zeros(2)), ValueError,
         "soft_target_loss: teacher_rest ... with teacher_indices"),
        (lambda: soft_target_loss(X, mx.zeros((2, 2)), teacher_indices=IDS, divergence="reverse_kl"),
         ValueError, "soft_target_loss: teacher_rest ... reverse_kl ... None"),
        (lambda: soft_target_loss(X, mx.zeros((2, 5)), teacher_indices=IDS), ValueError,
         "soft_target_loss: teacher_logits ... 1 to 4, got (2, 5)"),
        (lambda: soft_target_loss(X, mx.zeros((2, 3)), teacher_indices=IDS), ValueError,
         "soft_target_loss: teacher_indices ... teacher_logits' shape (2, 3), got (2, 2)"),
        (lambda: soft_target_loss(X, mx.zeros((2, 2)), teacher_indices=mx.zeros((2, 2))), TypeError,
         "soft_target_loss: teacher_indices ... integers, got mlx.core.float32"),
        (lambda: soft_target_loss(X, mx.zeros((2, 2)), teacher_indices=IDS, teacher_rest=mx.zeros(3)),
         ValueError, "soft_target_loss: teacher_rest ... shape (2,), got (3,)"),
        (lambda: soft_target_loss(X, X, weights=mx.ones(3)), ValueError,
         "soft_target_loss: weights ... broadcast ... positions' (2,), got (3,)"),
        (lambda: soft_target_loss(X.astype(mx.int32), X), TypeError,
         "soft_target_loss: student_logits ... floating, got mlx.core.int32"),
        (lambda: soft_target_loss(X, X.astype(mx.int32)), TypeError,
         "soft_target_loss: teacher_logits ... floating, got mlx.core.int32"),
        (lambda: soft_target_loss(mx.zeros((2, 0)), mx.zeros((2, 0))), ValueError,
         "soft_target_loss: ... vocab >= 1, got (2, 0)"),
        (lambda: top_k_logits(X, 5), ValueError, "top_k_logits: k ... vocabulary ... (2, 4), got 5"),
        (lambda: top_k_logits(X, 0), ValueError, "top_k_logits: k ... 1, got 0"),
        (lambda: top_k_logits(X, 2, temperature=0), ValueError, "top_k_logits: temperature ... 0, got 0"),
        (lambda: distillation_loss(X, X, T, alpha=1.1), ValueError,
         "distillation_loss: alpha ... 1, got 1.1"),
        (lambda: distillation_loss(X, X, mx.zeros(2)), TypeError,
         "distillation_loss: targets ... integers, got mlx.core.float32"),
        (lambda: distillation_loss(X, X, mx.array([1])), ValueError,
         "distillation_loss: targets ... (1,) and (2, 4)"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(function, error, message):
    with pytest.raises(error, match=parts(message)):
        function()
