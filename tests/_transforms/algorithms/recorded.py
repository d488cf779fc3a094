"""Fifty steps from recorded parameters and gradients, and their comparison with recorded trajectories."""

import mlx.core as mx
import numpy as np

import purestep as ps
from purestep._transforms.core.base import taking_extra
from tests.references import recorded

INPUTS = recorded("optimizers")
LEAVES = ("scalar", "vector", "matrix", "tensor")
STEPS = 50
COMPARED = (1, 10, 50)
RTOL, ATOL = 2e-5, 1e-6  # float32 against float64, over 50 steps


def walk(
    transform, *, extra=None, steps=STEPS, leaves=LEAVES, asarray=mx.array, apply_updates=ps.apply_updates
):
    """Yield the parameters and the state after each step.

    `extra(step, gradients)` returns further arguments of `update`. For optax, pass its `apply_updates` and
    the `asarray` of jax.numpy.
    """
    params = {leaf: asarray(INPUTS[f"params/{leaf}"]) for leaf in leaves}
    state, update = transform.init(params), taking_extra(transform) if extra else transform.update
    for step in range(steps):
        gradients = {leaf: asarray(INPUTS[f"gradients/{leaf}"][step]) for leaf in leaves}
        updates, state = update(gradients, state, params, **(extra(step, gradients) if extra else {}))
        params = apply_updates(params, updates)
        yield params, state


def compare(record, name, trajectory, **tolerance):
    """Compare the parameters after steps 1, 10 and 50 with `record`, whose keys are `NAME/STEP/LEAF`."""
    for step, params in enumerate(trajectory, start=1):
        if step in COMPARED:
            close(params, {leaf: record[f"{name}/{step}/{leaf}"] for leaf in params}, step, **tolerance)


def compare_optimizer(record, name, make, **options):
    """Compare fifty steps of an optimizer with the trajectory of that name."""
    walked = walk(make(), **options)
    compare(record, f"trajectories/{name}", (params for params, _ in walked))


def close(got, want, step, rtol=RTOL, atol=ATOL):
    """Compare two dicts of arrays after a step."""
    for leaf, expected in want.items():
        np.testing.assert_allclose(
            np.array(got[leaf]), np.array(expected), rtol, atol, err_msg=f"{leaf}, step {step}"
        )


def names(record):
    """Return the names of the trajectories in a record."""
    return {key.split("/")[1] for key in record if key.startswith("trajectories/")}
