"""scale_by_adopt: the order of its two means, its bound, dtypes, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep.optimizers import adopt
from purestep.transforms import scale_by_adopt
from tests.refusals import parts
from tests.running import run


def by_the_book(gradients, b1=0.9, b2=0.9999, eps=1e-6, nesterov=False, use_clipping=True):
    """Yield each update by the equations of the docstring, in float64."""
    mu, nu = 0.0, None
    for n, g in enumerate(np.asarray(gradients, np.float64)):
        if nu is None:
            nu = g**2
            yield 0 * g
            continue
        r = g / np.maximum(np.sqrt(nu), eps)
        r = np.clip(r, -(n**0.25), n**0.25) if use_clipping else r
        mu, nu = b1 * mu + (1 - b1) * r, b2 * nu + (1 - b2) * g**2
        yield b1 * mu + (1 - b1) * r if nesterov else mu


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": True, "b1": 0.5},
        {"use_clipping": False, "b2": 0.5},
        {"b1": 0.0, "b2": 0.0, "eps": 0.5},
    ],
)
def test_the_updates_are_those_of_the_equations(options):
    gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    updates, _ = run(scale_by_adopt(**options), gradients)
    for got, want in zip(updates, by_the_book(gradients, **options), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("use_clipping", [False, True])
def test_the_first_update_is_zero_and_only_sets_the_mean_square(use_clipping):
    updates, state = run(scale_by_adopt(use_clipping=use_clipping), [[3.0, 0.0]])
    assert updates[0].tolist() == [0.0, 0.0]
    assert (state.nu["w"].tolist(), state.count.item()) == ([9.0, 0.0], 1)


def test_a_gradient_is_divided_only_by_earlier_ones():
    updates, _ = run(scale_by_adopt(b1=0.0, use_clipping=False), [[1.0], [100.0]])
    assert updates[1].item() == pytest.approx(100.0)


def test_clip_value_fn_gives_the_bound():
    transform = scale_by_adopt(b1=0.0, clip_value_fn=lambda n: 0.5 * n)
    updates, _ = run(transform, [[1.0], [100.0], [-100.0]])
    assert [update.item() for update in updates] == pytest.approx([0.0, 0.5, -1.0])


def test_the_moments_are_float32_without_mu_dtype():
    updates, state = run(scale_by_adopt(), [[1.0], [2.0]], mx.bfloat16)
    assert {updates[0].dtype, state.mu["w"].dtype, state.nu["w"].dtype} == {mx.float32}
    updates, state = run(scale_by_adopt(mu_dtype=mx.bfloat16), [[1.0], [2.0]])
    assert (updates[0].dtype, state.mu["w"].dtype) == (mx.float32, mx.bfloat16)


def test_a_parameter_without_gradients_stays():
    updates, _ = run(scale_by_adopt(), [[0.0]] * 3)
    assert [update.item() for update in updates] == [0.0] * 3


def test_adopt_turns_the_sign():
    transform, params = adopt(0.5, b1=0.0), {"w": mx.array([1.0])}
    state = transform.init(params)
    for _ in range(2):
        updates, state = transform.update({"w": mx.array([2.0])}, state, params)
    assert updates["w"].item() == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, "scale_by_adopt: eps ... 0, got 0.0"),
        ({"clip_value_fn": 0.5}, TypeError, "scale_by_adopt: clip_value_fn ... callable, got 0.5"),
    ],
)
def test_a_bad_argument_is_refused(options, error, message):
    with pytest.raises(error, match=parts(message)):
        scale_by_adopt(**options)
