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
