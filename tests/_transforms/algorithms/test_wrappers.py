"""Wrappers follow those of optax, recorded in float64 by references/make_wrappers.py."""

import mlx.core as mx
import pytest

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
from tests._transforms.algorithms.recorded import compare, names, walk
from tests.references import recorded

RECORD = recorded("wrappers")


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


def loss(step, gradients):
    """Return the recorded loss."""
    return {"value": mx.array(RECORD["values"][step])}


def with_slow(params, state):
    """Return the parameters and, as `slow_*`, those of lookahead."""
    return params | {f"slow_{leaf}": value for leaf, value in eval_params(state, params).items()}


@pytest.mark.parametrize("name", WRAPPERS)
def test_fifty_steps_follow_the_recorded_trajectory(name):
    walked = walk(WRAPPERS[name](), extra=loss if "plateau" in name else None)
    found = (with_slow(*step) if "lookahead" in name else step[0] for step in walked)
    compare(RECORD, f"trajectories/{name}", found)


def test_every_recorded_trajectory_is_compared():
    assert names(RECORD) == set(WRAPPERS)
