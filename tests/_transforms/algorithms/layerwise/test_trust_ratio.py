"""scale_by_trust_ratio: steps in proportion to the parameters, computed by hand."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import lars
from purestep.transforms import scale_by_trust_ratio
from tests.refusals import parts

NAN = float("nan")


def only(transform, updates, params):
    return transform.update({"w": updates}, transform.init({"w": params}), {"w": params})[0]["w"]


def test_each_array_takes_the_norm_of_its_own_parameters():
    params = {"a": mx.array([3.0, 4.0]), "b": mx.array([[0.5]])}
    updates = {"a": mx.array([0.0, 0.1]), "b": mx.array([[-7.0]])}
    got, _ = scale_by_trust_ratio(trust_coefficient=0.1).update(updates, (), params)
    np.testing.assert_allclose(got["a"], [0.0, 0.5], 1e-6)
    np.testing.assert_allclose(got["b"], [[-0.05]], 1e-6)


def test_where_a_norm_is_zero_the_ratio_is_one():
    for eps in (0.0, 1e-3):
        transform = scale_by_trust_ratio(trust_coefficient=0.1, eps=eps)
        assert mx.array_equal(only(transform, mx.array([2.0]), mx.zeros(1)), mx.array([2.0]))
        assert mx.array_equal(only(transform, mx.zeros(2), mx.ones(2)), mx.zeros(2))
        assert only(transform, mx.zeros((0, 3)), mx.zeros((0, 3))).shape == (0, 3)
        assert only(transform, mx.array(2.0), mx.array(0.0)).item() == 2.0


def test_norms_below_the_least_are_taken_for_it():
    got = only(scale_by_trust_ratio(min_norm=0.5), mx.array([2.0, 0.0]), mx.zeros(2))
    np.testing.assert_allclose(got, [0.5, 0.0])
    got = only(scale_by_trust_ratio(min_norm=0.5), mx.array([0.1, 0.0]), mx.array([0.0, 2.0]))
    np.testing.assert_allclose(got, [0.4, 0.0], 1e-6)


def test_norms_and_updates_are_float32_and_no_square_overflows():
    wide = mx.full(16, 1000.0, mx.float16)
    got = only(scale_by_trust_ratio(), mx.full(16, 1e-4, mx.float16), wide)
    assert got.dtype == mx.float32
    np.testing.assert_allclose(
        only(scale_by_trust_ratio(), mx.full(16, 1e-4, mx.float16), wide), 1000.0, 1e-6
    )


def test_lars_leaves_unselected_parameters_without_decay_and_ratio():
    params = {"w": mx.array([[3.0, 4.0]]), "b": mx.array([3.0, 4.0])}
    gradients = {"w": mx.array([[1.0, 0.0]]), "b": mx.array([1.0, 0.0])}
    only_w = {"w": True, "b": False}
    transform = lars(0.1, 1.0, only_w, trust_ratio_mask=only_w)
    got, _ = transform.update(gradients, transform.init(params), params)
    np.testing.assert_allclose(got["b"], [-0.1, 0.0], 1e-6)
    decayed = np.array([4.0, 4.0])
    np.testing.assert_allclose(got["w"][0], -0.1 * 0.001 * 5 / np.linalg.norm(decayed) * decayed, 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_trust_ratio(-1.0), "scale_by_trust_ratio: min_norm ... 0, got -1.0"),
        (
            lambda: scale_by_trust_ratio(0.0, NAN),
            "scale_by_trust_ratio: trust_coefficient ... finite, got nan",
        ),
        (lambda: scale_by_trust_ratio(eps=-1.0), "scale_by_trust_ratio: eps ... 0, got -1.0"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()


def test_params_are_needed():
    with pytest.raises(ValueError, match="scale_by_trust_ratio: params .*update"):
        scale_by_trust_ratio().update({"w": mx.ones(2)}, ())
