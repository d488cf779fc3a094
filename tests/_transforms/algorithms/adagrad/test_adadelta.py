"""scale_by_adadelta: the equations in float64, units, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import adadelta
from purestep.transforms import scale_by_adadelta
from tests.refusals import parts
from tests.running import assert_updates, normal, run


@pytest.mark.parametrize(("rho", "eps"), [(0.9, 1e-6), (0.0, 0.25), (0.5, 1e-3)])
def test_the_updates_are_those_of_the_equations(rho, eps):
    gradients = normal(6, 5)

    def by_the_book():
        e_g = e_x = 0.0
        for g in gradients.astype(np.float64):
            e_g = rho * e_g + (1 - rho) * g**2
            update = g * np.sqrt(e_x + eps) / np.sqrt(e_g + eps)
            e_x = rho * e_x + (1 - rho) * update**2
            yield update

    assert_updates(scale_by_adadelta(rho, eps), gradients, by_the_book())


def test_gradients_in_other_units_give_the_same_updates():
    gradients = normal(6, 5)
    plain, _ = run(scale_by_adadelta(eps=1e-12), gradients)
    scaled, _ = run(scale_by_adadelta(eps=1e-12), 1024 * gradients)
    np.testing.assert_allclose(plain[-1], scaled[-1], rtol=1e-4)


def test_without_a_rate_the_optimizer_descends_at_rate_1():
    gradients = [[2.0], [1.0]]
    rated, bare = run(adadelta(1.0), gradients)[0], run(adadelta(), gradients)[0]
    assert [u.item() for u in bare] == [u.item() for u in rated]
    assert bare[0].item() < 0


def test_the_decay_of_weights_is_rescaled_with_the_gradient():
    decayed, _ = run(adadelta(1.0, weight_decay=0.5), [[1.0]], params=[2.0])
    plain, _ = run(adadelta(1.0), [[2.0]], params=[2.0])
    assert decayed[0].item() == plain[0].item()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_state_and_the_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(scale_by_adadelta(), [[2.0**-14]], dtype)  # its square is zero in float16
    assert {state.e_g["w"].dtype, state.e_x["w"].dtype, updates[0].dtype} == {mx.float32}
    assert state.e_g["w"].item() > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rho": 1.0}, ValueError, "rho ... 1, got 1.0"),
        ({"rho": -0.1}, ValueError, "rho ... 0, got -0.1"),
        ({"eps": float("nan")}, ValueError, "eps ... finite, got nan"),
        ({"eps": "1"}, TypeError, "eps ... number, got '1'"),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(options, error, message):
    with pytest.raises(error, match=parts(f"scale_by_adadelta: {message}")):
        scale_by_adadelta(**options)
