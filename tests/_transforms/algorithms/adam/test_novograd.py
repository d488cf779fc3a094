"""scale_by_novograd: the equations in float64, one norm for each array, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.transforms import scale_by_novograd
from tests.refusals import parts
from tests.running import assert_updates, normal, run


@pytest.mark.parametrize(
    ("b1", "b2", "eps", "eps_root", "weight_decay"),
    [(0.9, 0.25, 1e-8, 0.0, 0.0), (0.5, 0.75, 0.25, 0.125, 0.5), (0.0, 0.0, 1e-8, 0.0, mx.array(0.5))],
)
def test_the_updates_are_those_of_the_equations(b1, b2, eps, eps_root, weight_decay):
    gradients, params = normal(6, 2, 3), normal(2, 3)

    def by_the_book():
        mu = nu = 0.0
        for t, g in enumerate(gradients.astype(np.float64), start=1):
            square = (g**2).sum()
            nu = square if t == 1 else b2 * nu + (1 - b2) * square
            mu = b1 * mu + g / (np.sqrt(nu + eps_root) + eps) + float(weight_decay) * params
            yield mu

    transform = scale_by_novograd(b1, b2, eps, eps_root, weight_decay)
    assert_updates(transform, gradients, by_the_book(), params)


def test_each_array_has_its_own_norm_even_an_empty_one():
    params = {"w": mx.zeros(2), "b": mx.array(0.0), "empty": mx.zeros((0, 3)), "none": None}
    transform = scale_by_novograd()
    gradients = {"w": mx.array([3.0, -4.0]), "b": mx.array(-0.5), "empty": mx.zeros((0, 3)), "none": None}
    updates, state = transform.update(gradients, transform.init(params))
    np.testing.assert_allclose(updates["w"], [0.6, -0.8], rtol=1e-6)
    assert updates["b"].item() == pytest.approx(-1)
    assert updates["empty"].shape == (0, 3)
    assert [state.nu[name].item() for name in ("w", "b", "empty")] == [25, 0.25, 0]
    assert {state.nu[name].shape for name in ("w", "b", "empty")} == {()}


def test_no_gradient_gives_no_update():
    updates, _ = run(scale_by_novograd(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0, 0]


def test_mu_dtype_rounds_the_stored_momentum_and_nothing_else():
    exact, _ = run(scale_by_novograd(), [[3.0, 1.0]])
    updates, state = run(scale_by_novograd(mu_dtype=mx.bfloat16), [[3.0, 1.0]])
    assert updates[0].tolist() == exact[0].tolist()
    assert (state.mu["w"].dtype, state.nu["w"].dtype) == (mx.bfloat16, mx.float32)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_state_and_the_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(
        scale_by_novograd(weight_decay=0.1), [[300.0]], dtype
    )  # its square overflows float16
    assert {state.mu["w"].dtype, state.nu["w"].dtype, updates[0].dtype} == {mx.float32}
    assert updates[0].item() == pytest.approx(1)


def test_a_weight_decay_needs_the_parameters():
    transform = scale_by_novograd(weight_decay=0.1)
    state = transform.init({"w": mx.zeros(2)})
    with pytest.raises(ValueError, match="scale_by_novograd: params .*needed"):
        transform.update({"w": mx.zeros(2)}, state)
    with pytest.raises(ValueError, match=parts("scale_by_novograd: w ... (2,) in updates, (3,) in params")):
        transform.update({"w": mx.zeros(2)}, state, {"w": mx.zeros(3)})


def test_a_negative_weight_decay_is_refused():
    message = "scale_by_novograd: weight_decay ... 0, got -1"
    with pytest.raises(ValueError, match=parts(message)):
        scale_by_novograd(weight_decay=-1)
