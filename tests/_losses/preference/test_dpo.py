"""Preference losses against the published formulas in float64: extremes, masks, bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import Mean
from purestep.losses import cpo_loss, dpo_loss, kto_loss, orpo_loss, sequence_logps, simpo_loss, token_logps
from tests._losses.recorded import check_nothing_counts
from tests.references import recorded  # type: ignore
from tests.refusals import parts

RECORD = recorded("preference")
SETS = ("random", "average", "extreme")
RTOL, ATOL = 1e-5, 1e-7

CASES = {
    "dpo": lambda c, r, rc, rr, w: dpo_loss(c, r, rc, rr, weights=w),
    "dpo_smoothed": lambda c, r, rc, rr, w: dpo_loss(c, r, rc, rr, beta=0.3, label_smoothing=0.2, weights=w),
    "dpo_free": lambda c, r, rc, rr, w: dpo_loss(c, r, reference_free=True, weights=w),
    "dpo_hinge": lambda c, r, rc, rr, w: dpo_loss(c, r, rc, rr, loss_type="hinge", weights=w),
    "dpo_ipo": lambda c, r, rc, rr, w: dpo_loss(c, r, rc, rr, beta=0.3, loss_type="ipo", weights=w),
    "cpo": lambda c, r, rc, rr, w: cpo_loss(c, r, weights=w),
    "cpo_hinge": lambda c, r, rc, rr, w: cpo_loss(
        c, r, chosen_nll=-rc, beta=0.2, cpo_alpha=0.5, loss_type="hinge", weights=w
    ),
    "simpo": lambda c, r, rc, rr, w: simpo_loss(c, r, weights=w),
    "simpo_smoothed": lambda c, r, rc, rr, w: simpo_loss(
        c, r, beta=2.5, gamma=1.5, label_smoothing=0.1, weights=w
    ),
    "orpo": lambda c, r, rc, rr, w: orpo_loss(c, r, weights=w),
}


def inputs(name):
    """Return chosen, rejected, their references and weights; entries of zero weight are NaN or infinite."""
    weights = RECORD[f"{name}/weights"]
    bad = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), weights.shape)
    parts = [RECORD[f"{name}/{part}"] for part in ("chosen", "rejected", "ref_chosen", "ref_rejected")]
    return *(mx.array(np.where(weights > 0, part, bad)) for part in parts), mx.array(weights)


def recorded(name, case):
    prefix = f"{name}/{case}/"
    return {key.removeprefix(prefix): part for key, part in RECORD.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", CASES)
def test_a_loss_on_pairs_is_the_published_formula_in_float64(case, name):
    chosen, rejected, *rest = inputs(name)
    value, gradients = mx.value_and_grad(lambda c, r: CASES[case](c, r, *rest)[0].value, argnums=(0, 1))(
        chosen, rejected
    )
    want = recorded(name, case)
    assert value.item() == pytest.approx(want["value"].item(), rel=RTOL)
    np.testing.assert_allclose(gradients[0], want["chosen"], RTOL, ATOL)
    np.testing.assert_allclose(gradients[1], want["rejected"], RTOL, ATOL)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", ["kto", "kto_weighted"])
def test_kto_is_the_published_formula_in_float64(case, name):
    logps, _, ref, _, weights = inputs(name)
    desirable, kl = mx.array(RECORD[f"{name}/desirable"]), mx.array(RECORD[f"{name}/kl"])
    options = {"kl": kl}
    if case == "kto_weighted":
        options = {"kl": kl - 9.0, "beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}

    def loss_of(x):
        loss, metrics = kto_loss(x, ref, desirable, weights=weights, **options)
        return loss.value, metrics

    (value, metrics), gradient = mx.value_and_grad(loss_of)(logps)
    want = recorded(name, case)
    assert value.item() == pytest.approx(want["value"].item(), rel=RTOL)
    np.testing.assert_allclose(gradient, want["chosen"], RTOL, ATOL)
    assert metrics["kl"].value.item() == pytest.approx(want["kl"].item(), rel=RTOL)


def test_every_recorded_preference_case_is_compared():
    cases = {key.split("/")[1] for key in RECORD if key.count("/") == 2}
    assert cases == {*CASES, "kto", "kto_weighted", "dpo_metrics"}


@pytest.mark.parametrize("name", SETS)
def test_rewards_their_margins_and_accuracies_are_reported(name):
    chosen, rejected, ref_chosen, ref_rejected, weights = inputs(name)
    _, metrics = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, weights=weights)
    want = recorded(name, "dpo_metrics")
    assert set(metrics) == set(want)
    for label, mean in metrics.items():
        assert mean.weight.item() == RECORD[f"{name}/weights"].sum()
        assert mean.value.item() == pytest.approx(want[label].item(), rel=RTOL)


def test_kto_reports_the_rewards_of_either_kind():
    logps, ref, desirable = mx.array([1.0, 2.0, 5.0]), mx.zeros(3), mx.array([1, 0, 1])
    _, metrics = kto_loss(logps, ref, desirable, weights=mx.array([1.0, 1.0, 0.0]))
    assert metrics["rewards_chosen"].value.item() == pytest.approx(0.1)
    assert metrics["rewards_rejected"].value.item() == pytest.approx(0.2)
    assert metrics["kl"].value.item() == 0


def test_a_point_of_reference_given_as_a_number_lets_kto_merge_exactly():
    logps, ref, desirable = (mx.array(RECORD[f"random/{n}"]) for n in ("chosen", "ref_chosen", "desirable"))
    whole, _ = kto_loss(logps, ref, desirable, kl=mx.array(0.3))
    parts = [
        kto_loss(logps[c], ref[c], desirable[c], kl=mx.array(0.3))[0] for c in (slice(0, 5), slice(5, 12))
    ]
    assert Mean.merge(*parts).value.item() == pytest.approx(whole.value.item(), rel=RTOL)


@pytest.mark.parametrize("case", CASES)
def test_uneven_parts_merge_to_the_whole(case):
    arrays = inputs("random")
    parts = [CASES[case](*(a[cut] for a in arrays))[0] for cut in (slice(0, 3), slice(3, 4), slice(4, 12))]
    whole = CASES[case](*arrays)[0].value.item()
    assert Mean.merge(*parts).value.item() == pytest.approx(whole, rel=RTOL)


@pytest.mark.parametrize("case", [*CASES, "kto"])
def test_nothing_that_counts_gives_zero_weight_zero_value_and_zero_gradient(case):
    nan, zeros = mx.full(3, float("nan")), mx.zeros(3)

    def loss_of(x):
        if case == "kto":
            return kto_loss(x, nan, zeros, weights=zeros)
        return CASES[case](x, nan, nan, nan, zeros)

    check_nothing_counts(loss_of, nan)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("case", ["dpo", "simpo", "orpo", "cpo"])
def test_pairs_without_a_token_have_a_finite_loss_and_no_gradient(case, average):
    targets, mask = mx.zeros((2, 3), mx.int32), mx.zeros((2, 3))

    def loss_of(logits):
        logps = sequence_logps(token_logps(logits, targets), mask, average=average)
        return CASES[case](logps, logps, mx.zeros(2), mx.zeros(2), None)[0].value

    value, gradient = mx.value_and_grad(loss_of)(mx.random.normal((2, 3, 4), key=mx.random.key(0)))
    assert mx.isfinite(value).item()
    assert mx.all(gradient == 0).item()


def test_prompt_and_padding_do_not_reach_the_loss():
    keys = mx.random.split(mx.random.key(0), 2)
    mask, targets = mx.array([[0, 1, 1, 0]]), mx.array([[1, 2, 3, 0]])
    logits, other = (mx.random.normal((1, 4, 5), key=key) for key in keys)

    def loss_of(logits):
        logps = sequence_logps(token_logps(logits, targets), mask)
        return dpo_loss(logps, mx.array([-3.0]), mx.array([-2.0]), mx.array([-2.0]))[0].value

    value, gradient = mx.value_and_grad(loss_of)(logits)
    elsewhere = mx.where(mask[..., None] > 0, logits, other)
    assert loss_of(elsewhere).item() == value.item()
    assert mx.all(gradient[:, [0, 3]] == 0).item()
    assert mx.all(gradient[:, [1, 2]] != 0).item()


def test_the_reference_has_no_gradient():
    c, r, rc, rr, _ = (mx.array([x]) for x in (-1.0, -2.0, -3.0, -1.0, 0.0))
    for gradient in mx.grad(lambda *refs: dpo_loss(c, r, *refs)[0].value, argnums=(0, 1))(rc, rr):
        assert gradient.item() == 0
    assert mx.grad(lambda ref: kto_loss(c, ref, mx.ones(1), kl=c - ref + 5)[0].value)(rc).item() == 0
    assert mx.grad(lambda kl: kto_loss(c, rc, mx.ones(1), kl=kl)[0].value)(mx.array(1.0)).item() == 0


def test_compiled_mapped_and_narrow_inputs_agree():
    c, r, rc, rr = (
        mx.array(RECORD[f"random/{n}"]) for n in ("chosen", "rejected", "ref_chosen", "ref_rejected")
    )
    want = dpo_loss(c, r, rc, rr)[0].value
    np.testing.assert_allclose(mx.compile(lambda *x: dpo_loss(*x)[0].value)(c, r, rc, rr), want, RTOL)
    for loss in (dpo_loss, orpo_loss, simpo_loss, cpo_loss):
        arrays = (c, r, rc, rr) if loss is dpo_loss else (c, r)
        mapped = mx.vmap(lambda *x, loss=loss: loss(*x)[0].value)(*(mx.stack([x, x]) for x in arrays))
        np.testing.assert_allclose(mapped, [loss(*arrays)[0].value.item()] * 2, RTOL)
        narrow = [x.astype(mx.bfloat16) for x in arrays]
        got, wide = loss(*narrow)[0].value, loss(*(x.astype(mx.float32) for x in narrow))[0].value
        assert (got.dtype, got.item()) == (mx.float32, wide.item())


X = mx.zeros(2)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: dpo_loss(X, X), ValueError,
         "dpo_loss: ref_chosen_logps and ref_rejected_logps ... reference_free, got None"),
        (lambda: dpo_loss(X, X, X), ValueError, "dpo_loss: ... given unless reference_free, got None"),
        (lambda: dpo_loss(X, mx.zeros(3), X, X), ValueError,
         "dpo_loss: rejected_logps ... chosen_logps' shape (2,), got (3,)"),
        (lambda: dpo_loss(X, X, mx.zeros((2, 1)), X), ValueError,
         "dpo_loss: ref_chosen_logps ... chosen_logps' shape (2,), got (2, 1)"),
        (lambda: dpo_loss(X, X, X, X, beta=0), ValueError, "dpo_loss: beta ... 0, got 0"),
        (lambda: dpo_loss(X, X, X, X, label_smoothing=0.6), ValueError,
         "dpo_loss: label_smoothing ... 0.5, got 0.6"),
        (lambda: dpo_loss(X, X, X, X, label_smoothing=-0.1), ValueError,
         "dpo_loss: label_smoothing ... 0, got -0.1"),
        (lambda: dpo_loss(X, X, X, X, label_smoothing=0.1, loss_type="ipo"), ValueError,
         "dpo_loss: label_smoothing ... 0 for loss_type 'ipo', got 0.1"),
        (lambda: dpo_loss(X, X, X, X, loss_type="kto"), ValueError,
         "dpo_loss: loss_type ... sigmoid, hinge, ipo, got 'kto'"),
        (lambda: dpo_loss(X, X, X, X, weights=mx.ones(3)), ValueError,
         "dpo_loss: weights ... broadcast ... chosen_logps' (2,), got (3,)"),
        (lambda: dpo_loss(X.astype(mx.int32), X, X, X), TypeError,
         "dpo_loss: chosen_logps ... floating, got mlx.core.int32"),
        (lambda: cpo_loss(X, X, cpo_alpha=-1), ValueError, "cpo_loss: cpo_alpha ... 0, got -1"),
        (lambda: cpo_loss(X, X, chosen_nll=mx.zeros(1)), ValueError,
         "cpo_loss: chosen_nll ... (2,), got (1,)"),
        (lambda: simpo_loss(X, X, gamma=-1), ValueError, "simpo_loss: gamma ... 0, got -1"),
        (lambda: orpo_loss(X, X, beta=0.0), ValueError, "orpo_loss: beta ... 0, got 0.0"),
        (lambda: kto_loss(X, X, mx.zeros(3)), ValueError,
         "kto_loss: desirable ... logps' shape (2,), got (3,)"),
        (lambda: kto_loss(X, X, X, kl=mx.zeros(0)), ValueError,
         "kto_loss: kl ... one number, got shape (0,)"),
        (lambda: kto_loss(X, X, X, desirable_weight=-1), ValueError,
         "kto_loss: desirable_weight ... 0, got -1"),
        (lambda: kto_loss(X, X, X, beta=float("nan")), ValueError, "kto_loss: beta ... finite, got nan"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(function, error, message):
    with pytest.raises(error, match=parts(message)):
        function()
