"""Updates of a transform for one gradient after another."""

import mlx.core as mx
import numpy as np

import purestep as ps


def run(transform, gradients, dtype=mx.float32, params=None, extras=None):
    """Return the updates for these gradients of one array, one after another, and the last state."""
    updates, states = run_through(transform, gradients, dtype, params, extras)
    return updates, states[-1]


def run_through(transform, gradients, dtype=mx.float32, params=None, extras=None):
    """Return the updates and the states after each of these gradients of one array.

    `extras` has the further arguments of each update, a dict each.
    """
    params = {"w": mx.zeros(np.shape(gradients)[1:], dtype) if params is None else mx.array(params, dtype)}
    state, updates, states = transform.init(params), [], []
    for gradient, extra in zip(gradients, extras or [{}] * len(gradients), strict=True):
        update, state = transform.update({"w": mx.array(gradient).astype(dtype)}, state, params, **extra)
        updates.append(update["w"])
        states.append(state)
    return updates, states


def walk(transform, gradients, dtype=mx.float32):
    """Yield one array of parameters, ones at first, and the state after each of its gradients."""
    others = {"none": None, "empty": mx.zeros((0, 2))}
    params = {"w": mx.ones(np.shape(gradients)[1:], dtype), **others}
    state = transform.init(params)
    for gradient in gradients:
        updates, state = transform.update({"w": mx.array(gradient).astype(dtype), **others}, state, params)
        assert updates["w"].dtype == mx.float32
        params = ps.apply_updates(params, updates)
        yield params["w"], state


def assert_updates(transform, gradients, want, params=None):
    """Compare the updates with the float64 arrays of an iterable."""
    updates, _ = run(transform, gradients, params=params)
    for step, (got, expected) in enumerate(zip(updates, want, strict=True), start=1):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6, err_msg=f"update {step}")


def normal(*shape):
    """Return normal numbers, float32; the same ones for the same shape."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
