"""Wrappers walk where optax's walk: recorded in float64 by references/make_wrappers.py."""

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import purestep as ps
from purestep import eval_params, optimizers, schedules, transforms
from purestep.transforms import (
    apply_every,
    conditionally_mask,
    conditionally_transform,
    ema,
    flatten,
    freeze,
    inject_hyperparams,
    lookahead,
    masked,
    named_chain,
    partition,
    reduce_on_plateau,
)
from tests.references import DIRECTORY

REFERENCES = DIRECTORY
INPUTS = load_file(REFERENCES / "optimizers.safetensors")
RECORD = load_file(REFERENCES / "wrappers.safetensors")
LEAVES = ("scalar", "vector", "matrix", "tensor")
RTOL, ATOL = 2e-5, 1e-6  # float32 against float64, over 50 steps


def by_rank(params):
    return ps.tree.map(lambda p: "matrices" if p.ndim >= 2 else "others", params)


WRAPPERS = {
    "masked": lambda: ps.chain(
        masked(transforms.scale_by_adam(), transforms.matrices), transforms.scale(-0.01)
    ),
    "freeze": lambda: ps.chain(optimizers.adam(1e-2), freeze(transforms.matrices)),
    "partition": lambda: partition(
        {"matrices": optimizers.adamw(1e-2), "others": optimizers.sgd(0.1, 0.9)}, by_rank
    ),
    "named_chain": lambda: named_chain(
        ("clip", transforms.clip_by_global_norm(1.0)), ("adam", optimizers.adam(1e-2))
    ),
    "conditionally_mask": lambda: conditionally_mask(optimizers.adam(1e-2), lambda step: step % 3 != 1),
    "conditionally_transform": lambda: ps.chain(
        conditionally_transform(transforms.scale_by_adam(), lambda step: step % 3 != 1),
        transforms.scale(-0.01),
    ),
    "inject_hyperparams": lambda: inject_hyperparams(optimizers.adamw)(
        learning_rate=schedules.linear(1e-2, 0.0, 60), weight_decay=schedules.linear(0.0, 0.3, 30)
    ),
    "ema": lambda: ps.chain(ema(0.9), transforms.scale(-0.1)),
    "ema_biased": lambda: ps.chain(ema(0.9, debias=False), transforms.scale(-0.1)),
    "apply_every": lambda: ps.chain(optimizers.adam(1e-2), apply_every(4)),
    "flatten": lambda: flatten(ps.chain(transforms.clip_by_global_norm(1.0), optimizers.adam(1e-2))),
    "lookahead": lambda: lookahead(optimizers.adam(1e-2), sync_period=6, slow_step_size=0.5),
    "lookahead_reset": lambda: lookahead(optimizers.adam(1e-2), 5, 0.8, reset_state=True),
    "reduce_on_plateau": lambda: ps.chain(transforms.scale(-0.1), reduce_on_plateau(factor=0.5, patience=3)),
    "reduce_on_plateau_patient": lambda: ps.chain(
        transforms.scale(-0.1), reduce_on_plateau(0.3, 2, 0.0, 0.02, 2, 3, 0.2)
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_fifty_steps_lead_where_they_led_optax(name):
    transform = WRAPPERS[name]()
    params = {leaf: mx.array(INPUTS[f"params/{leaf}"]) for leaf in LEAVES}
    state = transform.init(params)
    update = transform.update
    for step in range(1, 51):
        gradients = {leaf: mx.array(INPUTS[f"gradients/{leaf}"][step - 1]) for leaf in LEAVES}
        extra = {"value": mx.array(RECORD["values"][step - 1])} if "plateau" in name else {}
        updates, state = update(gradients, state, params, **extra)
        params = ps.apply_updates(params, updates)
        found = dict(params)
        if "lookahead" in name:
            found |= {f"slow_{leaf}": value for leaf, value in eval_params(state, params).items()}
        if step in (1, 10, 50):
            for leaf, value in found.items():
                want = RECORD[f"trajectories/{name}/{step}/{leaf}"]
                np.testing.assert_allclose(value, want, RTOL, ATOL, err_msg=f"{leaf}, step {step}")


def test_every_recorded_trajectory_is_compared():
    assert {key.split("/")[1] for key in RECORD if key.startswith("trajectories/")} == set(WRAPPERS)
