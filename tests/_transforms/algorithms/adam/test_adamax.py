"""scale_by_adamax: the equations in float64, the decaying maximum, and refused arguments."""

import numpy as np
import pytest

from purestep.optimizers import adamaxw
from purestep.transforms import scale_by_adamax
from tests.running import assert_updates, normal, run


@pytest.mark.parametrize(("b1", "b2", "eps"), [(0.9, 0.999, 1e-8), (0.0, 0.5, 0.25), (0.5, 0.0, 1e-3)])
def test_the_updates_are_those_of_the_equations(b1, b2, eps):
    gradients = normal(6, 5)

    def by_the_book():
        mu = nu = 0.0
        for t, g in enumerate(gradients.astype(np.float64), start=1):
            mu, nu = b1 * mu + (1 - b1) * g, np.maximum(b2 * nu, np.abs(g) + eps)
            yield mu / (1 - b1**t) / nu

    assert_updates(scale_by_adamax(b1, b2, eps), gradients, by_the_book())


def test_the_largest_gradient_fades():
    _, state = run(scale_by_adamax(b2=0.5, eps=0.0), [[8.0], [1.0], [-3.0]])
    assert state.nu["w"].item() == 3  # larger than 8 / 4
    assert state.count.item() == 3


def test_no_gradient_gives_no_update():
    updates, _ = run(scale_by_adamax(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0, 0]


def test_adamaxw_decays_weights_beside_the_rescaling():
    updates, _ = run(adamaxw(0.5, weight_decay=0.25), [[1.0, 0.0]], params=[2.0, 2.0])
    np.testing.assert_allclose(updates[0], [-0.75, -0.25], rtol=1e-5)
