"""scale_by_radam: the equations in float64, the switch to the adaptive rate, and refused arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._transforms.algorithms.adam.radam import length
from purestep.transforms import scale_by_radam
from tests.refusals import parts
from tests.running import assert_updates, normal, run


def rho(b2, t):
    return 2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("b1", "b2", "eps", "eps_root", "threshold"),
    [(0.9, 0.999, 1e-8, 0.0, 5.0), (0.5, 0.9, 0.25, 0.125, 4.0), (0.0, 0.5, 1e-8, 0.0, 5.0)],
)
def test_the_updates_are_those_of_the_equations(b1, b2, eps, eps_root, threshold, nesterov):
    gradients = normal(12, 5)

    def by_the_book():
        mu, nu, limit = 0.0, 0.0, 2 / (1 - b2) - 1
        for t, g in enumerate(gradients.astype(np.float64), start=1):
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
            direction = mu / (1 - b1**t)
            if nesterov:
                direction = b1 * mu / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            if rho(b2, t) >= threshold:
                n = rho(b2, t)
                r = np.sqrt((n - 4) * (n - 2) * limit / ((limit - 4) * (limit - 2) * n))
                direction = r * direction / (np.sqrt(nu / (1 - b2**t) + eps_root) + eps)
            yield direction

    transform = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov)
    assert_updates(transform, gradients, by_the_book())


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99, 0.999, 0.9999])
def test_the_length_is_right_where_its_formula_cancels(decay):
    for count in (1, 2, 5, 6, 9, 10, 11, 99, 101, 1000, 1001, 9_999, 10_001, 10**6):
        # In float64 the formula is accurate to 1e-9 here.
        assert length(decay, mx.array(count)).item() == pytest.approx(rho(decay, count), rel=1e-6), count


def test_the_first_five_updates_are_momentum_and_the_sixth_adapts():
    updates, _ = run(scale_by_radam(b1=0.0), [[1e4]] * 6)
    assert [update.item() for update in updates[:5]] == pytest.approx([1e4] * 5, rel=1e-5)
    assert 0 < updates[5].item() < 1


def test_a_decay_too_small_for_its_length_never_adapts():
    updates, _ = run(scale_by_radam(b1=0.0, b2=0.6), [[1e4]] * 30)  # the limit is 4
    assert updates[-1].item() == pytest.approx(1e4, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 8])
def test_the_update_has_a_derivative_before_and_after_the_switch(steps):
    transform = scale_by_radam()
    _, state = run(transform, [[1.0]] * steps)
    slope = mx.grad(lambda g: transform.update({"w": g}, state)[0]["w"].sum())(mx.array([2.0]))
    assert mx.isfinite(slope).all().item()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_state_and_the_updates_are_float32_whatever_the_parameters_are(dtype):
    updates, state = run(scale_by_radam(), [[0.5]], dtype)
    assert {state.mu["w"].dtype, state.nu["w"].dtype, updates[0].dtype} == {mx.float32}
    assert (state.count.item(), state.count.dtype) == (1, mx.int32)


@pytest.mark.parametrize("name", ["b2", "threshold"])
def test_arguments_that_select_the_formula_must_be_python_numbers(name):
    with pytest.raises(
        TypeError, match=f"^scale_by_radam: {name} .* Python number, got an array.* static_args"
    ):
        scale_by_radam(**{name: mx.array(0.99 if name == "b2" else 5.0)})


def test_a_threshold_below_4_is_refused():
    with pytest.raises(ValueError, match=parts("scale_by_radam: threshold ... 4, got 3.9")):
        scale_by_radam(threshold=3.9)
