"""Arguments of other libraries' optimizers: errors that say what to write instead."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

# Names in other libraries of arguments that exist here. The first one that the optimizer has is suggested.
_CALLED = {
    "lr": ("learning_rate",),
    "step_size": ("learning_rate",),
    "betas": ("b1",),
    "beta1": ("b1",),
    "beta_1": ("b1",),
    "beta2": ("b2",),
    "beta_2": ("b2",),
    "epsilon": ("eps",),
    "alpha": ("decay",),
    "rho": ("decay",),
    "etas": ("eta_minus",),
    "step_sizes": ("min_step_size",),
    "wd": ("weight_decay", "weight_decay_rate"),
    "weight_decay": ("weight_decay_rate",),
    "clip_threshold": ("clipping_threshold", "clip_threshold"),
    "scale_parameter": ("multiply_by_parameter_scale",),
    "trust_coeff": ("trust_coefficient",),
}
_ALSO = {"betas": " and b2", "etas": " and eta_plus", "step_sizes": " and max_step_size"}

_DECAY = (
    "chain(transforms.add_decayed_weights({0}), optimizers.{name}(...)) adds it to the gradient, as PyTorch "
    "and MLX do; optimizers.adamw and optimizers.lion decouple it"
)
_CLIP = "chain(transforms.clip_by_global_norm({0}), optimizers.{name}(...)) clips by the global norm"
_SCHEDULE = "learning_rate takes a schedule, such as schedules.warmup_cosine_decay(...)"
_AVERAGE = "transforms.averaged(optimizers.{name}(...), decay) keeps an average of the parameters"
_COMPILED = "leave it out: ps.compiled compiles the whole step"
_INSTEAD = {
    "weight_decay": _DECAY,
    "wd": _DECAY,
    "l2": _DECAY,
    "decoupled_weight_decay": "optimizers.adamw decouples the decay",
    "amsgrad": "use optimizers.amsgrad",
    "momentum": "chain(transforms.trace({0}), optimizers.{name}(...)) adds momentum",
    "dampening": "leave it out, and multiply learning_rate by 1 - dampening",
    "maximize": "chain(transforms.scale(-1.0), optimizers.{name}(...)) maximizes",
    "bias_correction": "leave it out: bias correction is always applied",
    "max_norm": _CLIP,
    "max_grad_norm": _CLIP,
    "clip_norm": _CLIP,
    "clipnorm": _CLIP,
    "global_clipnorm": _CLIP,
    "gradient_clip": _CLIP,
    "grad_clip": _CLIP,
    "clip_value": "chain(transforms.clip({0}), optimizers.{name}(...)) clips elements",
    "clipvalue": "chain(transforms.clip({0}), optimizers.{name}(...)) clips elements",
    "mask": "transforms.masked(optimizers.{name}(...), mask) takes a mask",
    "use_ema": _AVERAGE,
    "ema_decay": _AVERAGE,
    "ema_momentum": _AVERAGE,
    "schedule": _SCHEDULE,
    "scheduler": _SCHEDULE,
    "lr_scheduler": _SCHEDULE,
    "lr_decay": _SCHEDULE,
    "warmup": _SCHEDULE,
    "warmup_steps": _SCHEDULE,
    "gradient_accumulation_steps": "transforms.accumulate(optimizers.{name}(...), every={0}) accumulates",
    "loss_scale_factor": "transforms.dynamic_loss_scale(optimizers.{name}(...)) scales the loss",
    "params": "leave it out: TrainState.create(params, transform) initializes the state",
    "foreach": _COMPILED,
    "fused": _COMPILED,
    "capturable": _COMPILED,
    "differentiable": "leave it out: a step is differentiable",
}


def refusing_unknown(optimizer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the optimizer such that an unknown argument raises an error that says what to write instead.

    >>> from purestep.optimizers import sgd
    >>> refusing_unknown(sgd)(0.1, lr=0.2)
    Traceback (most recent call last):
        ...
    TypeError: sgd: lr is not an argument; it is called learning_rate
    """
    known = inspect.signature(optimizer).parameters

    @functools.wraps(optimizer)
    def made(*args: Any, **kwargs: Any) -> Any:
        for argument, value in kwargs.items():
            if argument not in known:
                meant = instead(optimizer.__name__, argument, value, list(known))
                raise TypeError(f"{optimizer.__name__}: {argument} is not an argument; {meant}")
        return optimizer(*args, **kwargs)

    return made


def instead(name: str, argument: str, value: Any, known: Collection[str]) -> str:
    """Return what to write instead of an argument that an optimizer does not have."""
    for own in _CALLED.get(argument, ()):
        if own in known:
            return f"it is called {own}{_ALSO.get(argument, '')}"
    if argument in _INSTEAD:
        return _INSTEAD[argument].format(value, name=name)
    near = difflib.get_close_matches(argument, known, n=1)
    return f"did you mean {near[0]}?" if near else f"the arguments are {', '.join(known)}"


def refuse_unknown(namespace: dict[str, Any], names: Iterable[str]) -> None:
    """Make these functions of a namespace refuse unknown arguments, with `refusing_unknown`."""
    for name in names:
        namespace[name] = refusing_unknown(namespace[name])
