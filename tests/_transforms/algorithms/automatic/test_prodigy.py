"""Prodigy and D-Adaptation: the equations in float64, the estimate of the rate, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import schedules
from purestep.optimizers import dadapt_adamw, prodigy
from tests.refusals import parts
from tests.running import walk

GRADIENTS = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32) + 1
BOTH = pytest.mark.parametrize("make", [prodigy, dadapt_adamw])


@pytest.mark.parametrize("safeguard", [False, True])
def test_prodigy_goes_by_its_equations(safeguard):
    b1, b2, b3, eps, d0, rate, decay = 0.8, 0.9, 0.7, 0.01, 0.05, 0.5, 0.1
    transform = prodigy(rate, (b1, b2), b3, eps, d0, 1.5, decay, safeguard)
    x, m, v, s, r, d = 1.0, 0.0, 0.0, 0.0, 0.0, d0
    for t, (got, state) in enumerate(walk(transform, GRADIENTS), start=1):
        g = GRADIENTS[t - 1].astype(np.float64)
        step = d * rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = b3 * r + d / d0 * step * np.sum(g * (1.0 - x))
        s = b3 * s + (d if safeguard else step) * d / d0 * g
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * (d * g) ** 2
        d = max(d, 1.5 * r / np.sum(np.abs(s)))
        x = x - step * (m / (np.sqrt(v) + d * eps) + decay * x)
        np.testing.assert_allclose(got, x, rtol=2e-5, atol=1e-6)
        assert state.estim_lr.item() == pytest.approx(d, rel=2e-5)
    assert d > d0


def test_d_adaptation_goes_by_its_equations():
    b1, b2, eps, d0, rate, decay = 0.8, 0.9, 0.01, 0.05, 0.5, 0.1
    q = np.sqrt(b2)
    x, m, v, s, r, d = 1.0, 0.0, 0.0, 0.0, 0.0, d0
    for t, (got, state) in enumerate(walk(dadapt_adamw(rate, (b1, b2), eps, d0, decay), GRADIENTS), start=1):
        g = GRADIENTS[t - 1].astype(np.float64)
        step = d * rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = q * r + (1 - q) * step * np.sum(g * s / (np.sqrt(v) + eps))
        m, v, s = b1 * m + (1 - b1) * step * g, b2 * v + (1 - b2) * g**2, q * s + (1 - q) * step * g
        d = max(d, r / ((1 - q) * np.sum(np.abs(s))))
        x = x - m / (np.sqrt(v) + eps) - decay * step * x
        np.testing.assert_allclose(got, x, rtol=2e-5, atol=1e-6)
        assert state.estim_lr.item() == pytest.approx(d, rel=2e-5)
    assert d > d0


@BOTH
def test_the_estimate_grows_to_the_distance_and_never_falls(make):
    transform, params = make(), {"w": mx.array([10.0, -10.0])}
    state, estimates = transform.init(params), []
    for _ in range(150):
        updates, state = transform.update({"w": mx.sign(params["w"])}, state, params)
        params = ps.apply_updates(params, updates)
        mx.eval(params, state)
        estimates.append(state.estim_lr.item())
    assert estimates == sorted(estimates)
    assert 1e-3 < estimates[-1] < 30


@BOTH
@pytest.mark.parametrize("rate", [1.0, schedules.linear(0.0, 1.0, 2)])
def test_zero_gradients_or_a_rate_of_zero_leave_the_estimate_and_not_nan(make, rate):
    *_, (params, state) = walk(make(rate), [[0.0]] * 2)
    assert (params.item(), state.estim_lr.item()) == (1.0, pytest.approx(1e-6))
    *_, (params, state) = walk(make(rate), [[1.0]] * 4)
    assert mx.isfinite(state.estim_lr).item()
    assert params.item() < 1.0


@BOTH
def test_moments_and_scalars_are_float32_for_bfloat16_parameters(make):
    *_, (_, state) = walk(make(), [[1.0]] * 2, mx.bfloat16)
    for tree in (state.exp_avg, state.exp_avg_sq, state.grad_sum):
        assert tree["w"].dtype == mx.float32
    assert {state.estim_lr.dtype, state.numerator_weighted.dtype, state.learning_rate.dtype} == {mx.float32}
    assert state.count.item() == 2


def test_prodigy_keeps_the_first_parameters_as_they_were():
    transform, params = prodigy(), {"w": mx.array([1.5], mx.bfloat16)}
    state = transform.init(params)
    _, state = transform.update({"w": mx.array([1.0])}, state, {"w": mx.array([2.5], mx.bfloat16)})
    assert (state.params0["w"].dtype, state.params0["w"].item()) == (mx.bfloat16, 1.5)


@BOTH
def test_the_learning_rate_is_a_factor_read_from_the_state(make):
    transform, params = make(estim_lr0=0.01), {"w": mx.array(1.0)}
    state = transform.init(params)
    once, _ = transform.update({"w": mx.array(2.0)}, state, params)
    state = state._replace(learning_rate=mx.array(3.0))
    thrice, after = transform.update({"w": mx.array(2.0)}, state, params)
    assert thrice["w"].item() == pytest.approx(3 * once["w"].item(), rel=1e-5)
    assert after.learning_rate.item() == 3.0


@BOTH
def test_decay_is_decoupled(make):
    *_, (params, _) = walk(make(estim_lr0=0.1, weight_decay=0.5), [[0.0]])
    step = 0.1 * np.sqrt(1 - 0.999) / (1 - 0.9)
    assert params.item() == pytest.approx(1 - 0.5 * step, rel=1e-5)


@BOTH
def test_parameters_are_needed(make):
    transform = make()
    with pytest.raises(ValueError, match=": params .*update"):
        transform.update({"w": mx.array(1.0)}, transform.init({"w": mx.array(1.0)}))


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate ... 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, "betas ... 1, got 1.0"),
        ({"betas": 0.9}, "betas ... two numbers, got 0.9"),
        ({"eps": -1.0}, "eps ... 0, got -1.0"),
        ({"estim_lr0": 0.0}, "estim_lr0 ... 0, got 0.0"),
        ({"weight_decay": -1}, "weight_decay ... 0, got -1"),
    ],
)
def test_a_bad_argument_is_refused(make, options, message):
    with pytest.raises(ValueError, match=parts(message)):
        make(**options)


@pytest.mark.parametrize("options", [{"beta3": 1.0}, {"estim_lr_coef": 0.0}])
def test_prodigy_refuses_its_own(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"scale_by_prodigy: {name} .* got {options[name]}"):
        prodigy(**options)
