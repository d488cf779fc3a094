"""scale_by_lion: the equations in float64, its three directions, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import lion
from purestep.transforms import scale_by_lion
from tests.refusals import parts
from tests.running import assert_updates, normal, run

DIRECTIONS = {"hard": np.sign, "smooth": lambda x: np.tanh(3 * x), "refined": lambda x: np.clip(x, -1, 1)}


@pytest.mark.parametrize("mode", DIRECTIONS)
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.0, 0.5), (0.5, 0.0)])
def test_the_updates_are_those_of_the_equations(mode, b1, b2):
    gradients = 3 * normal(6, 5)

    def by_the_book():
        mu = 0.0
        for g in gradients.astype(np.float64):
            yield DIRECTIONS[mode](b1 * mu + (1 - b1) * g)
            mu = b2 * mu + (1 - b2) * g

    assert_updates(scale_by_lion(b1, b2, mode=mode, smooth_beta=3.0), gradients, by_the_book())


def test_the_mean_is_stored_after_it_was_used():
    updates, state = run(scale_by_lion(b1=0.75, b2=0.5), [[4.0], [-4.0]])
    assert [update.item() for update in updates] == [
        1,
        1,
    ]  # in the second update, the sign of 0.75 * 2 - 0.25 * 4
    assert state.mu["w"].item() == -1  # 0.5 * 2 - 0.5 * 4


def test_a_step_of_lion_is_as_long_as_its_rate_whatever_the_gradient():
    updates, _ = run(lion(0.25, weight_decay=0.0), [[1e-20, -1e20, 0.0]])
    assert updates[0].tolist() == [-0.25, 0.25, 0.0]


def test_lion_decays_weights_beside_the_sign():
    updates, _ = run(lion(0.5, weight_decay=0.25), [[1.0, 1.0]], params=[2.0, -2.0])
    assert updates[0].tolist() == [-0.75, -0.25]


@pytest.mark.parametrize("mode", DIRECTIONS)
def test_a_nan_shows(mode):
    updates, _ = run(scale_by_lion(mode=mode), [[float("nan"), 1.0]])
    assert mx.isnan(updates[0]).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_mean_and_the_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(scale_by_lion(), [[0.5, 2.0**-20]] * 2, dtype)
    assert (state.mu["w"].dtype, updates[0].dtype, state.count.item()) == (mx.float32, mx.float32, 2)


def test_mu_dtype_rounds_the_stored_mean_and_nothing_else():
    updates, state = run(scale_by_lion(mu_dtype=mx.bfloat16, mode="refined", b1=0.0), [[0.1]])
    assert state.mu["w"].dtype == mx.bfloat16
    assert updates[0].item() == mx.array(0.1).item()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"b1": 1.0}, ValueError, "b1 ... 1, got 1.0"),
        ({"b1": -0.1}, ValueError, "b1 ... 0, got -0.1"),
        ({"b2": float("nan")}, ValueError, "b2 ... finite, got nan"),
        ({"b2": True}, TypeError, "b2 ... number, got True"),
        ({"smooth_beta": 0}, ValueError, "smooth_beta ... 0, got 0"),
        ({"mode": "soft"}, ValueError, "mode ... hard, smooth, refined, got 'soft'"),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(options, error, message):
    with pytest.raises(error, match=parts(f"scale_by_lion: {message}")):
        scale_by_lion(**options)
