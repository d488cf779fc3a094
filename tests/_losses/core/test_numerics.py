"""Logarithms and selections that stay finite and keep their digits."""

import math

import mlx.core as mx
import numpy as np

from purestep._losses.core import numerics


def test_log_probabilities_of_large_logits_keep_their_digits():
    logs = numerics.log_softmax(mx.array([[1e4, 1e4 - 1.0]]))
    likely = math.log1p(math.exp(-1))
    np.testing.assert_allclose(logs, [[-likely, -1 - likely]], 1e-6)


def test_a_logsumexp_of_log_zeros_has_a_gradient_and_an_empty_batch_stays_empty():
    zeros = mx.full((2,), numerics.LOG_ZERO)
    assert mx.isfinite(mx.grad(lambda x: numerics.logsumexp(x))(zeros)).all().item()
    assert numerics.logsumexp(mx.zeros((0, 3))).shape == (0,)
    assert numerics.logsumexp(mx.zeros((0, 3)), keepdims=True).shape == (0, 1)


def test_infinite_logs_of_zero_targets_are_replaced():
    found = numerics.finite_where_zero(mx.array([0.0, 0.0, 1.0]), mx.array([-mx.inf, -2.0, -mx.inf]))
    assert found.tolist() == [0, -2, -math.inf]


def test_softplus_does_not_overflow():
    assert numerics.softplus(mx.array([-1e4, 0.0, 1e4])).tolist() == [0, float(np.float32(np.log(2))), 1e4]
