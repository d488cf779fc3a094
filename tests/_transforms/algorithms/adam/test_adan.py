"""scale_by_adan: the equations in float64, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import adan
from purestep.transforms import scale_by_adan
from tests.running import run


def by_the_book(gradients, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0):
    """Yield each update by the equations of the docstring, in float64."""
    m = v = n = 0.0
    last = None
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        d = 0 * g if last is None else g - last
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + (1 - b2) * d) ** 2
        direction = m / (1 - b1**t) + (1 - b2) * v / (1 - b2**t)
        yield direction / (np.sqrt(n / (1 - b3**t) + eps_root) + eps)
        last = g


@pytest.mark.parametrize(
    "options",
    [{}, {"b1": 0.0, "b2": 0.0, "b3": 0.0}, {"b1": 0.5, "b2": 0.25, "eps": 0.125, "eps_root": 0.25}],
)
def test_the_updates_are_those_of_the_equations(options):
    gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    updates, _ = run(scale_by_adan(**options), gradients)
    for got, want in zip(updates, by_the_book(gradients, **options), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_a_constant_gradient_has_no_differences_and_gives_its_sign():
    updates, state = run(scale_by_adan(), [[2.0, -3.0]] * 3)
    np.testing.assert_allclose(updates[-1], [1, -1], rtol=1e-5)
    assert not state.v["w"].any().item()


def test_the_first_gradient_is_not_a_difference_from_zero():
    _, state = run(scale_by_adan(), [[2.0]])
    assert (state.v["w"].item(), state.g["w"].item(), state.t.item()) == (0.0, 2.0, 1)


def test_differences_of_bfloat16_gradients_are_taken_in_float32():
    updates, state = run(scale_by_adan(b2=0.0), [[256.0], [257.0], [1.0]], mx.bfloat16)  # 257 rounds to 256
    assert {leaf["w"].dtype for leaf in state[:4]} | {updates[0].dtype} == {mx.float32}
    assert state.v["w"].item() == -255.0


def test_no_gradient_gives_no_update():
    updates, _ = run(scale_by_adan(), [[0.0], [0.0]])
    assert [update.item() for update in updates] == [0.0, 0.0]


def test_adan_adds_decay_and_turns_the_sign():
    transform, params = adan(0.1, weight_decay=0.5), {"w": mx.array([4.0])}
    updates, _ = transform.update({"w": mx.array([1.0])}, transform.init(params), params)
    assert updates["w"].item() == pytest.approx(-0.1 * (1 + 0.5 * 4), rel=1e-5)
