"""scale_by_sophia, the estimators of the Hessian's diagonal, and a step that makes and passes an estimate."""

import functools

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import Mean
from purestep.optimizers import sophia
from purestep.transforms import gauss_newton_bartlett_diagonal, hutchinson_diagonal, scale_by_sophia
from tests.refusals import parts
from tests.running import run

KEYS = [mx.random.key(seed) for seed in range(400)]


def estimated(transform, gradients, hessians, dtype=mx.float32):
    """Return the updates for these gradients and estimates, one after another, and the last state."""
    extras = [{} if hessian is None else {"hessian": {"w": mx.array(hessian, dtype)}} for hessian in hessians]
    return run(transform, gradients, dtype, extras=extras)


def test_the_updates_are_those_of_the_equations():
    gradients, hessians = [1.0, -2.0, 3.0, 0.5], [4.0, 1.0, 9.0, 2.0]
    transform = scale_by_sophia(0.5, 0.75, gamma=0.5, eps=0.25, clip_threshold=3.0, update_interval=2)
    updates, state = estimated(transform, gradients, hessians)
    mu = nu = 0.0
    for n, (g, h) in enumerate(zip(gradients, hessians, strict=True)):
        mu = 0.5 * mu + 0.5 * g
        want = np.clip(mu / (1 - 0.5 ** (n + 1)) / max(0.5 * nu, 0.25), -3, 3)
        assert updates[n].item() == pytest.approx(want, rel=1e-5)
        nu = 0.75 * nu + 0.25 * h if n % 2 == 0 else nu
    assert state.nu["w"].item() == pytest.approx(nu)


def test_without_an_estimate_it_is_the_sign_of_the_mean():
    updates, state = estimated(scale_by_sophia(b1=0.0), [5.0, -1e-3, 0.0], [None] * 3)
    assert [update.item() for update in updates] == [1.0, -1.0, 0.0]
    assert state.nu["w"].item() == 0.0


def test_an_estimate_that_is_not_due_is_ignored_even_if_infinite():
    _, state = estimated(scale_by_sophia(b2=0.5, update_interval=2), [1.0, 1.0], [4.0, float("inf")])
    assert state.nu["w"].item() == 2.0


def test_a_negative_curvature_is_not_divided_by():
    updates, _ = estimated(scale_by_sophia(b1=0.0, b2=0.0, update_interval=1), [1.0, 1.0], [-4.0, -4.0])
    assert updates[1].item() == 1.0


def test_without_a_threshold_the_step_is_newtons():
    transform = scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0, clip_threshold=None, update_interval=1)
    updates, _ = estimated(transform, [8.0, 8.0], [0.5, 0.5])
    assert updates[1].item() == 16.0


def test_the_moments_are_float32_without_mu_dtype():
    updates, state = estimated(scale_by_sophia(), [1.0], [1.0], mx.bfloat16)
    assert {updates[0].dtype, state.mu["w"].dtype, state.nu["w"].dtype} == {mx.float32}
    _, state = estimated(scale_by_sophia(mu_dtype=mx.bfloat16), [1.0], [1.0])
    assert (state.mu["w"].dtype, state.nu["w"].dtype) == (mx.bfloat16, mx.float32)


def test_an_estimate_built_differently_is_refused():
    transform = scale_by_sophia()
    params = {"w": mx.array(0.0)}
    with pytest.raises(ValueError, match=r"tree.map: the tree .* \(w\) .* \(v\)"):
        transform.update(params, transform.init(params), hessian={"v": mx.array(0.0)})


def quadratic(params):
    """Return x^T A x / 2 over both leaves together, for A with 2, 3, 5 on its diagonal and 1 next to it."""
    x = mx.concatenate([params["a"].reshape(-1), params["b"][0]])
    matrix = mx.array([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 5.0]])
    return 0.5 * (x @ matrix @ x)


def test_hutchinson_is_right_on_average():
    params = {"a": mx.array(1.0), "b": [mx.array([2.0, 3.0]), None]}
    drawn = [hutchinson_diagonal(quadratic, params, key) for key in KEYS]
    assert ps.tree.alike(drawn[0], params)
    mean = ps.tree.map(lambda *leaves: mx.stack(leaves).mean(axis=0), *drawn)
    np.testing.assert_allclose(mean["a"], 2, atol=0.2)
    np.testing.assert_allclose(mean["b"][0], [3, 5], atol=0.3)


