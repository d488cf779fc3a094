"""Record adaptive and sign optimizers of optax and torch on the inputs in `optimizers.safetensors`.

Run with a Python that has both. Names in the file are `trajectories/OPTIMIZER/STEP/LEAF`, in float64.
"""

import jax
import optax
import torch
from make_optimizers import recorded_inputs, trajectories, write

SCHEDULE = optax.linear_schedule(1e-2, 1e-3, 40)


def matrices(params):
    """Select the parameters of two or more axes."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def rprop_in_time(**options):
    """Return optax's Rprop with the update in its state; the update that it returns is a step late."""
    late = optax.scale_by_rprop(**options)

    def update(updates, state, params=None):
        _, state = late.update(updates, state, params)
        return jax.tree.map(lambda u: -u, state.prev_updates), state

    return optax.GradientTransformation(late.init, update)


OPTAX = {
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "rmsprop_corrected": lambda: optax.rmsprop(1e-2, decay=0.99, eps_in_sqrt=False, bias_correction=True),
    "rmsprop_centered": lambda: optax.rmsprop(
        1e-2, eps=1e-6, initial_scale=0.5, centered=True, momentum=0.9, nesterov=True
    ),
    "rmsprop_centered_corrected": lambda: optax.rmsprop(1e-2, eps=1e-3, centered=True, bias_correction=True),
    "adagrad": lambda: optax.adagrad(SCHEDULE),
    "adagrad_from_0": lambda: optax.adagrad(1e-2, initial_accumulator_value=0.0, eps=0.0),
    "lion": lambda: optax.lion(1e-3),
    "lion_masked": lambda: optax.lion(SCHEDULE, b1=0.8, b2=0.9, weight_decay=0.1, mask=matrices),
    "lion_smooth": lambda: optax.chain(
        optax.scale_by_lion(mode="smooth", smooth_beta=2.0), optax.scale_by_learning_rate(1e-2)
    ),
    "lion_refined": lambda: optax.chain(
        optax.scale_by_lion(mode="refined"), optax.scale_by_learning_rate(1e-2)
    ),
    "sign_sgd": lambda: optax.sign_sgd(1e-2),
    "signum": lambda: optax.signum(1e-2, beta=0.8),
    "nadam": lambda: optax.nadam(1e-2),
    "nadamw": lambda: optax.nadamw(1e-2, b1=0.8, weight_decay=0.1, mask=matrices),
    "adamax": lambda: optax.adamax(1e-2),
    "adamaxw": lambda: optax.adamaxw(SCHEDULE, b2=0.9, weight_decay=0.1, mask=matrices),
    "amsgrad": lambda: optax.amsgrad(1e-2, b2=0.9),
    "amsgrad_uncorrected": lambda: optax.amsgrad(
        1e-2, eps=1e-4, eps_root=1e-6, bias_correction_mu=False, bias_correction_nu=False
    ),
    "adabelief": lambda: optax.adabelief(1e-2),
    "adabelief_nesterov": lambda: optax.adabelief(1e-2, b2=0.99, eps=1e-4, eps_root=1e-6, nesterov=True),
    "yogi": lambda: optax.yogi(1e-2),
    "yogi_high": lambda: optax.chain(
        optax.scale_by_yogi(b2=0.9, eps_root=1e-6, initial_accumulator_value=0.1),
        optax.scale_by_learning_rate(1e-2),
    ),
    "radam": lambda: optax.radam(1e-2),
    "radam_nesterov": lambda: optax.radam(1e-2, b2=0.9, eps_root=1e-6, threshold=6.0, nesterov=True),
    "radam_never": lambda: optax.radam(1e-2, b2=0.5),
    "novograd": lambda: optax.novograd(1e-2),
    "novograd_decayed": lambda: optax.novograd(1e-2, b2=0.9, eps_root=1e-6, weight_decay=0.1),
    "adadelta": lambda: optax.adadelta(1.0),
    "adadelta_masked": lambda: optax.adadelta(0.1, rho=0.8, weight_decay=0.1, weight_decay_mask=matrices),
    "rprop_in_time": lambda: rprop_in_time(learning_rate=1e-2),
}

TORCH = {
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-2),
    "rmsprop_centered": lambda params: torch.optim.RMSprop(params, lr=1e-2, momentum=0.9, centered=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2, initial_accumulator_value=0.1, eps=0.0),
    # A momentum_decay so large that the momentum is betas[0] from the first step, as in optax.
    "nadam": lambda params: torch.optim.NAdam(params, lr=1e-2, momentum_decay=1e6),
    "adamax": lambda params: torch.optim.Adamax(params, lr=1e-2),
    # Torch takes the largest mean square before its bias correction, which has no effect for a decay of 0.
    "amsgrad": lambda params: torch.optim.Adam(params, lr=1e-2, betas=(0.9, 0.0), amsgrad=True),
    "radam": lambda params: torch.optim.RAdam(params, lr=1e-2, eps=0.0),
    "adadelta": lambda params: torch.optim.Adadelta(params, lr=0.5, weight_decay=0.1),
    "rprop": lambda params: torch.optim.Rprop(params, lr=1e-2),
    "rprop_bounded": lambda params: torch.optim.Rprop(
        params, lr=1e-2, etas=(0.25, 1.5), step_sizes=(5e-3, 2e-2)
    ),
}


def main():
    """Write the file."""
    jax.config.update("jax_enable_x64", True)
    write("adaptive", trajectories(OPTAX, TORCH, *recorded_inputs()))


if __name__ == "__main__":
    main()
