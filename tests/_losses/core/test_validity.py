"""Factors that make losses of invalid data NaN."""

import mlx.core as mx
import numpy as np

from purestep._losses.core import validity


def test_invalid_data_make_the_loss_and_its_gradient_nan_unless_their_weight_is_zero():
    valid = mx.array([True, False, False])
    factor = validity.nan_unless(valid, mx.array([1.0, 2.0, 0.0]))
    np.testing.assert_array_equal(factor, [1, np.nan, 1])
    np.testing.assert_array_equal(validity.nan_unless(valid), [1, np.nan, np.nan])
    slope = mx.grad(lambda x: (x * factor).sum())(mx.ones(3))
    np.testing.assert_array_equal(slope, [1, np.nan, 1])


def test_distributions_may_be_rounded_but_not_negative():
    rows = mx.array([[0.5, 0.5], [0.5, 0.505], [0.5, 0.52], [1.5, -0.5]])
    np.testing.assert_array_equal(validity.distributions(rows, None), [1, 1, np.nan, np.nan])
    assert validity.inside(mx.array([0.0, 1.0, -0.1, mx.nan])).tolist() == [True, True, False, False]