def test_hutchinson_takes_a_mean_or_a_pair_and_depends_on_the_key_alone():
    params = {"a": mx.array(1.0), "b": [mx.array([2.0, 3.0]), None]}
    want = hutchinson_diagonal(quadratic, params, KEYS[0])
    for loss_fn in (
        lambda p: (quadratic(p), {"metric": mx.array(1.0)}),
        lambda p: Mean(4 * quadratic(p), mx.array(4.0)),
        lambda p: (Mean(4 * quadratic(p), mx.array(4.0)), {}),
    ):
        got = hutchinson_diagonal(loss_fn, params, KEYS[0])
        for a, b in zip(ps.tree.leaves(got), ps.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert any(
        not mx.array_equal(hutchinson_diagonal(quadratic, params, key)["b"][0], want["b"][0]).item()
        for key in KEYS[1:9]
    )


def test_estimates_are_float32_for_bfloat16_parameters():
    params = {"w": mx.array([1.0, 2.0], mx.bfloat16)}
    got = hutchinson_diagonal(lambda p: (p["w"] ** 2).sum(), params, KEYS[0])
    assert (got["w"].dtype, got["w"].tolist()) == (mx.float32, [2.0, 2.0])
    got = gauss_newton_bartlett_diagonal(lambda p: p["w"][None], params, KEYS[0])
    assert got["w"].dtype == mx.float32


def test_gauss_newton_bartlett_is_right_on_average():
    inputs = mx.array([[1.0, 0.5], [-1.0, 2.0], [0.3, 0.3]])
    params = {"w": mx.array([[0.2, -0.4], [0.1, 0.3], [-0.5, 0.0]])}  # [classes, in]
    drawn = [gauss_newton_bartlett_diagonal(lambda p: inputs @ p["w"].T, params, key)["w"] for key in KEYS]
    p = mx.softmax(inputs @ params["w"].T, axis=-1)
    want = ((p * (1 - p)).T @ mx.square(inputs)) / 3  # the loss is a mean over three
    np.testing.assert_allclose(mx.stack(drawn).mean(axis=0), want, rtol=0.25)
    assert min(each.min().item() for each in drawn) >= 0


def test_predictions_with_weight_zero_do_not_count():
    inputs = mx.array([[1.0], [1.0], [50.0]])
    params = {"w": mx.array([[0.2], [-0.4]])}

    def estimate(inputs, key, weights=None):
        return gauss_newton_bartlett_diagonal(lambda p: inputs @ p["w"].T, params, key, weights=weights)["w"]

    weights = mx.array([1.0, 1.0, 0.0])
    masked = mx.stack([estimate(inputs, key, weights) for key in KEYS[:200]]).mean(axis=0)
    plain = mx.stack([estimate(inputs[:2], key) for key in KEYS[200:]]).mean(axis=0)
    np.testing.assert_allclose(masked, plain, rtol=0.3)


def test_a_step_makes_the_estimate_and_passes_it_on():
    def loss_fn(params, batch, rng):
        return (mx.array([1.0, 100.0]) * mx.square(params["w"] - batch["x"])).sum(axis=-1).mean()

    transform = sophia(0.1, gamma=1.0, update_interval=3, weight_decay=0.0)
    state = ps.TrainState.create({"w": mx.array([1.0, 1.0])}, transform)
    step = ps.train_step(loss_fn, transform)

    def estimating(state, batch):
        rng, key = mx.random.split(ps.rng.fold_in(state.rng, 1))
        h = hutchinson_diagonal(lambda params: loss_fn(params, batch, rng), state.params, key)
        informed = ps.GradientTransform(transform.init, functools.partial(transform.update, hessian=h))
        return ps.train_step(loss_fn, informed)(state, batch)

    for n in range(60):
        state, metrics = (step if n % 3 else estimating)(state, {"x": mx.zeros((4, 2))})
        mx.eval(state, metrics)
    # 20 estimates with a b2 of 0.99: `nu` is the same fraction of 2 and of 200
    nu = state.opt_state[0].nu["w"]
    np.testing.assert_allclose(nu, (1 - 0.99**20) * np.array([2.0, 200.0]), rtol=1e-4)
    assert metrics["loss"].item() < 5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scale_by_sophia(b1=1.0), ValueError, "scale_by_sophia: b1 ... 1, got 1.0"),
        (lambda: scale_by_sophia(b2=-1.0), ValueError, "scale_by_sophia: b2 ... 0, got -1.0"),
        (lambda: scale_by_sophia(eps=0.0), ValueError, "scale_by_sophia: eps ... 0, got 0.0"),
        (lambda: scale_by_sophia(gamma=0.0), ValueError, "scale_by_sophia: gamma ... 0, got 0.0"),
        (
            lambda: scale_by_sophia(clip_threshold=0.0),
            ValueError,
            "scale_by_sophia: clip_threshold ... 0, got 0.0",
        ),
        (
            lambda: scale_by_sophia(update_interval=0),
            ValueError,
            "scale_by_sophia: update_interval ... 1, got 0",
        ),
        (lambda: sophia(0.1, weight_decay=-1), ValueError, "weight_decay ... 0, got -1"),
        (
            lambda: hutchinson_diagonal(1, {}, KEYS[0]),
            TypeError,
            "hutchinson_diagonal: loss_fn ... callable, got 1",
        ),
        (lambda: hutchinson_diagonal(len, {}, 0), ValueError, "hutchinson_diagonal: a key ... uint32 ... 0"),
        (
            lambda: gauss_newton_bartlett_diagonal(1, {}, KEYS[0]),
            TypeError,
            "gauss_newton_bartlett_diagonal: logits_fn ... callable, got 1",
        ),
        (
            lambda: gauss_newton_bartlett_diagonal(len, {}, 0),
            ValueError,
            "gauss_newton_bartlett_diagonal: a key ... uint32 ... 0",
        ),
    ],
)
def test_a_bad_argument_is_refused(call, error, message):
    with pytest.raises(error, match=parts(message)):
        call()
