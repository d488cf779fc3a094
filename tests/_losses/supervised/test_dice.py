"""Dice losses against optax, recorded in float64."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import binary_dice_loss, dice_loss, multiclass_generalized_dice_loss
from tests._losses.recorded import cases, check_contract, compare

TVERSKY = {"alpha": 0.3, "beta": 0.7, "smooth": 0.1, "ignore_background": True}
KEY = mx.random.key(0)
ONE_HOT = mx.eye(3)[mx.random.randint(0, 3, (4, 5), key=KEY)]
LOGITS = mx.random.normal((4, 5, 3), key=KEY)


@pytest.mark.parametrize("case", cases("dice_loss"))
def test_dice_is_that_of_optax(case):
    options = {"apply_softmax": False} if case.endswith("probabilities") else {}
    compare(case, dice_loss, **(TVERSKY if case.endswith("tversky") else options))


@pytest.mark.parametrize("case", cases("binary_dice_loss"))
def test_dice_of_one_class_is_that_of_optax(case):
    compare(case, binary_dice_loss)


@pytest.mark.parametrize("case", cases("multiclass_generalized_dice_loss"))
def test_generalized_dice_is_that_of_optax(case):
    compare(case, multiclass_generalized_dice_loss, ignore_background="foreground" in case)


def test_the_contract_of_every_loss_holds():
    check_contract(dice_loss, LOGITS, ONE_HOT)
    check_contract(binary_dice_loss, LOGITS, ONE_HOT)


@pytest.mark.parametrize("loss", [dice_loss, multiclass_generalized_dice_loss])
def test_positions_masked_or_cut_off_are_the_same(loss):
    there = mx.array([1, 1, 1, 0, 0])
    poisoned = mx.where(there[:, None] == 1, LOGITS, mx.nan)
    value, slope = mx.value_and_grad(lambda x: loss(x, ONE_HOT, where=there).value)(poisoned)
    cut = loss(LOGITS[:, :3], ONE_HOT[:, :3])
    np.testing.assert_allclose(value, cut.value, 1e-5)
    np.testing.assert_array_equal(slope[:, 3:], np.zeros((4, 2, 3)))


@pytest.mark.parametrize("loss", [dice_loss, multiclass_generalized_dice_loss])
def test_an_example_without_positions_or_weight_weighs_nothing(loss):
    there = mx.array([[1], [0], [1], [1]])
    masked = loss(LOGITS, ONE_HOT, where=there)
    weighed = loss(LOGITS, ONE_HOT, weights=mx.array([1.0, 0.0, 1.0, 1.0]))
    rows = mx.array([0, 2, 3])
    others = loss(LOGITS[rows], ONE_HOT[rows])
    for mean in (masked, weighed):
        assert mean.weight.item() == 3
        np.testing.assert_allclose(mean.total, others.total, 1e-5)


def test_a_perfect_prediction_costs_nothing_and_an_absent_class_neither():
    sure = mx.where(ONE_HOT > 0, 1e4, -1e4)
    for smooth in (0.0, 1.0):
        value, slope = mx.value_and_grad(lambda x, s=smooth: dice_loss(x, ONE_HOT, smooth=s).value)(sure)
        assert value.item() == 0
        assert mx.isfinite(slope).all().item()
    nothing = mx.zeros((1, 2, 1))
    value = dice_loss(nothing, nothing, smooth=0.0, apply_softmax=False).value
    assert value.item() == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^dice_loss: predictions .* \[batch, ..., classes\], got \(3,\)"):
        dice_loss(mx.zeros(3), mx.zeros(3))
    with pytest.raises(ValueError, match=r"^dice_loss: class_weights .* shape \(3,\), got \(2,\)"):
        dice_loss(LOGITS, ONE_HOT, class_weights=mx.ones(2))
    with pytest.raises(TypeError, match="^dice_loss: class_weights .* array, got list"):
        dice_loss(LOGITS, ONE_HOT, class_weights=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="^dice_loss: smooth .* 0, got -1"):
        dice_loss(LOGITS, ONE_HOT, smooth=-1)
    with pytest.raises(ValueError, match="^dice_loss: alpha .* 0, got -1"):
        dice_loss(LOGITS, ONE_HOT, alpha=-1)
    with pytest.raises(
        ValueError, match=r"^dice_loss: where .* broadcast .* positions' \(4, 5\), got \(4, 5, 3\)"
    ):
        dice_loss(LOGITS, ONE_HOT, where=mx.ones((4, 5, 3)))
    with pytest.raises(ValueError, match=r"^dice_loss: weights .* broadcast .* examples' \(4,\), got \(5,\)"):
        dice_loss(LOGITS, ONE_HOT, weights=mx.ones(5))
    with pytest.raises(ValueError, match=r"^binary_dice_loss: targets .* predictions' shape .* got \(5, 3\)"):
        binary_dice_loss(LOGITS, ONE_HOT[0])
