"""Record optimizers of optax.contrib, in float64, on the inputs in `optimizers.safetensors`.

Run with a Python that has optax and torch. The names in `contrib.safetensors` are
`trajectories/OPTIMIZER/STEP/LEAF`, and `evaluation/OPTIMIZER/STEP/LEAF` for the parameters for evaluation.
"""

import jax
import optax
from make_optimizers import (
    STEPS,
    of_recorded_steps,
    optax_trajectory,
    recorded_inputs,
    torch_trajectory,
    write,
)
from optax import contrib


def matrix_axes(params, **axes):
    """Return the (reduction, output) axes of the named leaves; None, which selects AdamW, for others."""
    return {name: contrib.MuonDimensionNumbers(*axes[name]) if name in axes else None for name in params}


def out_in(params):
    """Select the matrix as [out, in], as in MLX."""
    return matrix_axes(params, matrix=(1, 0))


def stacked(params):
    """Select the matrix as [in, out] and the tensor as two matrices [in, out]."""
    return matrix_axes(params, matrix=(0, 1), tensor=(1, 2))


def flattened(params):
    """Select the tensor as [out, everything else]."""
    return matrix_axes(params, matrix=(1, 0), tensor=((1, 2), 0))


def matrices(params):
    """Select the leaves of two or more axes."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


square_of_gradient = optax.GradientTransformation(
    lambda params: optax.EmptyState(),
    lambda updates, state, params=None: (jax.tree.map(lambda g: g**2, updates), state),
)

OPTAX = {
    "muon": lambda: contrib.muon(1e-2, muon_weight_dimension_numbers=out_in),
    "muon_decayed": lambda: contrib.muon(
        1e-2,
        beta=0.8,
        weight_decay=0.1,
        weight_decay_mask={"scalar": True, "vector": True, "matrix": True, "tensor": False},
        nesterov=False,
        adam_weight_decay=0.2,
        adam_learning_rate=3e-3,
        muon_weight_dimension_numbers=flattened,
        consistent_rms=0.2,
    ),
    "muon_stacked": lambda: contrib.muon(
        1e-2, "dion", preconditioning="schatten", muon_weight_dimension_numbers=stacked
    ),
    "muon_adaptive": lambda: contrib.muon(
        1e-2, ns_steps=3, adaptive=True, preconditioning="aol", muon_weight_dimension_numbers=stacked
    ),
    "adan": lambda: optax.adan(1e-2, weight_decay=0.1, mask=matrices),
    "adan_smooth": lambda: optax.adan(1e-2, b1=0.9, b2=0.8, b3=0.95, eps=1e-4, eps_root=1e-6),
    "ademamix": lambda: contrib.ademamix(1e-2, weight_decay=0.1),
    "ademamix_scheduled": lambda: contrib.ademamix(
        1e-2,
        b3=optax.linear_schedule(0.9, 0.999, 30),
        alpha=optax.linear_schedule(0.0, 5.0, 30),
        eps_root=1e-6,
    ),
    "simplified_ademamix": lambda: contrib.simplified_ademamix(1e-3, weight_decay=0.1, mask=matrices),
    "simplified_ademamix_mixed": lambda: contrib.simplified_ademamix(
        1e-3, b1=0.9, b2=0.9, alpha=optax.linear_schedule(0.0, 5.0, 30), eps=1e-4, eps_root=1e-6
    ),
    "adopt": lambda: contrib.adopt(1e-2),
    "adopt_nesterov": lambda: contrib.adopt(1e-2, b1=0.8, b2=0.99, eps=1e-4, nesterov=True),
    "adopt_unclipped": lambda: contrib.adopt(1e-5, use_clipping=False),
    "distance_over_gradients": lambda: optax.chain(
        optax.scale_by_distance_over_gradients(reps_rel=1e-3), optax.scale(-1.0)
    ),
    "dog": lambda: contrib.dog(init_step=("heuristic", 1e-3), weight_decay=0.1),
    "dog_distance": lambda: contrib.dog(0.5, init_step=("distance", 1e-2)),
    "dog_learning_rate": lambda: contrib.dog(init_step=("learning_rate", 1e-2), eps=1e-4),
    "dowg": lambda: contrib.dowg(weight_decay=0.1, mask=matrices),
    "dowg_guess": lambda: contrib.dowg(0.5, init_estim_sq_dist=1e-2, eps=1e-3),
    "madgrad": lambda: contrib.madgrad(1e-2),
    "madgrad_decayed": lambda: contrib.madgrad(
        optax.linear_schedule(1e-2, 0.0, 40), momentum=0.5, weight_decay=0.1, eps=1e-3
    ),
    "prodigy": lambda: contrib.prodigy(weight_decay=0.1, estim_lr0=1e-4),
    "prodigy_safeguarded": lambda: contrib.prodigy(
        optax.linear_schedule(0.0, 1.0, 20),
        betas=(0.8, 0.99),
        beta3=0.9,
        estim_lr0=1e-3,
        estim_lr_coef=2.0,
        safeguard_warmup=True,
    ),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(estim_lr0=1e-4, weight_decay=0.1),
    "dadapt_adamw_scheduled": lambda: contrib.dadapt_adamw(
        optax.linear_schedule(0.1, 1.0, 20), betas=(0.8, 0.99), eps=1e-4, estim_lr0=1e-3
    ),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(0.1, warmup_steps=10, weight_decay=0.1),
    "schedule_free_sgd_constant": lambda: contrib.schedule_free_sgd(0.1, b1=0.5, weight_lr_power=0.0),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(1e-2, warmup_steps=10, weight_decay=0.1),
    "schedule_free": lambda: contrib.schedule_free(
        optax.adam(optax.linear_schedule(1e-2, 0.0, 40), b1=0.0),
        optax.linear_schedule(1e-2, 0.0, 40),
        b1=0.95,
        weight_lr_power=1.0,
    ),
    "sophia": lambda: contrib.sophia(1e-2, hessian_diagonal_fn=square_of_gradient),
    "sophia_often": lambda: contrib.sophia(
        1e-2,
        b1=0.9,
        b2=0.5,
        eps=1e-2,
        weight_decay=0.1,
        weight_decay_mask=matrices,
        gamma=0.5,
        clip_threshold=None,
        update_interval=3,
        hessian_diagonal_fn=square_of_gradient,
    ),
}


def evaluation(transform, params, gradients):
    """Yield the result of schedule_free_eval_params after each step."""
    params = {name: jax.numpy.asarray(p, "float64") for name, p in params.items()}
    state = transform.init(params)
    for step in range(STEPS):
        gradient = {name: jax.numpy.asarray(g[step], "float64") for name, g in gradients.items()}
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield contrib.schedule_free_eval_params(state, params)


def torch_muon(params, gradients):
    """Yield the parameters after each step; torch's Muon takes only matrices and iterates in bfloat16."""
    import torch

    matrix = {"matrix": params["matrix"]}
    yield from torch_trajectory(
        lambda values: torch.optim.Muon(values, lr=1e-2, weight_decay=0.1, nesterov=False), matrix, gradients
    )


def main():
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    params, gradients = recorded_inputs()
    runs = {
        f"trajectories/{name}": optax_trajectory(make(), params, gradients) for name, make in OPTAX.items()
    }
    runs["trajectories/torch.muon"] = torch_muon(params, gradients)
    for name in ("schedule_free_sgd", "schedule_free_adamw"):
        runs[f"evaluation/{name}"] = evaluation(OPTAX[name](), params, gradients)
    write("contrib", of_recorded_steps(runs))


if __name__ == "__main__":
    main()
