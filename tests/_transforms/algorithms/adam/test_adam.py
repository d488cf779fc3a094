"""scale_by_adam: the equations in float64, the dtypes of the moments, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.transforms import scale_by_adam
from tests.running import run


def by_the_book(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False):
    """Yield each update by the equations of the docstring, in float64."""
    mu = nu = 0.0
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        if nesterov:
            numerator = b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        else:
            numerator = mu / (1 - b1**t)
        yield numerator / (np.sqrt(nu / (1 - b2**t) + eps_root) + eps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True},
        {"b1": 0.0},
        {"b2": 0.0, "nesterov": True},
        {"b1": 0.5, "b2": 0.75, "eps": 0.125, "eps_root": 0.25},
        {"eps": 0.5, "nesterov": True},
    ],
)
def test_the_updates_are_those_of_the_equations(options):
    gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    updates, _ = run(scale_by_adam(**options), gradients)
    for got, want in zip(updates, by_the_book(gradients, **options), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_first_update_is_the_sign_of_the_gradient_whatever_its_size(size):
    updates, _ = run(scale_by_adam(), [[size, -size]])
    np.testing.assert_allclose(updates[0], [1, -1], rtol=2e-4)  # 1e-4 over 1e-4 + eps


def test_no_gradient_gives_no_update():
    updates, _ = run(scale_by_adam(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_moments_and_updates_are_float32_whatever_the_parameters_are(dtype):
    transform = scale_by_adam()
    start = transform.init({"w": mx.zeros(2, dtype)})
    updates, state = run(transform, [[0.5, 0.25]], dtype)
    for moments in (start, state):
        assert (moments.mu["w"].dtype, moments.nu["w"].dtype) == (mx.float32, mx.float32)
        assert (moments.count.dtype, moments.count.shape) == (mx.int32, ())
    assert updates[0].dtype == mx.float32


def test_a_square_too_small_for_the_dtype_of_the_gradient_still_counts():
    updates, state = run(scale_by_adam(), [[2.0**-14]], mx.float16)  # its square, 2**-28, is zero in float16
    assert state.nu["w"].item() == pytest.approx(0.001 * 2.0**-28, rel=1e-5)
    assert updates[0].item() == pytest.approx(1, rel=1e-3)


def test_a_hundred_steps_of_adamw_on_bfloat16_accumulate_in_float32():
    transform = ps.optimizers.adamw(1e-4, weight_decay=0.0)
    params = {"w": mx.ones(3, mx.bfloat16)}
    state, moved = transform.init(params), mx.zeros(3)
    for _ in range(100):
        updates, state = transform.update({"w": mx.full(3, 0.5, mx.bfloat16)}, state, params)
        moved = moved + updates["w"]
    moments = state[0]
    assert (moments.mu["w"].dtype, moments.nu["w"].dtype) == (mx.float32, mx.float32)
    assert moments.count.item() == 100
    np.testing.assert_allclose(moments.mu["w"], 0.5 * (1 - 0.9**100), rtol=1e-5)
    np.testing.assert_allclose(moments.nu["w"], 0.25 * (1 - 0.999**100), rtol=1e-5)
    np.testing.assert_allclose(moved, -1e-2, rtol=1e-4)  # in float32, the bias corrections lose some digits


def test_mu_dtype_rounds_the_stored_mean_and_nothing_else():
    gradient = [[1.0 + 2.0**-10]]
    exact, _ = run(scale_by_adam(), gradient)
    updates, state = run(scale_by_adam(mu_dtype=mx.bfloat16), gradient)
    assert updates[0].item() == exact[0].item()
    assert (state.mu["w"].dtype, state.nu["w"].dtype) == (mx.bfloat16, mx.float32)
    assert scale_by_adam(mu_dtype=mx.bfloat16).init({"w": mx.array(0.0)}).mu["w"].dtype == mx.bfloat16


def test_a_mean_stored_in_bfloat16_decays_in_float32():
    stored = mx.array(0.1, mx.bfloat16)
    transform = scale_by_adam(mu_dtype=mx.bfloat16)
    state = transform.init({"w": stored})._replace(mu={"w": stored}, nu={"w": mx.array(1.0)})
    updates, _ = transform.update({"w": mx.array(0.0)}, state)
    want = (0.9 * stored.item() / (1 - 0.9)) / np.sqrt(0.999 / (1 - 0.999))
    assert updates["w"].item() == pytest.approx(want, rel=1e-4)


def test_eps_inside_the_root_keeps_the_update_differentiable_at_zero():
    transform = scale_by_adam(eps_root=1e-6)
    state = transform.init({"w": mx.array(0.0)})
    slope = mx.grad(lambda g: transform.update({"w": g}, state)[0]["w"])(mx.array(0.0))
    assert slope.item() == pytest.approx(1 / (1e-3 + 1e-8), rel=1e-5)


def test_the_state_given_is_left_as_it_was():
    transform = scale_by_adam()
    state = transform.init({"w": mx.zeros(2)})
    transform.update({"w": mx.ones(2)}, state)
    assert (state.count.item(), state.mu["w"].tolist(), state.nu["w"].tolist()) == (0, [0, 0], [0, 0])
