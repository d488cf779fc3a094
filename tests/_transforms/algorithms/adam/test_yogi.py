"""scale_by_yogi: the equations in float64, a mean square that falls slowly, and refused arguments."""

import numpy as np
import pytest

from purestep.transforms import scale_by_yogi
from tests.refusals import parts
from tests.running import assert_updates, normal, run


@pytest.mark.parametrize(
    ("b1", "b2", "eps", "eps_root", "start"), [(0.9, 0.999, 1e-3, 0.0, 1e-6), (0.5, 0.75, 0.25, 0.125, 1.0)]
)
def test_the_updates_are_those_of_the_equations(b1, b2, eps, eps_root, start):
    gradients = normal(6, 5)

    def by_the_book():
        mu = nu = start
        for t, g in enumerate(gradients.astype(np.float64), start=1):
            mu = b1 * mu + (1 - b1) * g
            nu = nu - (1 - b2) * np.sign(nu - g**2) * g**2
            yield mu / (1 - b1**t) / (np.sqrt(nu / (1 - b2**t) + eps_root) + eps)

    assert_updates(scale_by_yogi(b1, b2, eps, eps_root, start), gradients, by_the_book())


@pytest.mark.parametrize(("gradient", "want"), [(1.0, 3.5), (4.0, 12.0), (2.0, 4.0), (0.0, 4.0)])
def test_the_mean_square_moves_by_a_part_of_the_new_square(gradient, want):
    _, state = run(scale_by_yogi(b2=0.5, initial_accumulator_value=4.0), [[gradient]])
    assert state.nu["w"].item() == want  # 4 - 1 / 2, 4 + 16 / 2, unchanged, unchanged


def test_an_initial_value_below_0_is_refused():
    message = "scale_by_yogi: initial_accumulator_value ... 0, got -1"
    with pytest.raises(ValueError, match=parts(message)):
        scale_by_yogi(initial_accumulator_value=-1)
