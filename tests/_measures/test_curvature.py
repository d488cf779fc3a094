"""Curvature and sharpness against the Hessian of a quadratic and against differences in numpy."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from tests._measures.measuring import linear, rows

m = ps.metrics


def matrix(seed=0, size=4):
    """Return a symmetric matrix [size, size] with known eigenvalues, float32, and these."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    values = np.array([5.0, -2.0, 1.0, 0.5])
    return (rotation * values @ rotation.T).astype(np.float32), values, rotation


def quadratic(params, batch, rng):
    flat = params["p"]
    return ps.Mean.of(0.5 * (flat @ batch["h"] @ flat) + batch["b"] @ flat)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_curvature_is_the_rayleigh_quotient_of_the_update(microbatches):
    first, second = matrix(0)[0], matrix(1)[0]
    batch = {"h": mx.array(np.stack([first, second])), "b": mx.array(np.ones((2, 4), np.float32))}

    def loss_fn(params, batch, rng):
        p = params["p"]
        return ps.Mean.of(0.5 * (batch["h"] @ p) @ p + batch["b"] @ p)

    transform = ps.optimizers.adamw(1e-2)
    state = ps.TrainState.create({"p": mx.array([1.0, -1.0, 2.0, 0.0])}, transform)
    step = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=[m.curvature(every=1)])
    parts = step.parts(state, batch)
    u = np.asarray(parts.updates["p"], np.float64)
    want = u @ (first + second) @ u / 2 / (u @ u)
    assert parts.metrics["curvature"].item() == pytest.approx(want, rel=1e-4)
    assert ps.compiled(step)(state, batch)[1]["curvature"].item() == pytest.approx(want, rel=1e-4)
    part = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=[m.curvature(rows=1)])
    found = part.parts(state, batch).metrics["curvature"].item()
    assert found == pytest.approx(u @ first @ u / (u @ u), rel=1e-4)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_curvature_of_a_model_is_the_second_difference_of_its_loss(microbatches):
    with ps.rng.scope(mx.random.key(1)):
        model = nn.TransformerEncoder(1, 8, 2, mlp_dims=8, activation=mx.tanh)
        apply, params, _ = ps.functional(model)
    keys = mx.random.split(mx.random.key(2))
    batch = {name: mx.random.normal((4, 5, 8), key=key) for name, key in zip("xy", keys, strict=True)}

    def loss_fn(params, batch, rng):
        return ps.Mean.of(mx.square(apply(params, batch["x"], "causal") - batch["y"]))

    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create(params, transform)
    step = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=[m.curvature(every=1)])
    parts = step.parts(state, batch)
    h = 0.5

    def loss(scale):
        params = ps.tree.map(lambda p, u: p + scale * u, state.params, parts.updates)
        out = np.asarray(apply(params, batch["x"], "causal"), np.float64)
        return np.mean((out - np.asarray(batch["y"], np.float64)) ** 2)

    length = ps.tree.norm(parts.updates).item() ** 2
    want = (loss(h) - 2 * loss(0) + loss(-h)) / h**2 / length
    assert parts.metrics["curvature"].item() == pytest.approx(want, rel=0.05)


def test_no_update_has_no_curvature_and_too_many_rows_are_refused():
    step, state = linear([m.curvature()], transform=ps.optimizers.sgd(0.0))
    assert step(state, rows())[1]["curvature"].item() == 0.0
    step, state = linear([m.curvature(rows=5)])
    with pytest.raises(ValueError, match="curvature: rows must be at most the 4 rows of batch x, got 5"):
        step(state, rows())
    with pytest.raises(ValueError, match="rows must be at least 1"):
        m.curvature(rows=0)


