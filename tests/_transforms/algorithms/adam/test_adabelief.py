"""scale_by_belief: the equations in float64, steady gradients, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.transforms import scale_by_belief
from tests.running import assert_updates, normal, run


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("b1", "b2", "eps", "eps_root"), [(0.9, 0.999, 1e-16, 1e-16), (0.5, 0.75, 0.25, 0.125)]
)
def test_the_updates_are_those_of_the_equations(b1, b2, eps, eps_root, nesterov):
    gradients = normal(6, 5)

    def by_the_book():
        mu = nu = 0.0
        for t, g in enumerate(gradients.astype(np.float64), start=1):
            mu = b1 * mu + (1 - b1) * g
            nu = b2 * nu + (1 - b2) * (g - mu) ** 2 + eps_root
            if nesterov:
                numerator = b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            else:
                numerator = mu / (1 - b1**t)
            yield numerator / (np.sqrt(nu / (1 - b2**t)) + eps)

    transform = scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov)
    assert_updates(transform, gradients, by_the_book())


def test_steady_gradients_give_large_updates_and_others_small_ones():
    steady, _ = run(scale_by_belief(b1=0.5, b2=0.5), [[1.0]] * 8)
    erratic, _ = run(scale_by_belief(b1=0.5, b2=0.5), [[1.0], [-1.0]] * 4)
    assert steady[-1].item() > 10 * abs(erratic[-1].item())


def test_no_gradient_gives_no_update():
    updates, state = run(scale_by_belief(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0, 0]
    assert state.nu["w"].item() == pytest.approx(
        1.999e-16, rel=1e-4
    )  # the sum of two eps_root, the first decayed


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_state_and_the_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(scale_by_belief(), [[2.0**-14]], dtype)
    assert {state.mu["w"].dtype, state.nu["w"].dtype, updates[0].dtype} == {mx.float32}
    assert updates[0].item() == pytest.approx(1 / 0.9, rel=1e-3)
