"""The effective rank against numpy's singular values."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.metrics import effective_rank


def by_svd(matrix):
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return np.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (1, 5), (12, 12)])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_rank_is_that_of_numpys_singular_values(shape, scale):
    matrix = np.random.default_rng(0).normal(size=shape) * np.linspace(0.1, 1, shape[1])
    found = effective_rank(mx.array((matrix * scale).astype(np.float32))).item()
    assert found == pytest.approx(by_svd(matrix), rel=1e-3)


def test_a_matrix_of_rank_one_has_one_and_of_zeros_has_none():
    outer = np.outer(np.linspace(-1, 1, 50), np.linspace(1, 2, 20)).astype(np.float32)
    assert effective_rank(mx.array(outer)).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(mx.zeros((3, 4))).item() == 0.0
    assert effective_rank(mx.eye(7).astype(mx.bfloat16)).item() == pytest.approx(7.0, rel=1e-5)


@pytest.mark.parametrize("broken", [mx.nan, mx.inf, -mx.inf])
def test_a_broken_matrix_has_nan(broken):
    assert mx.isnan(effective_rank(mx.array([[1.0, broken], [0.0, 1.0]]))).item()


def test_axes_but_the_last_are_joined():
    x = mx.random.normal((2, 3, 5), key=mx.random.key(0))
    assert effective_rank(x).item() == pytest.approx(effective_rank(x.reshape(6, 5)).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [mx.zeros(3), mx.zeros((0, 3)), mx.zeros((2, 2), mx.int32), [[1.0]]])
def test_what_is_no_matrix_is_refused(bad):
    with pytest.raises((ValueError, TypeError), match="effective_rank: matrix must"):
        effective_rank(bad)
