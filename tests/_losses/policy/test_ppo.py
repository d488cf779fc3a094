"""PPO against the published formulas in float64, and bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import ppo_loss
from tests._losses.policy.sampled import ATOL, INPUTS, RECORD, RTOL, poisoned
from tests.refusals import parts

MASK = mx.array(INPUTS["mask"])


def ppo(logps, values, **options):
    return ppo_loss(
        logps,
        poisoned("behavior_logps"),
        poisoned("token_advantages"),
        MASK,
        values=values,
        behavior_values=poisoned("behavior_values"),
        returns=poisoned("returns"),
        cliprange_value=0.5,
        vf_coef=0.7,
        **options,
    )


def test_policy_and_value_loss_are_the_formulas_in_float64():
    (value, metrics), (gradient, values_gradient) = mx.value_and_grad(
        lambda x, v: (lambda loss, metrics: (loss.value, metrics))(*ppo(x, v)),  # type: ignore
        argnums=(0, 1),
    )(poisoned("logps"), poisoned("values"))
    assert value.item() == pytest.approx(RECORD["ppo/value"].item(), rel=RTOL)
    np.testing.assert_allclose(gradient, RECORD["ppo/gradient"], RTOL, ATOL)
    np.testing.assert_allclose(values_gradient, RECORD["ppo/values_gradient"], RTOL, ATOL)
    assert metrics["value_loss"].value.item() == pytest.approx(RECORD["ppo/value_loss"].item(), rel=RTOL)
    clipped = RECORD["ppo/value_clip_fraction"].item()
    assert metrics["value_clip_fraction"].value.item() == pytest.approx(clipped, rel=RTOL)
    assert 0 < clipped < 1
    assert set(metrics) == {"ratio", "clip_fraction", "value_loss", "value_clip_fraction"}


def test_without_values_there_is_no_value_loss():
    arguments = poisoned("logps"), poisoned("behavior_logps"), poisoned("token_advantages"), MASK
    loss, metrics = ppo_loss(*arguments)
    both, more = ppo(poisoned("logps"), poisoned("values"))
    assert set(metrics) == {"ratio", "clip_fraction"}
    rest = both.value.item() - 0.7 * more["value_loss"].value.item()
    assert loss.value.item() == pytest.approx(rest, rel=RTOL)
    assert loss.weight.item() == INPUTS["mask"].sum()


def test_truncated_rows_and_empty_masks_weigh_nothing():
    loss, metrics = ppo(poisoned("logps"), poisoned("values"), truncated=mx.ones(8))
    assert (loss.total.item(), loss.weight.item()) == (0, 0)
    gradient = mx.grad(lambda x: ppo(x, poisoned("values"), truncated=mx.ones(8))[0].value)(poisoned("logps"))
    assert mx.all(gradient == 0).item()
    assert all(mean.value.item() == 0 for mean in metrics.values())


def test_a_value_within_its_bounds_keeps_its_gradient_to_the_last_bit():
    noise = np.random.default_rng(0).standard_normal((3, 4096)).astype(np.float32)
    values, returns = noise[:1], noise[1:2]
    before = values + np.float32(0.05) * np.tanh(noise[2:])
    zeros, ones = mx.zeros((1, 4096)), mx.ones((1, 4096))

    def loss(values):
        valued = {"values": values, "behavior_values": mx.array(before), "returns": mx.array(returns)}
        return ppo_loss(zeros, zeros, zeros, ones, **valued, vf_coef=1.0)

    gradient = mx.grad(lambda values: loss(values)[0].total)(mx.array(values))
    # Nothing is clipped, so this is the gradient of (value - return)^2 / 2.
    np.testing.assert_allclose(gradient, values.astype(np.float64) - returns, RTOL, ATOL)
    assert loss(mx.array(values))[1]["value_clip_fraction"].total.item() == 0


ONES = mx.ones((2, 3))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: ppo_loss(ONES, ONES, mx.ones(2), ONES), ValueError,
         "ppo_loss: advantages ... logps' shape (2, 3), got (2,)"),
        (lambda: ppo_loss(ONES, ONES, ONES, ONES, values=ONES), ValueError,
         "ppo_loss: values, behavior_values and returns ... together"),
        (lambda: ppo_loss(ONES, ONES, ONES, ONES, values=mx.ones(2), behavior_values=ONES, returns=ONES),
         ValueError, "ppo_loss: values ... logps' shape (2, 3), got (2,)"),
        (lambda: ppo_loss(ONES, ONES, ONES, ONES, cliprange=0), ValueError,
         "ppo_loss: cliprange ... 0, got 0"),
        (lambda: ppo_loss(ONES, ONES, ONES, ONES, cliprange_value=-1), ValueError,
         "ppo_loss: cliprange_value ... 0, got -1"),
        (lambda: ppo_loss(ONES, ONES, ONES, ONES, vf_coef=-1), ValueError, "ppo_loss: vf_coef ... 0, got -1"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(function, error, message):
    with pytest.raises(error, match=parts(message)):
        function()
