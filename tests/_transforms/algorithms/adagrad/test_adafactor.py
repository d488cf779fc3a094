"""scale_by_factored_rms: which arrays and axes are factored, and the values of the updates."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import tree
from purestep.transforms import scale_by_factored_rms
from tests.refusals import parts


def drawn(shape, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize(
    ("shape", "row", "col"),
    [
        ((128, 128), (128,), (128,)),
        ((128, 200), (128,), (200,)),
        ((200, 128), (128,), (200,)),
        ((127, 4000), None, None),
        ((128,), None, None),
        ((), None, None),
        ((0, 200), None, None),
        ((3, 130, 140), (3, 130), (3, 140)),
        ((140, 3, 130), (3, 130), (140, 3)),
    ],
)
def test_the_two_largest_axes_are_factored_when_both_have_128(shape, row, col):
    state = scale_by_factored_rms().init({"w": mx.zeros(shape)})
    assert state.v_row["w"].shape == (row or (0,))
    assert state.v_col["w"].shape == (col or (0,))
    assert state.v["w"].shape == ((0,) if row else shape)
    assert all(leaf.dtype == mx.float32 for leaf in tree.leaves(state[1:]))


def test_the_first_mean_square_is_the_product_of_its_margins():
    gradient = drawn((3, 4))
    transform = scale_by_factored_rms(min_dim_size_to_factor=2)
    updates, state = transform.update({"w": gradient}, transform.init({"w": gradient}))
    square = np.square(np.array(gradient, np.float64))
    row, col = square.mean(1), square.mean(0)
    np.testing.assert_allclose(state.v_row["w"], row, 1e-5)
    np.testing.assert_allclose(state.v_col["w"], col, 1e-5)
    np.testing.assert_allclose(
        updates["w"], np.array(gradient) / np.sqrt(np.outer(row, col) / row.mean()), 1e-5
    )


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_the_order_of_axes_does_not_matter(order):
    transform = scale_by_factored_rms(min_dim_size_to_factor=2)
    state, turned = transform.init({"w": mx.zeros((2, 3, 5))}), None
    for seed in range(3):
        gradient = drawn((2, 3, 5), seed)
        updates, state = transform.update({"w": gradient}, state)
        other = {"w": gradient.transpose(order)}
        turned = transform.init(other) if turned is None else turned
        got, turned = transform.update(other, turned)
        np.testing.assert_allclose(got["w"], updates["w"].transpose(order), 1e-5, 1e-6)


def test_squares_too_small_for_float32_products_do_not_vanish():
    transform = scale_by_factored_rms(min_dim_size_to_factor=2)
    gradient = mx.full((2, 3), 1e-16)
    updates, _ = transform.update({"w": gradient}, transform.init({"w": gradient}))
    np.testing.assert_allclose(updates["w"], 0.0995, 1e-2)  # epsilon is 100 times the square
    updates, _ = transform.update({"w": 0 * gradient}, transform.init({"w": gradient}))
    assert mx.array_equal(updates["w"], mx.zeros((2, 3)))


def test_the_decay_starts_at_zero_after_the_offset():
    transform = scale_by_factored_rms(step_offset=2)
    state = transform.init({"w": mx.zeros(1)})
    for gradient, kept in ((3.0, 9.0), (1.0, 1.0), (2.0, 4.0), (4.0, None)):
        _, state = transform.update({"w": mx.array([gradient])}, state)
        rate = 1 - 2**-0.8
        want = rate * 4 + (1 - rate) * 16 if kept is None else kept
        assert state.v["w"].item() == pytest.approx(want, rel=1e-5)


def test_half_precision_gradients_are_squared_in_float32():
    transform = scale_by_factored_rms()
    gradient = {"w": mx.array([300.0, 1e-4], mx.float16)}
    updates, _ = transform.update(gradient, transform.init(gradient))
    assert updates["w"].dtype == mx.float32
    np.testing.assert_allclose(updates["w"], [1.0, 1.0], 1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"decay_rate": 0.0}, ValueError, "scale_by_factored_rms: decay_rate ... 0, got 0.0"),
        ({"step_offset": float("nan")}, ValueError, "step_offset ... finite, got nan"),
        ({"min_dim_size_to_factor": 0}, ValueError, "min_dim_size_to_factor ... 1, got 0"),
        ({"min_dim_size_to_factor": 2.0}, TypeError, "min_dim_size_to_factor ... integer, got 2.0"),
        ({"epsilon": 0.0}, ValueError, "epsilon ... 0, got 0.0"),
        ({"decay_rate_fn": 0.9}, TypeError, "decay_rate_fn ... callable, got 0.9"),
    ],
)
def test_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=parts(message)):
        scale_by_factored_rms(**options)
