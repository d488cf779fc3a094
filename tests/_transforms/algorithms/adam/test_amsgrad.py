"""scale_by_amsgrad: the equations in float64, a mean square that never shrinks, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.transforms import scale_by_adam, scale_by_amsgrad
from tests.running import assert_updates, normal, run


@pytest.mark.parametrize("correct_mu", [True, False])
@pytest.mark.parametrize("correct_nu", [True, False])
@pytest.mark.parametrize(("b1", "b2", "eps", "eps_root"), [(0.9, 0.9, 1e-8, 0.0), (0.0, 0.5, 0.25, 0.125)])
def test_the_updates_are_those_of_the_equations(b1, b2, eps, eps_root, correct_mu, correct_nu):
    gradients = normal(6, 5)

    def by_the_book():
        mu = nu = nu_max = 0.0
        for t, g in enumerate(gradients.astype(np.float64), start=1):
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
            nu_max = np.maximum(nu_max, nu / (1 - b2**t if correct_nu else 1))
            yield mu / (1 - b1**t if correct_mu else 1) / (np.sqrt(nu_max + eps_root) + eps)

    transform = scale_by_amsgrad(
        b1, b2, eps, eps_root, bias_correction_mu=correct_mu, bias_correction_nu=correct_nu
    )
    assert_updates(transform, gradients, by_the_book())


def test_one_large_gradient_is_never_forgotten():
    gradients = [[100.0]] + [[1.0]] * 50
    adam, _ = run(scale_by_adam(b1=0.0, b2=0.5), gradients)
    amsgrad, _ = run(scale_by_amsgrad(b1=0.0, b2=0.5), gradients)
    assert adam[-1].item() == pytest.approx(1, rel=1e-4)
    assert amsgrad[-1].item() == pytest.approx(0.01, rel=1e-4)


def test_a_mean_square_that_grows_makes_it_adam():
    gradients = np.arange(1, 7, dtype=np.float32)[:, None]
    for got, want in zip(
        run(scale_by_amsgrad(), gradients)[0], run(scale_by_adam(), gradients)[0], strict=True
    ):
        assert got.item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_moments_and_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(scale_by_amsgrad(), [[2.0**-14]], dtype)  # its square is zero in float16
    assert {leaf["w"].dtype for leaf in state[1:]} == {mx.float32} == {updates[0].dtype}
    assert state.nu_max["w"].item() > 0


def test_mu_dtype_rounds_the_stored_mean_and_nothing_else():
    exact, _ = run(scale_by_amsgrad(), [[1.0 + 2.0**-10]])
    updates, state = run(scale_by_amsgrad(mu_dtype=mx.bfloat16), [[1.0 + 2.0**-10]])
    assert updates[0].item() == exact[0].item()
    assert [leaf["w"].dtype for leaf in state[1:]] == [mx.bfloat16, mx.float32, mx.float32]
