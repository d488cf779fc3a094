"""REINFORCE against its formula in float64."""

import mlx.core as mx
import pytest

from purestep.losses import reinforce_loss
from tests._losses.policy.sampled import INPUTS, assert_recorded, poisoned


def test_reinforce_is_the_formula_in_float64():
    arguments = mx.array(INPUTS["advantages"]), mx.array(INPUTS["mask"])
    value, gradient = mx.value_and_grad(lambda x: reinforce_loss(x, *arguments).value)(poisoned("logps"))
    assert_recorded("reinforce", value, gradient)
    assert reinforce_loss(poisoned("logps"), *arguments).weight.item() == 7
    cut = reinforce_loss(poisoned("logps"), *arguments, truncated=mx.ones(8))
    assert (cut.total.item(), cut.weight.item()) == (0, 0)


def test_one_advantage_is_needed_for_each_row():
    with pytest.raises(ValueError, match=r"^reinforce_loss: advantages .* \(2,\), .* got \(3,\)"):
        reinforce_loss(mx.zeros((2, 3)), mx.zeros(3), mx.ones((2, 3)))
