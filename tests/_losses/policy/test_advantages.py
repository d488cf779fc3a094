"""Advantages against the published formulas in float64, and bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import generalized_advantages, group_advantages, leave_one_out_advantages
from tests._losses.policy.sampled import ATOL, INPUTS, RECORD, RTOL, poisoned
from tests.refusals import parts

MASK = mx.array(INPUTS["mask"])


def test_advantages_are_those_of_their_own_group():
    rewards = mx.array(INPUTS["rewards"])
    np.testing.assert_allclose(group_advantages(rewards, 4), RECORD["advantages/group"], RTOL, ATOL)
    unscaled = group_advantages(rewards, 4, scale_rewards=False)
    np.testing.assert_allclose(unscaled, RECORD["advantages/unscaled"], RTOL, ATOL)
    left_out = leave_one_out_advantages(rewards, 4)
    np.testing.assert_allclose(left_out, RECORD["advantages/leave_one_out"], RTOL, ATOL)


@pytest.mark.parametrize("reward", [0.1, 1e4 / 3, -7e-5, 0.0])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(reward):
    rewards = mx.array([reward] * 3 + [0.0, 1.0, 2.0])
    for advantages in (
        group_advantages(rewards, 3),
        group_advantages(rewards, 3, scale_rewards=False),
        leave_one_out_advantages(rewards, 3),
    ):
        assert advantages[:3].tolist() == [0, 0, 0]
        assert (advantages[3].item() < 0, advantages[5].item() > 0) == (True, True)


@pytest.mark.parametrize("size", [1e15, 1e20, 1.6e38])
def test_huge_rewards_have_the_advantages_of_float64(size):
    rewards = np.array([1, 1, 1, 1, 1, 1, 1, -1, 0.5, 0, 0, 0, 0, 0, 0, 0.25]) * size
    groups = np.float32(rewards).astype(np.float64).reshape(2, 8)
    centered = groups - groups.mean(axis=1, keepdims=True)
    scaled = centered / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(group_advantages(mx.array(rewards), 8), scaled.reshape(-1), RTOL)
    left_out = leave_one_out_advantages(mx.array(rewards), 8)
    np.testing.assert_allclose(left_out, (centered * (8 / 7)).reshape(-1), RTOL)


def test_integer_rewards_are_taken():
    assert group_advantages(mx.array([0, 2]), 2, scale_rewards=False).tolist() == [-1, 1]


@pytest.mark.parametrize("compiled", [False, True])
def test_advantages_are_those_of_the_recursion(compiled):
    function = lambda r, v: generalized_advantages(r, v, MASK, gamma=0.97, lam=0.9)  # noqa: E731
    function = mx.compile(function) if compiled else function
    advantages, returns = function(poisoned("token_rewards"), poisoned("values"))
    np.testing.assert_allclose(advantages, RECORD["gae/advantages"], RTOL, ATOL)
    np.testing.assert_allclose(returns, RECORD["gae/returns"], RTOL, ATOL)


def test_a_long_undiscounted_completion_is_summed_to_its_end():
    rewards = mx.zeros((1, 1000))
    rewards[0, 999] = 1.0
    advantages, returns = generalized_advantages(rewards, mx.zeros((1, 1000)), mx.ones((1, 1000)), lam=1.0)
    np.testing.assert_allclose(advantages, np.ones((1, 1000)), RTOL)
    np.testing.assert_allclose(returns, np.ones((1, 1000)), RTOL)


def test_advantages_are_constants():
    rewards, values = mx.array(INPUTS["token_rewards"]), mx.array(INPUTS["values"])
    gradient = mx.grad(lambda v: sum(part.sum() for part in generalized_advantages(rewards, v, MASK)))(values)
    assert mx.all(gradient == 0).item()


ONES = mx.ones((2, 3))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: group_advantages(mx.zeros(7), 4), ValueError,
         "group_advantages: rewards ... [n] ... multiple of group_size 4, got (7,)"),
        (lambda: group_advantages(mx.zeros((2, 4)), 4), ValueError,
         "group_advantages: rewards ... [n] ... (2, 4)"),
        (lambda: group_advantages(mx.zeros(0), 4), ValueError,
         "group_advantages: rewards ... [n] ... (0,)"),
        (lambda: group_advantages(mx.zeros(4), 1), ValueError, "group_advantages: group_size ... 2, got 1"),
        (lambda: group_advantages(mx.zeros(4), 2, eps=0), ValueError, "group_advantages: eps ... 0, got 0"),
        (lambda: group_advantages([1.0, 2.0], 2), TypeError, "group_advantages: rewards ... array, got list"),
        (lambda: leave_one_out_advantages(mx.zeros(5), 2), ValueError,
         "leave_one_out_advantages: rewards ... [n] ... multiple of group_size 2, got (5,)"),
        (lambda: generalized_advantages(ONES, ONES, ONES, gamma=1.1), ValueError,
         "generalized_advantages: gamma ... 1, got 1.1"),
        (lambda: generalized_advantages(ONES, ONES, ONES, lam=-0.1), ValueError,
         "generalized_advantages: lam ... 0, got -0.1"),
        (lambda: generalized_advantages(mx.ones(2), ONES, ONES), ValueError,
         "generalized_advantages: rewards ... values' shape (2, 3), got (2,)"),
        (lambda: generalized_advantages(mx.ones(2), mx.ones(2), mx.ones(2)), ValueError,
         "generalized_advantages: values ... [n, length - 1], got (2,)"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(function, error, message):
    with pytest.raises(error, match=parts(message)):
        function()
