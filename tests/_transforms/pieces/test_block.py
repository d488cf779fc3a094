"""Updates scaled by the size of their parameters, computed by hand."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.transforms import scale_by_param_block_norm, scale_by_param_block_rms, step_on_sphere
from tests._transforms.walking import only
from tests.refusals import parts

NAN = float("nan")


def test_updates_follow_the_norm_or_the_root_mean_square():
    params, updates = mx.array([3.0, 4.0]), mx.array([1.0, -1.0])
    np.testing.assert_allclose(only(scale_by_param_block_norm(), updates, params), [5.0, -5.0], 1e-6)
    root = np.sqrt(12.5)
    np.testing.assert_allclose(only(scale_by_param_block_rms(), updates, params), [root, -root], 1e-6)
    for make in (scale_by_param_block_norm, scale_by_param_block_rms):
        np.testing.assert_allclose(only(make(0.25), updates, mx.zeros(2)), [0.25, -0.25])
        assert only(make(), mx.zeros((2, 0)), mx.zeros((2, 0))).shape == (2, 0)


def test_an_orthogonal_step_keeps_the_norm():
    for rate in (1e-4, 0.1, 1.0):
        params = mx.array([3.0, 4.0])
        got = params + only(step_on_sphere(rate), mx.array([-4.0, 3.0]), params)
        assert mx.linalg.norm(got).item() == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize("make", [scale_by_param_block_norm, scale_by_param_block_rms])
def test_updates_are_float32_and_no_square_overflows(make):
    got = only(make(), mx.full(16, 1e-4, mx.float16), mx.full(16, 1000.0, mx.float16))
    assert got.dtype == mx.float32
    assert mx.all(mx.isfinite(got)).item()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_param_block_norm(-1.0), "scale_by_param_block_norm: min_scale ... 0, got -1.0"),
        (lambda: scale_by_param_block_rms(NAN), "scale_by_param_block_rms: min_scale ... finite, got nan"),
        (lambda: step_on_sphere(-1.0), "learning_rate ... 0, got -1.0"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()


@pytest.mark.parametrize(
    "transform", [scale_by_param_block_norm(), scale_by_param_block_rms(), step_on_sphere(0.1)]
)
def test_params_are_needed(transform):
    with pytest.raises(ValueError, match=": params .*update"):
        transform.update({"w": mx.ones(2)}, transform.init({"w": mx.ones(2)}))
