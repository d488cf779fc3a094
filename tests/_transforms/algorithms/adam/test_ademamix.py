"""AdEMAMix and its simplified form: the equations in float64, schedules, dtypes, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep import schedules
from purestep.optimizers import ademamix, simplified_ademamix
from purestep.transforms import scale_by_adam, scale_by_ademamix, scale_by_simplified_ademamix
from tests.refusals import parts
from tests.running import run

GRADIENTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def test_the_updates_are_those_of_the_equations():
    updates, _ = run(scale_by_ademamix(0.5, 0.75, 0.875, 2.0, eps=0.125, eps_root=0.25), GRADIENTS)
    m1 = m2 = nu = 0.0
    for t, (g, got) in enumerate(zip(GRADIENTS.astype(np.float64), updates, strict=True), start=1):
        m1, m2, nu = 0.5 * m1 + 0.5 * g, 0.875 * m2 + 0.125 * g, 0.75 * nu + 0.25 * g**2
        want = (m1 / (1 - 0.5**t) + 2 * m2) / (np.sqrt(nu / (1 - 0.75**t) + 0.25) + 0.125)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_without_the_slow_mean_it_is_adam():
    updates, _ = run(scale_by_ademamix(alpha=0.0), GRADIENTS)
    adam, _ = run(scale_by_adam(), GRADIENTS)
    np.testing.assert_allclose(updates, adam, rtol=1e-6)


def test_schedules_see_the_count_before_the_update():
    alpha, b3 = schedules.linear(0.0, 1.0, 1), schedules.linear(0.5, 0.0, 1)  # 0 and 0.5 at first
    updates, state = run(scale_by_ademamix(0.0, 0.0, b3, alpha), [[1.0], [4.0]])
    assert [update.item() for update in updates] == pytest.approx([1.0, 2.0])
    assert state.m2["w"].item() == 4.0


def test_mu_dtype_is_that_of_both_means_alone_and_stays():
    transform = scale_by_ademamix(mu_dtype=mx.bfloat16)
    start = transform.init({"w": mx.array(0.0)})
    updates, state = run(transform, [[1.0], [2.0]])
    for each in (start, state):
        assert (each.m1["w"].dtype, each.m2["w"].dtype, each.nu["w"].dtype) == (
            mx.bfloat16,
            mx.bfloat16,
            mx.float32,
        )
    assert updates[0].dtype == mx.float32


def test_a_slow_mean_of_bfloat16_gradients_does_not_stall():
    _, state = run(scale_by_ademamix(), [[1.0]] * 200, mx.bfloat16)
    assert state.m2["w"].item() == pytest.approx(1 - 0.9999**200, rel=1e-3)


def test_the_simplified_updates_are_those_of_the_equations():
    transform = scale_by_simplified_ademamix(0.5, 0.75, 2.0, eps=0.125, eps_root=0.25)
    updates, _ = run(transform, GRADIENTS)
    m = n = 0.0
    for t, (g, got) in enumerate(zip(GRADIENTS.astype(np.float64), updates, strict=True), start=1):
        m, n = 0.5 * m + g, 0.75 * n + 0.25 * g**2
        want = (m + 2 * g) / (np.sqrt(n / (1 - 0.75**t) + 0.25) + 0.125)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_the_simplified_alpha_may_follow_a_schedule():
    updates, state = run(
        scale_by_simplified_ademamix(0.0, 0.0, schedules.linear(0.0, 1.0, 1)), [[2.0], [2.0]]
    )
    assert [update.item() for update in updates] == pytest.approx([1.0, 2.0])
    assert (state.t.item(), state.m["w"].dtype) == (2, mx.float32)


@pytest.mark.parametrize("make", [scale_by_ademamix, scale_by_simplified_ademamix])
def test_no_gradient_gives_no_update(make):
    updates, _ = run(make(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0.0, 0.0]


@pytest.mark.parametrize("make", [ademamix, simplified_ademamix])
def test_the_optimizers_add_decay_and_turn_the_sign(make):
    transform, params = make(0.1, weight_decay=0.5), {"w": mx.array([4.0])}
    updates, _ = transform.update({"w": mx.array([0.0])}, transform.init(params), params)
    assert updates["w"].item() == pytest.approx(-0.1 * 0.5 * 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_ademamix(b1=1.0), "scale_by_ademamix: b1 ... 1, got 1.0"),
        (lambda: scale_by_ademamix(b2=-1.0), "scale_by_ademamix: b2 ... 0, got -1.0"),
        (lambda: scale_by_ademamix(b3=1.0), "scale_by_ademamix: b3 ... 1, got 1.0"),
        (lambda: scale_by_ademamix(alpha=-1.0), "scale_by_ademamix: alpha ... 0, got -1.0"),
        (lambda: scale_by_ademamix(eps=-1.0), "scale_by_ademamix: eps ... 0, got -1.0"),
        (lambda: scale_by_simplified_ademamix(b1=1.0), "scale_by_simplified_ademamix: b1 ... 1, got 1.0"),
        (lambda: scale_by_simplified_ademamix(b2=2.0), "scale_by_simplified_ademamix: b2 ... 1, got 2.0"),
        (
            lambda: scale_by_simplified_ademamix(alpha=float("nan")),
            "scale_by_simplified_ademamix: alpha ... finite, got nan",
        ),
        (
            lambda: scale_by_simplified_ademamix(eps_root=-1.0),
            "scale_by_simplified_ademamix: eps_root ... 0, got -1.0",
        ),
    ],
)
def test_a_bad_argument_is_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
