"""Record variations of optimizers of optax on fixed inputs, in float64.

Run with a Python that has optax and torch. `variations.safetensors` beside this file gets
`trajectories/OPTIMIZER/STEP/LEAF` and `values`, a loss for each step; the other inputs are those in
`optimizers.safetensors`. Where optax takes no 0-d leaf, the leaf is an array of one element.
"""

import warnings

import jax
import numpy as np
import optax
from make_optimizers import STEPS, draw_optimization, of_recorded_steps, write

VALUES = 0.5 + 0.45 * np.cos(np.arange(STEPS))


def matrices(params):
    """Select the leaves of two or more axes."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def small(*transforms):
    """Return a chain that descends at a small rate."""
    return optax.chain(*transforms, optax.scale(-0.05))


OPTAX = {
    "clip": lambda: small(optax.clip(0.3)),
    "clip_by_block_rms": lambda: small(optax.clip_by_block_rms(0.2)),
    "keep_params_nonnegative": lambda: optax.chain(optax.sgd(0.05), optax.keep_params_nonnegative()),
    "scale_by_trust_ratio": lambda: small(optax.scale_by_trust_ratio(0.3, 0.5, 0.1)),
    "lamb": lambda: optax.lamb(1e-2),
    "lamb_decayed": lambda: optax.lamb(1e-2, eps_root=1e-6, weight_decay=0.1, mask=matrices),
    "lars": lambda: optax.lars(1.0),
    "lars_masked": lambda: optax.lars(
        0.5, 0.1, matrices, 0.01, 1e-3, trust_ratio_mask=matrices, momentum=0.8, nesterov=True
    ),
    "fromage": lambda: optax.fromage(1e-2),
    "fromage_scheduled": lambda: optax.fromage(optax.linear_schedule(0.05, 0.01, 30), 0.1),
    "scale_by_param_block_norm": lambda: small(optax.scale_by_param_block_norm(0.5)),
    "scale_by_param_block_rms": lambda: small(optax.scale_by_param_block_rms(0.5)),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "adafactor_whole": lambda: optax.adafactor(1e-2, factored=False, clipping_threshold=0.5),
    "adafactor_absolute": lambda: optax.adafactor(
        optax.linear_schedule(0.05, 0.01, 30),
        min_dim_size_to_factor=3,
        decay_rate=0.7,
        multiply_by_parameter_scale=False,
        clipping_threshold=None,
        momentum=0.9,
        weight_decay_rate=1e-3,
        weight_decay_mask=matrices,
    ),
    "adafactor_no_rate": lambda: small(optax.adafactor(min_dim_size_to_factor=2), optax.scale(-1.0)),
    "sm3": lambda: optax.sm3(0.05),
    "scale_by_sm3": lambda: small(optax.scale_by_sm3(0.5, 0.9, 1e-6)),
    "scale_by_schedule": lambda: optax.scale_by_schedule(optax.linear_schedule(-0.1, -0.01, 30)),
    "centralize": lambda: small(optax.centralize()),
    "normalize_by_update_norm": lambda: small(optax.normalize_by_update_norm(0.5)),
    "polyak_sgd": lambda: optax.polyak_sgd(0.4),
    "polyak_sgd_plus": lambda: optax.polyak_sgd(0.4, 0.5, 0.3, 0.1, "sps+"),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.05, 1.0, 0.7),
    "optimistic_adam": lambda: optax.optimistic_adam(1e-2),
    "optimistic_adam_optimism": lambda: optax.optimistic_adam(1e-2, 4e-3, nesterov=False),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(
        optax.linear_schedule(0.02, 0.005, 30), alpha=0.9, beta=0.6
    ),
}


def trajectory(transform, params, gradients, take=lambda x: x, give=lambda name, x: x):
    """Yield the parameters after each step; `take` converts the inputs and `give` the results."""
    wide = {name: jax.numpy.asarray(take(p), "float64") for name, p in params.items()}
    transform = optax.with_extra_args_support(transform)
    state, update = transform.init(wide), jax.jit(transform.update)
    for step in range(STEPS):
        gradient = {name: jax.numpy.asarray(take(g[step]), "float64") for name, g in gradients.items()}
        updates, state = update(gradient, state, wide, value=VALUES[step])
        wide = optax.apply_updates(wide, updates)
        yield {name: np.asarray(give(name, p)) for name, p in wide.items()}


def main():
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", DeprecationWarning)
    params, gradients = draw_optimization(np.random.Generator(np.random.PCG64(20240607)))

    def restored(name, x):
        return np.reshape(x, params[name].shape)

    runs = {}
    for name, make in OPTAX.items():
        if "sm3" in name:
            runs[name] = trajectory(make(), params, gradients, np.atleast_1d, restored)
        else:
            runs[name] = trajectory(make(), params, gradients)
    # The units of optax are the columns of [in, out], so each array is transposed.
    runs["adaptive_grad_clip"] = trajectory(
        small(optax.adaptive_grad_clip(0.05)),
        params,
        gradients,
        lambda x: x.reshape(x.shape[0], -1).T if x.ndim > 1 else x,
        lambda name, x: restored(name, np.asarray(x).T),
    )
    tensors = of_recorded_steps({f"trajectories/{name}": run for name, run in runs.items()})
    write("variations", {"values": VALUES, **tensors})


if __name__ == "__main__":
    main()
