"""Record optimizers of optax and torch on fixed inputs, in float64.

Run with a Python that has both. Everything that a test needs, inputs too, is written to
`optimizers.safetensors` beside this file, so no test depends on numpy's random numbers. Names are
`params/LEAF`, `gradients/LEAF` (one row a step), `trajectories/OPTIMIZER/STEP/LEAF`, `schedules/NAME` (one
value a count) and `cross_entropy/CASE/WHAT`.
"""

from pathlib import Path

import jax
import numpy as np
import optax
import torch
from safetensors.numpy import load_file, save_file

STEPS = 50
RECORDED = (1, 10, 50)
SHAPES = {"scalar": (), "vector": (7,), "matrix": (3, 5), "tensor": (2, 3, 4)}

OPTAX = {
    "sgd": lambda: optax.sgd(0.1),
    "sgd_momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "sgd_nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adam_nesterov": lambda: optax.adam(1e-2, nesterov=True),
    "adam_eps_root": lambda: optax.adam(1e-2, eps=1e-4, eps_root=1e-6),
    "adamw_nesterov": lambda: optax.adamw(1e-2, nesterov=True),
    "adamw_masked": lambda: optax.adamw(
        1e-2, weight_decay=1e-2, mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    ),
    "clip_adamw_schedule": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-2, 10, 40, 1e-3), weight_decay=0.1),
    ),
    "accumulated_adam": lambda: optax.MultiSteps(optax.adam(1e-2), every_k_schedule=4),
}

TORCH = {
    "sgd_momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "sgd_nesterov": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-2, betas=(0.8, 0.99)),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
}

SCHEDULES = {
    "constant": optax.constant_schedule(0.3),
    "linear": optax.linear_schedule(0.2, 1.0, 50),
    "linear_late": optax.linear_schedule(1.0, 0.25, 40, transition_begin=20),
    "cosine": optax.cosine_decay_schedule(0.5, 80, alpha=0.1),
    "cosine_squared": optax.cosine_decay_schedule(0.5, 80, alpha=0.1, exponent=2.0),
    "warmup_cosine": optax.warmup_cosine_decay_schedule(0.1, 1.0, 20, 100, 0.05),
    "warmup_cosine_squared": optax.warmup_cosine_decay_schedule(0.1, 1.0, 20, 100, 0.05, exponent=2.0),
    "joined": optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, 30),
            optax.constant_schedule(0.5),
            optax.cosine_decay_schedule(1.0, 40),
        ],
        [30, 60],
    ),
}


def draw_optimization(rng):
    """Return random parameters, and gradients with norms below and above 1 and leaves of different scales."""
    params = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    sizes = 10 ** rng.uniform(-1.5, 0.5, STEPS)
    gradients = {}
    for name, shape in SHAPES.items():
        leaf = 1e-3 if name == "matrix" else 1.0  # so small that eps and eps_root have an effect
        size = (leaf * sizes).reshape(STEPS, *(1 for _ in shape))
        gradients[name] = (rng.uniform(-1, 1, (STEPS, *shape)) * size).astype(np.float32)
    return params, gradients


def optax_trajectory(transform, params, gradients):
    """Yield the parameters after each step."""
    params = {name: jax.numpy.asarray(p, "float64") for name, p in params.items()}
    state = transform.init(params)
    update = jax.jit(transform.update)
    for step in range(STEPS):
        gradient = {name: jax.numpy.asarray(g[step], "float64") for name, g in gradients.items()}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield {name: np.asarray(p) for name, p in params.items()}


def torch_trajectory(make, params, gradients):
    """Yield the parameters after each step."""
    params = {name: torch.tensor(p, dtype=torch.float64, requires_grad=True) for name, p in params.items()}
    optimizer = make(list(params.values()))
    for step in range(STEPS):
        for name, param in params.items():
            param.grad = torch.tensor(gradients[name][step], dtype=torch.float64)
        optimizer.step()
        yield {name: p.detach().numpy().copy() for name, p in params.items()}


