"""centralize and normalize_by_update_norm, computed by hand."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.transforms import centralize, normalize_by_update_norm
from tests.refusals import parts


def test_a_unit_is_centered_over_its_inputs():
    updates = {"w": mx.array([[1.0, 3.0], [10.0, 30.0]]), "b": mx.array([1.0, 3.0]), "s": mx.array(2.0)}
    got, _ = centralize().update(updates, ())
    assert mx.array_equal(got["w"], mx.array([[-1.0, 1.0], [-10.0, 10.0]]))
    assert mx.array_equal(got["b"], updates["b"])
    assert mx.array_equal(got["s"], updates["s"])
    filters = mx.random.normal((2, 3, 3, 4), key=mx.random.key(0))
    centered = centralize().update({"w": filters}, ())[0]["w"]
    np.testing.assert_allclose(centered.sum(axis=(1, 2, 3)), 0, atol=1e-5)


def test_a_mean_is_taken_in_float32_and_dtypes_are_unchanged():
    updates = {"w": mx.full((1, 3000), 40.0, mx.float16), "e": mx.zeros((2, 0))}  # the sum is beyond float16
    got, _ = centralize().update(updates, ())
    assert mx.array_equal(got["w"], mx.zeros((1, 3000), mx.float16))
    assert got["w"].dtype == mx.float16
    assert got["e"].shape == (2, 0)


def test_all_updates_together_take_one_norm():
    updates = {"a": mx.array([3.0, 0.0]), "b": mx.array(4.0, mx.float16)}
    got, _ = normalize_by_update_norm(2.0).update(updates, ())
    assert ps.tree.norm(got).item() == pytest.approx(2.0, rel=1e-3)
    assert got["b"].dtype == mx.float16
    assert mx.array_equal(normalize_by_update_norm().update({"a": mx.zeros(2)}, ())[0]["a"], mx.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: normalize_by_update_norm(-1.0), "normalize_by_update_norm: scale_factor ... 0, got -1.0"),
        (lambda: normalize_by_update_norm(eps=-1.0), "normalize_by_update_norm: eps ... 0, got -1.0"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
