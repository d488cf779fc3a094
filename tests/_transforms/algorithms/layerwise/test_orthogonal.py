"""orthogonalize: singular values near 1 for every layout, dtype and preconditioning."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._transforms.algorithms.layerwise.orthogonal import matrix_sides
from purestep.transforms import MuonDimensionNumbers, orthogonalize
from tests.refusals import parts


def matrix(*shape, seed=0):
    """Return normal numbers."""
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def singular_values(x):
    """Return the singular values, largest first, in float64."""
    return np.linalg.svd(np.array(x, np.float64), compute_uv=False)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("preconditioning", ["frobenius", "schatten", "aol"])
def test_singular_values_end_near_one_and_singular_vectors_stay(shape, preconditioning):
    # "aol" scales each row differently, so it changes the vectors; the values are still near 1.
    x = matrix(*shape)
    near = orthogonalize(x, preconditioning=preconditioning)
    assert (near.shape, near.dtype) == (shape, mx.float32)
    assert np.all(np.abs(singular_values(near) - 1) < 0.35)
    if preconditioning != "aol":
        u, _, v = np.linalg.svd(np.array(x, np.float64), full_matrices=False)
        core = u.T @ np.array(near, np.float64) @ v.T
        np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-4)


def test_one_step_is_the_polynomial_of_the_singular_values():
    x = mx.diag(mx.array([3.0, 4.0]))  # of norm 5
    got = mx.diag(orthogonalize(x, ns_coeffs=(2.0, -1.5, 0.5), ns_steps=1, eps=0.0))
    want = [2.0 * s - 1.5 * s**3 + 0.5 * s**5 for s in (0.6, 0.8)]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_table_of_coefficients_is_gone_through_once_in_its_order():
    rows = ((2.0, -1.0, 0.0), (1.5, -0.5, 0.0))
    got = mx.diag(orthogonalize(mx.diag(mx.array([3.0, 4.0])), ns_coeffs=rows, ns_steps=9, eps=0.0))
    want = [1.5 * s - 0.5 * s**3 for s in (2.0 * v - v**3 for v in (0.6, 0.8))]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_many_steps_of_a_converging_polynomial_give_an_orthogonal_matrix():
    near = np.array(orthogonalize(matrix(5, 8), ns_coeffs=(1.875, -1.25, 0.375), ns_steps=20), np.float64)
    np.testing.assert_allclose(near @ near.T, np.eye(5), atol=1e-5)


def test_the_preset_of_dion_is_more_even_than_the_standard_one():
    x = matrix(8, 12)
    spread = {
        name: np.ptp(singular_values(orthogonalize(x, ns_coeffs=name))) for name in ("standard", "dion")
    }
    assert spread["dion"] < spread["standard"]


def test_transposing_before_or_after_is_the_same():
    x = matrix(4, 7)
    np.testing.assert_allclose(orthogonalize(x.T), orthogonalize(x).T, atol=1e-5)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e6])
def test_the_size_of_the_matrix_does_not_matter(size):
    np.testing.assert_allclose(orthogonalize(size * matrix(3, 4)), orthogonalize(matrix(3, 4)), atol=1e-3)


def test_zeros_stay_zeros():
    for preconditioning in ("frobenius", "schatten", "aol"):
        assert not orthogonalize(mx.zeros((2, 3)), preconditioning=preconditioning).any().item()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
def test_an_empty_matrix_stays_empty(shape):
    assert orthogonalize(mx.zeros(shape, mx.bfloat16)).shape == shape


def test_an_iteration_in_bfloat16_leads_near_the_one_in_float32():
    x = matrix(6, 10)
    rough = orthogonalize(x, ns_dtype=mx.bfloat16)
    assert rough.dtype == mx.float32
    assert 1e-5 < mx.abs(rough - orthogonalize(x)).max().item() < 0.2


def test_the_norm_of_a_float16_matrix_is_taken_in_float32():
    x = (1000 * matrix(3, 4)).astype(mx.float16)  # the squares overflow float16
    np.testing.assert_allclose(orthogonalize(x), orthogonalize(matrix(3, 4)), atol=0.02)


def test_a_convolution_is_taken_as_out_by_everything_else():
    x = matrix(4, 3, 3, 2)
    flat = orthogonalize(x.reshape(4, 18))
    np.testing.assert_allclose(orthogonalize(x), flat.reshape(4, 3, 3, 2), atol=1e-6)


def test_axes_left_over_count_matrices():
    x = matrix(2, 3, 5)
    together = orthogonalize(x, MuonDimensionNumbers(reduction_axis=2, output_axis=1))
    for index in range(2):
        np.testing.assert_allclose(together[index], orthogonalize(x[index]), atol=1e-5)


def test_axes_may_lie_in_any_order_and_count_from_the_end():
    x = matrix(5, 2, 3)  # [out, matrices, in]
    got = orthogonalize(x, MuonDimensionNumbers(reduction_axis=-1, output_axis=0))
    for index in range(2):
        np.testing.assert_allclose(got[:, index], orthogonalize(x[:, index]), atol=1e-5)
    wide = orthogonalize(x, MuonDimensionNumbers(reduction_axis=(0, 2), output_axis=(1,)))
    flat = orthogonalize(x.transpose(1, 0, 2).reshape(2, 15))
    np.testing.assert_allclose(wide, flat.reshape(2, 5, 3).transpose(1, 0, 2), atol=1e-5)


def test_leaves_are_chosen_by_their_axes_by_a_function_or_by_a_mask():
    params = {"w": mx.zeros((2, 3)), "conv": mx.zeros((2, 3, 3)), "b": mx.zeros(2), "none": None}

    def chosen(matrices):
        return [path for path, axes in matrix_sides("f", matrices, params).items() if axes]

    assert chosen(None) == ["w"]
    assert chosen(lambda path, leaf: leaf.ndim >= 2 and path != "w") == ["conv"]
    assert chosen({"w": False, "conv": True, "b": False, "none": None}) == ["conv"]
    assert chosen(lambda path, leaf: MuonDimensionNumbers() if path == "conv" else None) == ["conv"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: orthogonalize(x[0]),
            ValueError,
            "orthogonalize: a matrix ... 2 axes, got shape (3,) at x",
        ),
        (lambda x: orthogonalize(x, ns_steps=0), ValueError, "orthogonalize: ns_steps ... 1, got 0"),
        (lambda x: orthogonalize(x, ns_steps=2.0), TypeError, "orthogonalize: ns_steps ... integer, got 2.0"),
        (lambda x: orthogonalize(x, eps=-1.0), ValueError, "orthogonalize: eps ... 0, got -1.0"),
        (
            lambda x: orthogonalize(x, ns_coeffs="fast"),
            ValueError,
            "orthogonalize: ns_coeffs ... standard, dion, got 'fast'",
        ),
        (
            lambda x: orthogonalize(x, ns_coeffs=(1.0, 2.0)),
            ValueError,
            "orthogonalize: ns_coeffs ... three ... (1.0, 2.0)",
        ),
        (lambda x: orthogonalize(x, ns_coeffs=()), ValueError, "orthogonalize: ns_coeffs ... three ... ()"),
        (
            lambda x: orthogonalize(x, ns_coeffs=((1.0, 2.0),)),
            ValueError,
            "orthogonalize: ns_coeffs ... rows of three ... ((1.0, 2.0),)",
        ),
        (
            lambda x: orthogonalize(x, ns_coeffs=(1.0, 2.0, float("nan"))),
            ValueError,
            "orthogonalize: ns_coeffs ... finite, got nan",
        ),
        (
            lambda x: orthogonalize(x, preconditioning="spectral"),
            ValueError,
            "orthogonalize: preconditioning ... aol, schatten, got 'spectral'",
        ),
        (
            lambda x: orthogonalize(x, MuonDimensionNumbers(2, 0)),
            ValueError,
            "orthogonalize: axes ... exist in shape (2, 3)",
        ),
        (
            lambda x: orthogonalize(x, MuonDimensionNumbers(0, -2)),
            ValueError,
            "orthogonalize: ... no axis twice ... output_axis=-2) at x",
        ),
        (
            lambda x: orthogonalize(x, MuonDimensionNumbers((), 0)),
            ValueError,
            "orthogonalize: each side ... output_axis=0) at x",
        ),
        (lambda x: matrix_sides("f", {"a": True}, {"b": x}), ValueError, "f: b ... params, not in matrices"),
        (
            lambda x: matrix_sides("f", {"b": 1}, {"b": x}),
            ValueError,
            "f: matrices ... MuonDimensionNumbers, got 1 at b",
        ),
    ],
)
def test_a_bad_argument_is_refused(call, error, message):
    with pytest.raises(error, match=parts(message)):
        call(mx.ones((2, 3)))
