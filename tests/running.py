"""Feed a transform one gradient after another."""

import mlx.core as mx
import numpy as np


def run(transform, gradients, dtype=mx.float32, params=None):
    """Return the updates that these gradients of one array give one after another, and the last state."""
    params = {"w": mx.zeros(np.shape(gradients)[1:], dtype) if params is None else mx.array(params, dtype)}
    state, updates = transform.init(params), []
    for gradient in gradients:
        update, state = transform.update({"w": mx.array(gradient).astype(dtype)}, state, params)
        updates.append(update["w"])
    return updates, state


def assert_updates(transform, gradients, want, params=None):
    """Compare the updates with those of an iterator over float64 arrays."""
    updates, _ = run(transform, gradients, params=params)
    for step, (got, expected) in enumerate(zip(updates, want, strict=True), start=1):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6, err_msg=f"update {step}")


def normal(*shape):
    """Return the same normal numbers for a shape, float32."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
