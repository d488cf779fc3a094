"""GRPO and its variants against the published formulas in float64: merging, extremes, bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

import purestep
from purestep import Mean
from purestep._losses.policy.grpo import KL_ESTIMATORS, LEVELS, LOSS_TYPES
from purestep.losses import grpo_loss
from tests._losses.policy.sampled import ATOL, INPUTS, RECORD, RTOL, assert_recorded, poisoned
from tests._losses.recorded import check_nothing_counts
from tests.refusals import parts

FORMULA = {"beta": 0.3, "epsilon": 0.2, "epsilon_high": 0.28, "max_completion_length": 11}
BARE = {"epsilon": 0.2, "epsilon_high": 0.28}


def grpo(poison=True, rows=slice(None), logps=None, **options):
    """Return the loss and metrics of the recorded inputs."""
    read = poisoned if poison else lambda name: mx.array(INPUTS[name])
    if options.get("beta"):
        options["ref_logps"] = read("ref_logps")[rows]
    return grpo_loss(
        read("logps")[rows] if logps is None else logps,
        read("behavior_logps")[rows],
        mx.array(INPUTS["advantages"])[rows],
        mx.array(INPUTS["mask"])[rows],
        **options,
    )


def value_and_gradient(poison=True, **options):
    logps = poisoned("logps") if poison else mx.array(INPUTS["logps"])
    return mx.value_and_grad(lambda x: grpo(poison, logps=x, **options)[0].value)(logps)


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo_is_the_published_formula_in_float64(loss_type, level, kl):
    options = FORMULA | {"loss_type": loss_type, "importance_sampling_level": level, "kl_estimator": kl}
    value, gradient = value_and_gradient(**options)
    loss, metrics = grpo(**options)
    assert_recorded(f"grpo/{loss_type}/{level}/{kl}", value, gradient, loss.weight)
    assert set(metrics) == {"ratio", "clip_fraction", "kl"}
    for name, mean in metrics.items():
        assert mean.value.item() == pytest.approx(RECORD[f"metrics/{level}/{kl}/{name}"].item(), rel=RTOL)


def test_the_variations_are_the_published_formulas_in_float64():
    assert_recorded("grpo/bare", *value_and_gradient(**BARE))
    assert_recorded("grpo/delta", *value_and_gradient(loss_type="dapo", delta=1.35, **BARE))
    options = FORMULA | {"truncated": mx.array(INPUTS["truncated"])}
    assert_recorded("grpo/truncated", *value_and_gradient(**options), grpo(**options)[0].weight)
    assert_recorded(
        "grpo/truncated", *value_and_gradient(**options | {"truncated": options["truncated"] > 0})
    )


def test_every_recorded_policy_case_is_compared():
    compared = {f"grpo/{t}/{level}/{kl}" for t in LOSS_TYPES for level in LEVELS for kl in KL_ESTIMATORS}
    recorded = {key.rpartition("/")[0] for key in RECORD if key.startswith("grpo/")}
    assert recorded == compared | {"grpo/bare", "grpo/delta", "grpo/truncated"}


def test_the_defaults_are_trl_s_range_and_the_mean_over_completions_without_a_reference():
    loss, metrics = grpo()
    explicit, _ = grpo(epsilon=0.2, epsilon_high=0.2, loss_type="grpo", beta=0.0)
    assert (loss.value.item(), set(metrics)) == (explicit.value.item(), {"ratio", "clip_fraction"})


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_uneven_parts_merge_to_the_value_and_gradient_of_the_whole(loss_type, level):
    options = FORMULA | {"loss_type": loss_type, "importance_sampling_level": level}
    cuts = [slice(0, 1), slice(1, 6), slice(6, 8)]
    whole, metrics = grpo(**options)
    parts = [grpo(rows=cut, **options) for cut in cuts]
    merged = Mean.merge(*(loss for loss, _ in parts))
    assert merged.value.item() == pytest.approx(whole.value.item(), rel=RTOL)
    for name, mean in metrics.items():
        merged_metric = Mean.merge(*(part[name] for _, part in parts))
        assert merged_metric.value.item() == pytest.approx(mean.value.item(), rel=RTOL)
    logps = poisoned("logps")
    gradients = [
        mx.grad(lambda x, cut=cut: grpo(rows=cut, logps=x, **options)[0].total)(logps[cut]) for cut in cuts
    ]
    _, gradient = value_and_gradient(**options)
    np.testing.assert_allclose(merged.share(mx.concatenate(gradients)), gradient, RTOL, ATOL)


def test_microbatches_of_a_training_step_change_nothing():
    batch = {name: mx.array(INPUTS[name]) for name in ("logps", "behavior_logps", "advantages", "mask")}
    transform = purestep.optimizers.sgd(1.0)

    def loss_fn(params, batch, rng):
        logps = batch["logps"] * params["scale"] + params["shift"]
        return grpo_loss(
            logps, batch["behavior_logps"], batch["advantages"], batch["mask"], **FORMULA | {"beta": 0}
        )

    params = {"scale": mx.ones(7), "shift": mx.zeros(7)}
    stepped = [
        purestep.train_step(loss_fn, transform, microbatches=count)(
            purestep.TrainState.create(params, transform), batch
        )
        for count in (1, 4)
    ]
    for one, four in zip(
        *([*state.params.values(), *metrics.values()] for state, metrics in stepped), strict=True
    ):
        np.testing.assert_allclose(four, one, RTOL, ATOL)


def test_only_the_policy_has_a_gradient():
    arrays = [mx.array(INPUTS[n]) for n in ("behavior_logps", "advantages", "ref_logps")]
    logps, mask = mx.array(INPUTS["logps"]), mx.array(INPUTS["mask"])
    gradients = mx.grad(
        lambda old, adv, ref: grpo_loss(logps, old, adv, mask, ref_logps=ref, beta=0.3)[0].value,
        argnums=(0, 1, 2),
    )(*arrays)
    assert all(mx.all(gradient == 0).item() for gradient in gradients)


def test_on_policy_the_gradient_is_reinforce_s_over_tokens():
    logps, mask = mx.array(INPUTS["logps"]), mx.array(INPUTS["mask"])
    advantages = mx.array(INPUTS["advantages"])
    clipped = mx.grad(lambda x: grpo_loss(x, mx.stop_gradient(x), advantages, mask)[0].value)(logps)
    share = mask / mx.maximum(mask.sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(clipped, -advantages[:, None] * share / 7, RTOL, ATOL)


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_descending_the_divergence_leads_back_to_the_reference(kl):
    logps, ref = mx.array([[-1.0, -3.0]]), mx.array([[-2.0, -2.0]])
    ones = mx.ones((1, 2))
    options = {"ref_logps": ref, "beta": 1.0, "kl_estimator": kl}
    gradient = mx.grad(lambda x: grpo_loss(x, logps, mx.array([0.0]), ones, **options)[0].value)(logps)
    assert (gradient[0, 0].item() > 0, gradient[0, 1].item() < 0) == (True, True)


def test_all_estimators_agree_with_the_divergence_on_samples_of_the_policy():
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    draws = np.repeat(np.arange(3), [500, 300, 200])  # the expected counts of samples from the policy
    logps, ref = (mx.array(np.log(p)[draws][None]) for p in (policy, reference))
    exact = np.sum(policy * np.log(policy / reference))
    for kl, rtol in (("k1", 1e-4), ("k3", 1e-4), ("k2", 0.1)):
        _, metrics = grpo_loss(
            logps, logps, mx.array([1.0]), mx.ones(logps.shape), ref_logps=ref, kl_estimator=kl
        )
        assert metrics["kl"].value.item() == pytest.approx(exact, rel=rtol)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("how", ["mask", "truncated"])
def test_nothing_that_counts_gives_zero_weight_zero_value_and_zero_gradient(loss_type, level, how):
    nan = mx.full((2, 3), float("nan"))
    mask = mx.zeros((2, 3)) if how == "mask" else mx.ones((2, 3))
    options = FORMULA | {"loss_type": loss_type, "importance_sampling_level": level, "ref_logps": nan}
    if how == "truncated":
        options["truncated"] = mx.ones(2)
    check_nothing_counts(lambda x: grpo_loss(x, nan, mx.full(2, float("nan")), mask, **options), nan)


@pytest.mark.parametrize("level", LEVELS)
def test_ratios_that_overflow_are_clipped_without_a_trace(level):
    logps = mx.array([[1e4], [-1e4], [-1e4], [1e4], [0.0]])
    advantages = mx.array([1.0, -1.0, 2.0, 0.0, 1.0])
    options = {"importance_sampling_level": level, "loss_type": "bnpo"}

    def loss_of(x):
        return grpo_loss(x, mx.zeros((5, 1)), advantages, mx.ones((5, 1)), **options)[0].value

    value, gradient = mx.value_and_grad(loss_of)(logps)
    assert value.item() == pytest.approx((-1.2 + 0.8 - 0 - 0 - 1) / 5)
    np.testing.assert_allclose(gradient, [[0], [0], [0], [0], [-0.2]], RTOL)


def test_delta_bounds_what_the_clip_leaves_unbounded():
    def loss_of(x):
        loss, metrics = grpo_loss(x, mx.zeros((2, 1)), mx.array([-1.0, -1.0]), mx.ones((2, 1)), delta=4.0)
        return loss.total, metrics

    (total, metrics), gradient = mx.value_and_grad(loss_of)(mx.array([[1e4], [1.0]]))
    assert total.item() == pytest.approx(4 + np.e)
    assert metrics["clip_fraction"].value.item() == 0.5
    np.testing.assert_allclose(gradient, [[0], [np.e]], RTOL)


def test_compiled_mapped_and_narrow_inputs_agree():
    arrays = [mx.array(INPUTS[n]) for n in ("logps", "behavior_logps", "advantages", "mask")]
    want = grpo_loss(*arrays)[0].value
    np.testing.assert_allclose(mx.compile(lambda *x: grpo_loss(*x)[0].value)(*arrays), want, RTOL)
    mapped = mx.vmap(lambda *x: grpo_loss(*x)[0].value)(*(mx.stack([x, x]) for x in arrays))
    np.testing.assert_allclose(mapped, [want.item()] * 2, RTOL)
    narrow = [x.astype(mx.bfloat16) for x in arrays]
    wide = [x.astype(mx.float32) for x in narrow]
    assert grpo_loss(*narrow)[0].value.dtype == mx.float32
    assert grpo_loss(*narrow)[0].value.item() == grpo_loss(*wide)[0].value.item()


LOGPS, MASK, ADV = mx.zeros((2, 3)), mx.ones((2, 3)), mx.zeros(2)


def call(logps=LOGPS, behavior_logps=LOGPS, advantages=ADV, mask=MASK, **options):
    return lambda: grpo_loss(logps, behavior_logps, advantages, mask, **options)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (call(logps=mx.zeros(3)), ValueError, "grpo_loss: logps ... [n, length - 1], got (3,)"),
        (call(logps=mx.zeros((2, 3), mx.int32)), TypeError,
         "grpo_loss: logps ... floating, got mlx.core.int32"),
        (call(behavior_logps=mx.zeros((2, 2))), ValueError,
         "grpo_loss: behavior_logps ... logps' shape (2, 3), got (2, 2)"),
        (call(mask=mx.ones((2, 4))), ValueError, "completion_mask ... logps' shape (2, 3), got (2, 4)"),
        (call(advantages=mx.zeros((2, 3))), ValueError, "advantages ... shape (2,), ... (2, 3)"),
        (call(advantages=mx.zeros(3)), ValueError, "advantages ... shape (2,), ... (3,)"),
        (call(truncated=mx.zeros(3)), ValueError, "truncated ... shape (2,), got (3,)"),
        (call(truncated=[0, 1]), TypeError, "grpo_loss: truncated ... array, got list"),
        (call(ref_logps=mx.zeros((2, 1))), ValueError, "ref_logps ... logps' shape (2, 3), got (2, 1)"),
        (call(beta=0.1), ValueError, "ref_logps ... beta ... None ... beta 0.1"),
        (call(beta=mx.array(0.0)), ValueError, "ref_logps ... beta ... None ... beta 0.0"),
        (call(beta=-0.1), ValueError, "grpo_loss: beta ... 0, got -0.1"),
        (call(epsilon=0), ValueError, "epsilon ... 0, got 0"),
        (call(epsilon=1.5), ValueError, "epsilon ... 1, got 1.5"),
        (call(epsilon_high=-0.2), ValueError, "epsilon_high ... 0, got -0.2"),
        (call(delta=1.1), ValueError, "delta ... 1.2, got 1.1"),
        (call(loss_type="ppo"), ValueError, "loss_type ... grpo, bnpo, dr_grpo, dapo, got 'ppo'"),
        (call(importance_sampling_level="word"), ValueError,
         "importance_sampling_level ... token, sequence, got 'word'"),
        (call(kl_estimator="k4"), ValueError, "kl_estimator ... k1, k2, k3, got 'k4'"),
        (call(loss_type="dr_grpo"), ValueError, "max_completion_length ... given ... 'dr_grpo', got None"),
        (call(loss_type="dr_grpo", max_completion_length=0), ValueError,
         "max_completion_length ... 0, got 0"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(function, error, message):
    with pytest.raises(error, match=parts(message)):
        function()