def test_sharpness_is_the_eigenvalue_of_the_largest_absolute_value():
    h, values, rotation = matrix()
    batch, params = {"h": mx.array(h), "b": mx.ones(4)}, {"p": mx.zeros(4)}
    found = m.sharpness(quadratic, params, batch, key=mx.random.key(0), iterations=40)
    assert found.value.item() == pytest.approx(values[0], rel=1e-4)
    assert found.residual.item() < 1e-3
    overlap = abs(np.asarray(found.vector["p"]) @ rotation[:, 0])
    assert overlap == pytest.approx(1.0, abs=1e-4)
    again = m.sharpness(quadratic, params, batch, key=mx.random.key(1), iterations=1, start=found.vector)
    assert again.value.item() == pytest.approx(values[0], rel=1e-4)
    short = m.sharpness(quadratic, params, batch, key=mx.random.key(0), iterations=2)
    assert abs(short.value.item() - values[0]) <= short.residual.item() + 1e-5 or short.residual.item() > 0.1


def test_sharpness_refuses_bad_arguments():
    batch, params = {"h": mx.eye(4), "b": mx.ones(4)}, {"p": mx.zeros(4)}
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        m.sharpness(quadratic, params, batch, key=mx.random.key(0), iterations=0)
    with pytest.raises(ValueError, match="start must be like params"):
        m.sharpness(quadratic, params, batch, key=mx.random.key(0), start={"p": mx.zeros(3)})


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_each_term_of_a_sum_of_means_keeps_its_weight_over_the_whole_batch(microbatches):
    """The terms have other weights in every microbatch: a merge by the first one's would be wrong."""
    x, a, c = [1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 5.0], [1.0, 2.0, 3.0, 1.0]
    batch = {name: mx.array(value) for name, value in (("x", x), ("a", a), ("c", c))}

    def loss_fn(params, batch, rng):
        w = params["w"]
        return ps.Mean.of(w**2 * batch["x"], batch["a"]) + ps.Mean.of(w**4 * batch["x"], batch["c"])

    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.array(2.0)}, transform)
    step = ps.train_step(loss_fn, transform, microbatches=microbatches, measure=[m.curvature(every=1)])
    want = 2 * np.average(x, weights=a) + 12 * 2.0**2 * np.average(x, weights=c)
    assert step(state, batch)[1]["curvature"].item() == pytest.approx(want, rel=1e-5)
    assert ps.compiled(step)(state, batch)[1]["curvature"].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "rate", "curvature"),
    [(mx.float32, 1e-30, 3.0), (mx.float32, 1e30, 3.0), (mx.float16, 2e-6, 0.03), (mx.bfloat16, 1e-3, 3.0)],
)
def test_curvature_does_not_depend_on_the_length_of_the_update(dtype, rate, curvature):
    """Products of small updates with the Hessian would vanish in float16, and squares in float32."""
    transform = ps.optimizers.sgd(rate)
    state = ps.TrainState.create({"w": mx.ones(3, dtype)}, transform)

    def loss_fn(params, batch, rng):
        return curvature / 2 * batch * mx.square(params["w"].astype(mx.float32)).sum()

    step = ps.train_step(loss_fn, transform, measure=[m.curvature(every=1)])
    assert step(state, mx.array(1.0))[1]["curvature"].item() == pytest.approx(curvature, rel=2e-3)


def test_curvature_of_a_broken_update_is_nan_and_leaves_gradients_through_the_step():
    def loss_fn(params, batch, rng):
        return (batch * mx.square(params["w"])).sum()

    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.ones(2), "none": mx.zeros((0, 2))}, transform)
    step = ps.train_step(loss_fn, transform, measure=[m.curvature(every=1)])
    assert mx.isnan(step(state, mx.array([mx.nan, 1.0]))[1]["curvature"]).item()

    def outer(batch):
        new, metrics = step(state, batch)
        return new.params["w"].sum() + metrics["curvature"]

    assert mx.grad(outer)(mx.ones(2)).tolist() == pytest.approx([-0.2, -0.2])


