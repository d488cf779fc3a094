"""Negative log-likelihoods against torch, recorded in float64."""

import math

import mlx.core as mx
import numpy as np
import pytest

from purestep.losses import gaussian_nll_loss, nll_loss
from tests._losses.recorded import cases, check_contract, compare
from tests.refusals import parts


@pytest.mark.parametrize("case", cases("gaussian_nll_loss", "gaussian_nll_loss_full"))
def test_the_gaussian_is_that_of_torch(case):
    compare(case, gaussian_nll_loss, full="full" in case)


@pytest.mark.parametrize("case", cases("nll_loss"))
def test_log_probabilities_are_read_as_torch_reads_them(case):
    compare(case, nll_loss)


def test_the_contract_of_every_loss_holds():
    first, second = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    check_contract(gaussian_nll_loss, first, second, mx.square(second) + 0.1)
    check_contract(nll_loss, first, mx.array([0, 1, 2, 2, 1, 0]))


def test_a_variance_below_eps_counts_as_eps_and_a_negative_one_makes_nan():
    loss = gaussian_nll_loss(mx.zeros(1), mx.zeros(1), mx.zeros(1), eps=1e-4)
    assert loss.value.item() == pytest.approx(0.5 * math.log(1e-4))
    slope = mx.grad(lambda v: gaussian_nll_loss(mx.zeros(2), mx.ones(2), v).value)(mx.array([-1.0, 0.0]))
    np.testing.assert_array_equal(slope, [np.nan, 0])
    assert math.isnan(gaussian_nll_loss(mx.zeros(1), mx.zeros(1), mx.array([-1.0])).value.item())


def test_ignored_targets_are_left_out_and_others_out_of_range_make_nan():
    inputs = mx.array([[-1.0, -2.0], [mx.nan, mx.nan]])
    loss = nll_loss(inputs, mx.array([1, -100]), ignore_index=-100)
    assert (loss.total.item(), loss.weight.item()) == (2, 1)
    loss = nll_loss(inputs, mx.array([1, -100]), ignore_index=-100, weights=mx.array([3.0, mx.nan]))
    assert (loss.total.item(), loss.weight.item()) == (6, 3)
    value, slope = mx.value_and_grad(lambda x: nll_loss(x, mx.array([0, 2])).value)(mx.zeros((2, 2)))
    assert math.isnan(value.item())
    assert mx.isnan(slope[1]).any().item()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: nll_loss(mx.zeros((2, 3)), mx.zeros(2)),
            TypeError,
            "nll_loss: targets ... integers, got mlx.core.float32",
        ),
        (
            lambda: nll_loss(mx.zeros((2, 3)), mx.zeros((3,), mx.int32)),
            ValueError,
            "nll_loss: targets ... inputs' shape ... (3,) and (2, 3)",
        ),
        (
            lambda: nll_loss(mx.zeros((2, 3)), mx.zeros((2,), mx.int32), ignore_index=0.5),
            TypeError,
            "nll_loss: ignore_index ... integer, got 0.5",
        ),
        (
            lambda: gaussian_nll_loss(mx.zeros(2), mx.zeros(2), mx.zeros(3)),
            ValueError,
            "gaussian_nll_loss: variances ... predictions' shape (2,), got (3,)",
        ),
        (
            lambda: gaussian_nll_loss(mx.zeros(2), mx.zeros(2), mx.zeros(2), eps=0),
            ValueError,
            "gaussian_nll_loss: eps ... 0, got 0",
        ),
    ],
)
def test_a_bad_argument_is_refused(call, error, message):
    with pytest.raises(error, match=parts(message)):
        call()
