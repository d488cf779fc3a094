"""Bounds on elements, arrays and units, computed by hand."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.transforms import adaptive_grad_clip, clip, clip_by_block_rms, keep_params_nonnegative
from tests._transforms.walking import only
from tests.refusals import parts

NAN, INF = float("nan"), float("inf")


def test_clip_bounds_each_element_and_keeps_nan():
    got = only(clip(0.5), mx.array([-3.0, -0.2, 0.5, 7.0, NAN, INF]))
    assert mx.array_equal(got, mx.array([-0.5, -0.2, 0.5, 0.5, NAN, 0.5]), equal_nan=True)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
@pytest.mark.parametrize("bound", [0.5, mx.array(0.5)])
def test_clipping_keeps_dtypes(dtype, bound):
    gradient, param = mx.array([[4.0, 0.0], [0.0, 0.25]], dtype), mx.ones((2, 2), dtype)
    for make in (clip, clip_by_block_rms, adaptive_grad_clip):
        assert only(make(bound), gradient, param).dtype == dtype


def test_the_root_mean_square_of_each_array_is_bounded():
    updates = {"a": mx.array([3.0, 4.0]), "b": mx.array([0.3, 0.4]), "c": mx.array(-9.0)}
    got, _ = clip_by_block_rms(0.5).update(updates, ())
    np.testing.assert_allclose(got["a"], np.array([3.0, 4.0]) * 0.5 / np.sqrt(12.5), 1e-6)
    assert mx.array_equal(got["b"], updates["b"])
    assert got["c"].item() == pytest.approx(-0.5)


def test_a_mean_square_is_taken_in_float32():
    got = only(clip_by_block_rms(1.0), mx.full(8, 1000.0, mx.float16))  # its square is beyond float16
    assert mx.array_equal(got, mx.ones(8, mx.float16))


@pytest.mark.parametrize("make", [clip_by_block_rms, adaptive_grad_clip])
def test_zeros_and_empty_arrays_are_unchanged_and_infinity_gives_nan(make):
    for shape in ((), (3,), (0,), (2, 0, 3)):
        got = only(make(0.5), mx.zeros(shape), mx.zeros(shape))
        assert mx.array_equal(got, mx.zeros(shape))
    assert mx.all(mx.isnan(only(make(0.5), mx.array([1.0, INF]), mx.ones(2)))).item()
    assert mx.all(mx.isnan(only(make(0.5), mx.array([1e30, 1e30]), mx.ones(2)))).item()


def test_units_are_rows_of_weights_that_are_out_by_in():
    weights = mx.array([[3.0, 4.0], [0.0, 0.0]])
    gradient = mx.array([[3.0, 4.0], [3.0, 4.0]])
    got = only(adaptive_grad_clip(0.1, eps=0.01), gradient, weights)
    # The norm of the first row is 5, so its bound is 0.5; the second row's norm is replaced by eps.
    np.testing.assert_allclose(got, [[0.3, 0.4], [0.0006, 0.0008]], 1e-5)


def test_a_gradient_within_its_bound_passes_to_the_bit():
    gradient = mx.array([[0.1, 0.2], [0.3, 0.1]])
    assert mx.array_equal(only(adaptive_grad_clip(1.0), gradient, mx.ones((2, 2))), gradient)


def test_a_convolution_has_one_unit_for_each_output():
    weights, gradient = mx.ones((2, 3, 3, 4)), mx.concatenate([mx.ones((1, 3, 3, 4)), mx.zeros((1, 3, 3, 4))])
    got = only(adaptive_grad_clip(0.25), gradient, weights)
    assert mx.allclose(got[0], mx.full((3, 3, 4), 0.25))
    assert mx.array_equal(got[1], mx.zeros((3, 3, 4)))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (1, 4, 1)])
def test_an_array_with_one_long_axis_is_one_unit(shape):
    got = only(adaptive_grad_clip(0.5), mx.array([0.0, 8.0, 0.0, 0.0]).reshape(shape), mx.ones(shape))
    assert mx.allclose(got.reshape(-1), mx.array([0.0, 1.0, 0.0, 0.0]))


def test_axes_may_be_chosen():
    weights, gradient = mx.array([[3.0, 0.0], [4.0, 1.0]]), mx.array([[30.0, 0.0], [40.0, 0.1]])
    for axis in (0, (0,), -2):
        got = only(adaptive_grad_clip(0.1, axis=axis), gradient, weights)
        np.testing.assert_allclose(got, [[0.3, 0.0], [0.4, 0.1]], 1e-5)
    with pytest.raises(ValueError, match=parts("adaptive_grad_clip: axis ... axes, got 1 ... (3,)")):
        only(adaptive_grad_clip(0.1, axis=1), mx.ones(3), mx.ones(3))


def test_parameters_stop_at_zero_and_negative_ones_return_to_it():
    params = {"w": mx.array([1.0, 1.0, 1.0, -1.0, 0.0])}
    updates = {"w": mx.array([-0.5, -1.0, -2.0, 0.5, -1.0])}
    got, _ = keep_params_nonnegative().update(updates, (), params)
    assert mx.array_equal(ps.apply_updates(params, got)["w"], mx.array([0.5, 0.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_no_rounding_leads_below_zero(dtype):
    params = {"w": mx.array([0.1, 0.7, 1e-3, 123.456]).astype(dtype)}
    for of_update in (mx.float32, mx.bfloat16, mx.float16):
        updates = {"w": mx.full(4, -200.0, of_update)}
        got, _ = keep_params_nonnegative().update(updates, (), params)
        assert mx.array_equal(ps.apply_updates(params, got)["w"], mx.zeros(4, dtype))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: clip(0.0), ValueError, "clip: max_delta ... 0, got 0.0"),
        (lambda: clip(NAN), ValueError, "clip: max_delta ... finite, got nan"),
        (lambda: clip_by_block_rms(-1.0), ValueError, "clip_by_block_rms: threshold ... 0, got -1.0"),
        (lambda: adaptive_grad_clip(0.0), ValueError, "adaptive_grad_clip: clipping ... 0, got 0.0"),
        (lambda: adaptive_grad_clip(0.1, eps=0.0), ValueError, "adaptive_grad_clip: eps ... 0, got 0.0"),
        (
            lambda: adaptive_grad_clip(0.1, axis=(0, 1.5)),
            TypeError,
            "adaptive_grad_clip: axis ... integer, got 1.5",
        ),
    ],
)
def test_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=parts(message)):
        make()


@pytest.mark.parametrize("make", [lambda: adaptive_grad_clip(0.1), keep_params_nonnegative])
def test_params_are_needed_and_shaped_like_updates(make):
    with pytest.raises(ValueError, match=": params .*update"):
        make().update({"w": mx.ones(2)}, ())
    with pytest.raises(ValueError, match=parts(": a.w ... (2,) in updates, (3,) in params")):
        make().update({"a": {"w": mx.ones(2)}}, (), {"a": {"w": mx.ones(3)}})
