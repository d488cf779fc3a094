"""Half-precision parameters follow the float32 run with either remedy, and do not change without one."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep.optimizers import lamb
from purestep.transforms import master_weights, round_stochastically, scale
from tests.refusals import parts

SIZE, STEPS, RATE = 20_000, 100, 1e-4
HALF = (mx.bfloat16, mx.float16)


def start(dtype):
    """Return parameters between 0.5 and 2 that both half-precision dtypes represent exactly."""
    values = mx.random.uniform(0.5, 2.0, (SIZE,), key=mx.random.key(0))
    return {"w": values.astype(mx.bfloat16).astype(dtype)}


def trained(transform, dtype):
    """Take 100 steps on constant gradients plus noise; return the parameters in float32, and the state."""
    params = start(dtype)
    state = transform.init(params)
    direction = mx.where(mx.arange(SIZE) % 3 == 0, 1.0, -1.0)
    for step in range(STEPS):
        noise = mx.random.normal((SIZE,), key=mx.random.key(step + 1))
        gradients = {"w": (direction + 0.1 * noise).astype(dtype)}
        updates, state = transform.update(gradients, state, params)
        params = ps.apply_updates(params, updates)
        mx.eval(params, state)
    return np.array(params["w"].astype(mx.float32), np.float64), state


def adamw():
    return ps.optimizers.adamw(RATE, weight_decay=0.1)


REMEDIES = {
    "master_weights": lambda: master_weights(adamw()),
    "round_stochastically": lambda: ps.chain(adamw(), round_stochastically(0)),
}


@pytest.fixture(scope="module")
def float32_run():
    return trained(adamw(), mx.float32)[0]


def test_without_a_remedy_bfloat16_parameters_do_not_move(float32_run):
    before = np.array(start(mx.float32)["w"], np.float64)
    assert np.abs(float32_run - before).min() > 0.007  # 100 steps of 1e-4, less the weight decay
    np.testing.assert_array_equal(trained(adamw(), mx.bfloat16)[0], before)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_hundred_steps_move_half_precision_parameters_as_float32_ones(remedy, dtype, float32_run):
    before = np.array(start(mx.float32)["w"], np.float64)
    got, _ = trained(REMEDIES[remedy](), dtype)
    bits = 7 if dtype == mx.bfloat16 else 10
    spacing = 2.0 ** (np.floor(np.log2(float32_run)) - bits)
    off = (got - float32_run) / spacing
    if remedy == "master_weights":
        assert np.abs(off).max() < 0.52  # half a spacing, and the rounding of the gradients
        return
    moved, should = got - before, float32_run - before
    for sign in (1, -1):
        chosen = np.sign(should) == sign
        assert moved[chosen].mean() == pytest.approx(should[chosen].mean(), rel=0.02)
    # A random walk: a step of a fraction q of a spacing is rounded with variance q * (1 - q).
    part = RATE / spacing
    assert np.square(off).mean() == pytest.approx((STEPS * part * (1 - part)).mean(), rel=0.2)


def test_master_weights_are_the_float32_run_itself(float32_run):
    # Only the gradients are rounded: Adam's steps differ slightly in size.
    _, state = trained(master_weights(adamw()), mx.bfloat16)
    np.testing.assert_allclose(state.params["w"], float32_run, atol=2e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_parameters_are_their_master_weights_rounded_to_the_nearest(dtype):
    transform = master_weights(ps.optimizers.adam(0.3))
    params = {"w": mx.random.normal((500,), key=mx.random.key(0)).astype(dtype)}
    state = transform.init(params)
    for seed in range(10):
        gradients = {"w": mx.random.normal((500,), key=mx.random.key(seed)).astype(dtype)}
        updates, state = transform.update(gradients, state, params)
        params = ps.apply_updates(params, updates)
        rounded = state.params["w"].astype(dtype).astype(mx.float32)
        # Equal bit for bit, except where a step nearly cancels a parameter: the difference is float32.
        np.testing.assert_allclose(params["w"].astype(mx.float32), rounded, rtol=0, atol=1e-6)
        assert mx.mean(params["w"].astype(mx.float32) == rounded).item() > 0.99


def test_the_inner_transform_sees_the_master_weights():
    params = {"w": mx.array([3.0, 4.0], mx.bfloat16)}
    transform = master_weights(lamb(1e-4))
    state = transform.init(params)
    updates, state = transform.update({"w": mx.array([1.0, 0.0], mx.bfloat16)}, state, params)
    assert mx.array_equal(updates["w"], mx.zeros(2))
    np.testing.assert_allclose(state.params["w"], [3.0 - 5e-4, 4.0], 1e-6)


def test_float32_parameters_pass_to_the_bit_and_take_no_memory():
    params = {"a": mx.array([0.1, 0.2]), "b": mx.array([0.5], mx.bfloat16), "none": None}
    gradients = {"a": mx.array([0.3, 0.7]), "b": mx.array([0.25], mx.bfloat16), "none": None}
    want, _ = scale(-0.3).update(gradients, ())
    transform = master_weights(scale(-0.3))
    got, state = transform.update(gradients, transform.init(params), params)
    assert mx.array_equal(got["a"], want["a"])
    assert state.params["a"].shape == (0,)
    assert state.params["b"].dtype == mx.float32
    transform = round_stochastically(0)
    got, _ = transform.update(want, transform.init(params), params)
    assert got["a"] is want["a"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1.0, 3e4, 1e-3, 3e-5, 1e-7])
def test_a_sum_is_rounded_to_its_neighbours_in_proportion_to_nearness(dtype, size):
    params = {"w": mx.full((40_000,), size).astype(dtype)}
    base = params["w"][0].astype(mx.float32).item()
    # Two neighbouring numbers of the dtype, and a point at a quarter of their distance.
    following = (params["w"][0].view(mx.uint16) + 1).view(dtype).astype(mx.float32).item()
    updates = {"w": mx.full((40_000,), (following - base) / 4)}
    transform = round_stochastically(7)
    rounded, _ = transform.update(updates, transform.init(params), params)
    got = np.array(ps.apply_updates(params, rounded)["w"].astype(mx.float32))
    assert set(np.unique(got)) == {np.float32(base), np.float32(following)}
    assert np.mean(got == np.float32(following)) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("dtype", HALF)
def test_exact_sums_and_sums_that_are_not_finite_are_not_rounded(dtype):
    params = {"w": mx.array([1.0, -1.0, 0.0, 5.0, 1.0, 1.0], dtype)}
    updates = {"w": mx.array([0.5, 0.25, -2.0, 0.0, float("nan"), float("-inf")])}
    transform = round_stochastically(0)
    got, _ = transform.update(updates, transform.init(params), params)
    want = mx.array([1.5, -0.75, -2.0, 5.0, float("nan"), float("-inf")], dtype)
    assert mx.array_equal(ps.apply_updates(params, got)["w"], want, equal_nan=True)


def test_each_step_draws_anew_and_each_path_for_itself():
    params = {"a": mx.ones(100, mx.bfloat16), "b": mx.ones(100, mx.bfloat16)}
    updates = {"a": mx.full(100, 0.003), "b": mx.full(100, 0.003)}
    transform = round_stochastically(mx.random.key(0))
    first, state = transform.update(updates, transform.init(params), params)
    second, _ = transform.update(updates, state, params)
    assert not mx.array_equal(first["a"], first["b"])
    assert not mx.array_equal(first["a"], second["a"])
    turned = {name: updates[name] for name in ("b", "a")}
    again, _ = transform.update(turned, transform.init(params), params)
    assert mx.array_equal(first["a"], again["a"])


@pytest.mark.parametrize("transform", [round_stochastically(0), master_weights(scale(1.0))])
def test_params_are_needed(transform):
    with pytest.raises(ValueError, match=": params .*update"):
        transform.update({"w": mx.ones(2)}, transform.init({"w": mx.ones(2)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: round_stochastically(None), "round_stochastically: key ... integer, got None"),
        (lambda: master_weights(scale), "master_weights: inner ... GradientTransform, got <function"),
    ],
)
def test_arguments_are_refused(make, message):
    with pytest.raises(TypeError, match=parts(message)):
        make()
