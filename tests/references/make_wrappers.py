"""Record wrappers of optax, in float64, on the inputs in `optimizers.safetensors`.

Run with a Python that has optax and torch, after `make_optimizers.py`. Names are
`trajectories/WRAPPER/STEP/LEAF`, and `values` (one a step), the losses for `reduce_on_plateau`.
"""

import jax
import numpy as np
import optax
from make_optimizers import SHAPES, STEPS, of_recorded_steps, optax_trajectory, recorded_inputs, write

MATRICES = {name: len(shape) >= 2 for name, shape in SHAPES.items()}
LABELS = {name: "matrices" if matrix else "others" for name, matrix in MATRICES.items()}

OPTAX = {
    "masked": lambda: optax.chain(optax.masked(optax.scale_by_adam(), MATRICES), optax.scale(-0.01)),
    "freeze": lambda: optax.chain(optax.adam(1e-2), optax.transforms.freeze(MATRICES)),
    "partition": lambda: optax.partition(
        {"matrices": optax.adamw(1e-2), "others": optax.sgd(0.1, 0.9)}, LABELS
    ),
    "named_chain": lambda: optax.named_chain(
        ("clip", optax.clip_by_global_norm(1.0)), ("adam", optax.adam(1e-2))
    ),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.adam(1e-2), lambda step: step % 3 != 1),
    "conditionally_transform": lambda: optax.chain(
        optax.conditionally_transform(optax.scale_by_adam(), lambda step: step % 3 != 1), optax.scale(-0.01)
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(1e-2, 0.0, 60), weight_decay=optax.linear_schedule(0.0, 0.3, 30)
    ),
    "ema": lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1)),
    "ema_biased": lambda: optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1)),
    "apply_every": lambda: optax.chain(optax.adam(1e-2), optax.apply_every(4)),
    "flatten": lambda: optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))),
}

LOOKAHEAD = {
    "lookahead": lambda: optax.lookahead(optax.adam(1e-2), sync_period=6, slow_step_size=0.5),
    "lookahead_reset": lambda: optax.lookahead(optax.adam(1e-2), 5, 0.8, reset_state=True),
}

PLATEAU = {
    "reduce_on_plateau": lambda: optax.contrib.reduce_on_plateau(factor=0.5, patience=3),
    "reduce_on_plateau_patient": lambda: optax.contrib.reduce_on_plateau(
        0.3, patience=2, rtol=0.0, atol=0.02, cooldown=2, accumulation_size=3, min_scale=0.2
    ),
}


def lookahead_trajectory(transform, params, gradients):
    """Yield the fast and the slow parameters after each step."""
    wide = {name: jax.numpy.asarray(p, "float64") for name, p in params.items()}
    pair = optax.LookaheadParams.init_synced(wide)
    state = transform.init(pair)
    for step in range(STEPS):
        gradient = {name: jax.numpy.asarray(g[step], "float64") for name, g in gradients.items()}
        updates, state = transform.update(gradient, state, pair)
        pair = optax.apply_updates(pair, updates)
        yield pair.fast | {f"slow_{name}": p for name, p in pair.slow.items()}


def plateau_trajectory(transform, params, gradients, values):
    """Yield the parameters after each step of gradient descent with the scale of the plateau."""
    wide = {name: jax.numpy.asarray(p, "float64") for name, p in params.items()}
    state = transform.init(wide)
    for step in range(STEPS):
        gradient = {name: -0.1 * jax.numpy.asarray(g[step], "float64") for name, g in gradients.items()}
        updates, state = transform.update(gradient, state, wide, value=jax.numpy.asarray(values[step]))
        wide = optax.apply_updates(wide, updates)
        yield wide


def main():
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    params, gradients = recorded_inputs()
    rng = np.random.Generator(np.random.PCG64(31))
    values = (1 + np.exp(-np.arange(STEPS) / 8) + 0.1 * rng.standard_normal(STEPS)).astype(np.float32)
    runs = {name: optax_trajectory(make(), params, gradients) for name, make in OPTAX.items()}
    runs |= {name: lookahead_trajectory(make(), params, gradients) for name, make in LOOKAHEAD.items()}
    runs |= {name: plateau_trajectory(make(), params, gradients, values) for name, make in PLATEAU.items()}
    tensors = of_recorded_steps({f"trajectories/{name}": run for name, run in runs.items()})
    write("wrappers", {"values": values, **tensors})


if __name__ == "__main__":
    main()