def test_curvature_has_the_dropout_and_the_statistics_of_the_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.drop, self.b = (
                nn.Linear(6, 8), nn.BatchNorm(8), nn.Dropout(0.5), nn.Linear(8, 1),
            )  # fmt: skip

        def __call__(self, x):
            return self.b(self.drop(mx.tanh(self.norm(self.a(x)))))

    with ps.rng.scope(mx.random.key(0)):
        apply, params, held = ps.functional(Net())
    x = mx.random.normal((16, 6), key=mx.random.key(5))

    def loss_fn(params, held, batch, rng):
        out, held = apply(params, batch, rng=rng, model_state=held)
        return ps.Mean.of(mx.square(out)), {}, held

    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create(params, transform, model_state=held)
    step = ps.train_step(loss_fn, transform, stateful=True, measure=[m.curvature(every=1)])
    parts, key, h = step.parts(state, x), mx.random.split(state.rng)[1], 0.3

    def loss(scale):
        moved = ps.tree.map(lambda p, u: p + scale * u, state.params, parts.updates)
        with ps.rng.scope(key):
            return np.mean(np.asarray(apply(moved, x, rng=key, model_state=held)[0], np.float64) ** 2)

    want = (loss(h) - 2 * loss(0) + loss(-h)) / h**2 / ps.tree.norm(parts.updates).item() ** 2
    assert parts.metrics["curvature"].item() == pytest.approx(want, rel=0.02)


def weighted(params, batch, rng):
    return (batch * mx.square(params["w"].astype(mx.float32))).sum()


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_sharpness_of_very_flat_and_very_steep_losses(scale):
    batch = mx.array([1.0, -4.0, 2.0]) * scale
    found = m.sharpness(weighted, {"w": mx.ones(3)}, batch, key=mx.random.key(0))
    assert found.value.item() == pytest.approx(-8 * scale, rel=1e-3)
    assert 0 < found.residual.item() < 1e-3 * scale or scale == 1e25


def test_sharpness_goes_on_from_its_vector_in_bfloat16():
    params, batch = {"w": mx.ones(3, mx.bfloat16)}, mx.array([1.0, -4.0, 2.0])
    first = m.sharpness(weighted, params, batch, key=mx.random.key(0))
    second = m.sharpness(weighted, params, batch, key=mx.random.key(1), iterations=1, start=first.vector)
    assert second.value.item() == pytest.approx(-8, rel=1e-3)


def test_a_linear_loss_has_sharpness_zero_with_a_vector_and_a_start_of_zeros_has_none():
    def linear_loss(params, batch, rng):
        return (params["w"] * batch).sum()

    found = m.sharpness(linear_loss, {"w": mx.ones(3)}, mx.ones(3), key=mx.random.key(0))
    assert (found.value.item(), found.residual.item()) == (0.0, 0.0)
    assert ps.tree.norm(found.vector).item() == pytest.approx(1.0)
    zeros = m.sharpness(
        weighted, {"w": mx.ones(3)}, mx.ones(3), key=mx.random.key(0), start={"w": mx.zeros(3)}
    )
    assert np.isnan([zeros.value.item(), zeros.residual.item()]).all()


@pytest.mark.parametrize(
    ("loss_fn", "params", "message"),
    [
        (weighted, {"w": mx.ones(3), "i": mx.array([1])}, "params must be floating-point arrays, got int32"),
        (weighted, {"w": 1.0}, "params must be floating-point arrays, got float at w"),
        (weighted, {}, "params must hold at least one array"),
        (lambda params, batch, rng: params["w"], {"w": mx.ones(3)}, "the loss must be a floating-point"),
        (lambda params, batch, rng: None, {"w": mx.ones(3)}, "the loss must be .* got None"),
    ],
)
def test_sharpness_refuses_what_has_no_second_derivative(loss_fn, params, message):
    with pytest.raises((TypeError, ValueError), match=f"sharpness: {message}"):
        m.sharpness(loss_fn, params, mx.ones(3), key=mx.random.key(0))
