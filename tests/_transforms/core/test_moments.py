"""Running means: in float32 whatever is given, and corrected for their start."""

import mlx.core as mx
import pytest

from purestep import optimizers
from purestep._transforms.core import moments


def test_a_mean_stored_in_half_precision_decays_in_float32():
    stored = mx.array(0.1, mx.bfloat16)
    got = moments.mean({"w": mx.array(0.0)}, {"w": stored}, 0.9)["w"]
    assert got.dtype == mx.float32
    assert got.item() == pytest.approx(0.9 * stored.item(), rel=1e-6)


def test_a_mean_square_of_equal_gradients_is_corrected_to_their_square():
    nu = {"w": mx.array(0.0)}
    for count in range(1, 5):
        nu = moments.mean_square({"w": mx.array(3.0)}, nu, 0.999)
        assert moments.corrected(nu, 0.999, mx.array(count))["w"].item() == pytest.approx(9, rel=1e-5)


def test_looking_ahead_is_momentum_one_step_later():
    mu, gradient = {"w": mx.array(0.25)}, {"w": mx.array(2.0)}
    got = moments.looking_ahead(mu, gradient, 0.5, mx.array(1))["w"].item()
    assert got == pytest.approx(0.5 * 0.25 / (1 - 0.5**2) + 0.5 * 2 / (1 - 0.5), rel=1e-6)


def test_only_a_dtype_asked_for_is_stored():
    mean = {"w": mx.array(1.0)}
    assert moments.stored(mean, None) is mean
    assert moments.stored(mean, mx.float16)["w"].dtype == mx.float16


def test_the_root_takes_its_eps_inside():
    assert moments.root(mx.array(4.0), 0.0).item() == 2
    assert moments.root(mx.array(4.0), 5.0).item() == 3
    assert moments.root(mx.array(4.0), mx.array(5.0)).item() == 3


def test_full_like_is_float32_and_takes_an_array():
    full = moments.full_like({"w": mx.zeros((2, 0), mx.float16), "b": mx.zeros(2)}, mx.array(0.5))
    assert (full["w"].shape, full["w"].dtype) == ((2, 0), mx.float32)
    assert full["b"].tolist() == [0.5, 0.5]


def test_bias_correction_is_one_less_the_power():
    for decay, count in [(0.9, 1), (0.9, 7), (0.5, 3), (0.0, 4)]:
        assert moments.bias_correction(decay, mx.array(count)).item() == pytest.approx(
            1 - decay**count, rel=1e-6
        )


@pytest.mark.parametrize("eps", [0.0, 1e-44, 1e-38, 1e-8])
def test_elements_without_a_gradient_do_not_move_for_any_epsilon(eps):
    transform = optimizers.adam(1.0, eps=eps)
    params = {"w": mx.zeros(2)}
    updates, _ = transform.update({"w": mx.array([0.0, 1.0])}, transform.init(params), params)
    assert updates["w"].tolist() == [0.0, pytest.approx(-1.0)]
