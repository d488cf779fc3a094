"""Optimizers walk where optax and torch walk: recorded in float64 by references/make_optimizers.py."""

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from tests.references import recorded

RECORD = recorded("optimizers")
LEAVES = ("scalar", "vector", "matrix", "tensor")
RTOL, ATOL = 2e-5, 1e-6  # float32 against float64, over 50 steps

optimizers, schedules, transforms = ps.optimizers, ps.schedules, ps.transforms

OPTIMIZERS = {
    "optax.sgd": lambda: optimizers.sgd(0.1),
    "optax.sgd_momentum": lambda: optimizers.sgd(0.1, momentum=0.9),
    "optax.sgd_nesterov": lambda: optimizers.sgd(0.1, momentum=0.9, nesterov=True),
    "optax.adam": lambda: optimizers.adam(1e-2),
    "optax.adam_nesterov": lambda: optimizers.adam(1e-2, nesterov=True),
    "optax.adam_eps_root": lambda: optimizers.adam(1e-2, eps=1e-4, eps_root=1e-6),
    "optax.adamw_nesterov": lambda: optimizers.adamw(1e-2, nesterov=True),
    "optax.adamw_masked": lambda: optimizers.adamw(1e-2, weight_decay=1e-2, mask=transforms.matrices),
    "optax.clip_adamw_schedule": lambda: ps.chain(
        transforms.clip_by_global_norm(1.0),
        optimizers.adamw(schedules.warmup_cosine_decay(0.0, 3e-2, 10, 40, 1e-3), weight_decay=0.1),
    ),
    "optax.accumulated_adam": lambda: transforms.accumulate(optimizers.adam(1e-2), every=4),
    "torch.sgd_momentum": lambda: optimizers.sgd(0.1, momentum=0.9),
    "torch.sgd_nesterov": lambda: optimizers.sgd(0.1, momentum=0.9, nesterov=True),
    "torch.adam": lambda: optimizers.adam(1e-2, b1=0.8, b2=0.99),
    "torch.adamw": lambda: optimizers.adamw(1e-2, weight_decay=0.1),
}


def walk(transform, apply_updates, steps, asarray):
    """Yield the parameters after each step; for optax and for purestep, whose contract is the same."""
    params = {name: asarray(RECORD[f"params/{name}"]) for name in LEAVES}
    state = transform.init(params)
    for step in range(steps):
        gradients = {name: asarray(RECORD[f"gradients/{name}"][step]) for name in LEAVES}
        updates, state = transform.update(gradients, state, params)
        params = apply_updates(params, updates)
        yield params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_lead_where_they_led_optax_and_torch(name):
    trajectory = walk(OPTIMIZERS[name](), ps.apply_updates, 50, mx.array)
    for step, params in enumerate(trajectory, start=1):
        if step in (1, 10, 50):
            for leaf in LEAVES:
                want = RECORD[f"trajectories/{name}/{step}/{leaf}"]
                np.testing.assert_allclose(params[leaf], want, RTOL, ATOL, err_msg=f"{leaf}, step {step}")


def test_every_recorded_trajectory_is_compared():
    assert {key.split("/")[1] for key in RECORD if key.startswith("trajectories/")} == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("sgd", {"momentum": 0.5, "nesterov": True}),
        ("adam", {"b1": 0.5, "b2": 0.9, "eps": 1e-3, "nesterov": True}),
        ("adamw", {}),
        ("adamw", {"weight_decay": 0.5, "eps_root": 1e-3, "mask": transforms.matrices}),
    ],
)
def test_the_same_name_and_options_mean_the_same_to_optax(name, options):
    optax = pytest.importorskip("optax")
    import jax.numpy as jnp

    ours = walk(getattr(optimizers, name)(3e-2, **options), ps.apply_updates, 10, mx.array)
    theirs = walk(getattr(optax, name)(3e-2, **options), optax.apply_updates, 10, jnp.asarray)
    for got, want in zip(ours, theirs, strict=True):
        for leaf in LEAVES:
            np.testing.assert_allclose(got[leaf], want[leaf], RTOL, ATOL, err_msg=leaf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.sgd(-0.1), "learning_rate must be at least 0, got -0.1"),
        (lambda: optimizers.sgd(0.1, momentum=1.5), "decay must be at most 1, got 1.5"),
        (lambda: optimizers.adam(float("nan")), "learning_rate must be finite, got nan"),
        (lambda: optimizers.adam(0.1, b1=1.5), "b1 must be less than 1, got 1.5"),
        (lambda: optimizers.adamw(0.1, weight_decay=-1), "weight_decay must be at least 0, got -1"),
    ],
)
def test_an_optimizer_refuses_what_its_transforms_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