def of_recorded_steps(runs):
    """Return the leaves after the recorded steps of each run, as `RUN/STEP/LEAF`."""
    return {
        f"{run}/{step}/{leaf}": np.asarray(value)
        for run, trajectory in runs.items()
        for step, leaves in enumerate(trajectory, start=1)
        if step in RECORDED
        for leaf, value in leaves.items()
    }


def trajectories(optax_makers, torch_makers, params, gradients):
    """Return the recorded steps of optimizers of both libraries, as `trajectories/OPTIMIZER/STEP/LEAF`."""
    runs = {
        f"trajectories/optax.{name}": optax_trajectory(make(), params, gradients)
        for name, make in optax_makers.items()
    }
    runs |= {
        f"trajectories/torch.{name}": torch_trajectory(make, params, gradients)
        for name, make in torch_makers.items()
    }
    return of_recorded_steps(runs)


def recorded_inputs():
    """Return the parameters and the gradients in `optimizers.safetensors`."""
    inputs = load_file(Path(__file__).with_name("optimizers.safetensors"))
    return tuple({name: inputs[f"{kind}/{name}"] for name in SHAPES} for kind in ("params", "gradients"))


def write(name, tensors):
    """Write a record beside this file."""
    arrays = {key: np.ascontiguousarray(x).reshape(np.shape(x)) for key, x in tensors.items()}
    save_file(arrays, Path(__file__).with_name(f"{name}.safetensors"))


def cross_entropy_case(logits, targets, weights=None, **options):
    """Return a case's inputs with the value of the mean loss and its gradient in float64."""
    wide = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    flat = (wide.reshape(-1, logits.shape[-1]), torch.tensor(targets).reshape(-1))
    inputs = {"logits": logits, "targets": targets}
    if weights is None:
        value = torch.nn.functional.cross_entropy(*flat, **options)
    else:
        inputs["weights"] = weights
        each = torch.nn.functional.cross_entropy(*flat, **options, reduction="none")
        weight = torch.tensor(weights, dtype=torch.float64).reshape(-1)
        value = (weight * each).sum() / weight.sum()
    value.backward()
    return {**inputs, "value": value.detach().numpy(), "gradient": wide.grad.numpy()}


def cross_entropy_cases(rng):
    """Return the cases by name; logits are [2, 6, 9]."""
    logits = rng.uniform(-4, 4, (2, 6, 9)).astype(np.float32)
    targets = rng.integers(0, 9, (2, 6))
    ignored = np.where(rng.uniform(size=(2, 6)) < 0.4, -100, targets)
    weights = (0.7 * rng.integers(0, 4, (2, 6))).astype(np.float32)
    rounded = torch.tensor(logits).bfloat16().float().numpy()
    return {
        "plain": cross_entropy_case(logits, targets),
        "ignored": cross_entropy_case(logits, ignored, ignore_index=-100),
        "smoothed": cross_entropy_case(logits, targets, label_smoothing=0.1),
        "ignored_smoothed": cross_entropy_case(logits, ignored, ignore_index=-100, label_smoothing=0.1),
        "weighted": cross_entropy_case(logits, targets, weights),
        "large": cross_entropy_case(2500 * logits, targets),
        "bfloat16": cross_entropy_case(rounded, targets),
        "bfloat16_smoothed": cross_entropy_case(rounded, targets, label_smoothing=0.1),
    }


def main():
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    rng = np.random.Generator(np.random.PCG64(20240607))
    params, gradients = draw_optimization(rng)
    tensors = {f"params/{name}": p for name, p in params.items()}
    tensors |= {f"gradients/{name}": g for name, g in gradients.items()}
    tensors |= trajectories(OPTAX, TORCH, params, gradients)
    for name, schedule in SCHEDULES.items():
        tensors[f"schedules/{name}"] = np.array([schedule(count) for count in range(121)], np.float64)
    for case, parts in cross_entropy_cases(rng).items():
        tensors |= {f"cross_entropy/{case}/{what}": part for what, part in parts.items()}
    write("optimizers", tensors)


if __name__ == "__main__":
    main()
