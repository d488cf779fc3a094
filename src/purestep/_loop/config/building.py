"""The schedule, the optimizer and the step that a `TrainConfig` describes."""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import LossFn, Params, Schedule, Tree
from purestep._loop.config.config import TrainConfig
from purestep._loop.config.measuring import measurements
from purestep._schedules.standard import constant, join_schedules, linear, warmup_cosine_decay
from purestep._schedules.warmup import warmup_linear_decay, warmup_stable_decay
from purestep._steps.compile import Compiled, compiled
from purestep._steps.loss_scaled import loss_scaled_step
from purestep._steps.step import Step
from purestep._steps.train import train_step
from purestep._transforms.algorithms.adagrad.adafactor import scale_by_factored_rms
from purestep._transforms.algorithms.adam.adam import scale_by_adam
from purestep._transforms.algorithms.adam.ademamix import scale_by_ademamix
from purestep._transforms.algorithms.layerwise.muon import scale_by_muon, scale_by_shape
from purestep._transforms.algorithms.layerwise.mup import hidden_matrices, scale_by_width
from purestep._transforms.algorithms.layerwise.splitting import matrices_and_rest
from purestep._transforms.algorithms.layerwise.trust_ratio import scale_by_trust_ratio
from purestep._transforms.algorithms.momentum.lion import scale_by_lion
from purestep._transforms.core.base import GradientTransform
from purestep._transforms.core.combining import chain
from purestep._transforms.core.masks import Mask
from purestep._transforms.pieces.clipping import clip_by_block_rms, clip_by_global_norm
from purestep._transforms.pieces.momentum import trace
from purestep._transforms.pieces.scaling import scale_by_learning_rate
from purestep._transforms.pieces.weight_decay import add_decayed_weights, matrices
from purestep._transforms.wrappers.accumulation import accumulate
from purestep._transforms.wrappers.loss_scaling import dynamic_loss_scale

_DECAY_RATIO = 0.2  # of a wsd schedule
_MATCH_ADAMW = 0.2  # the root mean square of Muon's updates, so that AdamW's rates suit it
_L2 = ("adam", "sgd")  # the decay is part of the gradient, as in PyTorch's Adam and SGD
_MUP = ("adamw", "adam", "nadamw", "ademamix", "lion", "adafactor")


def create_schedule(config: TrainConfig) -> Schedule:
    """Return the learning rate as a function of the number of steps made so far.

    During the warm-up the rate rises linearly, from `learning_rate / (warmup_steps + 1)` at count 0 to
    `learning_rate` at count `warmup_steps`; no step has a rate of 0. From there to `max_steps`, with `end`
    for `min_lr_ratio * learning_rate`:

    | `lr_schedule` | rate |
    |---|---|
    | `cosine` | half a cosine from `learning_rate` to `end` |
    | `linear` | a line from `learning_rate` to `end` |
    | `wsd` | `learning_rate`, then a line to `end` in the last `decay_ratio * max_steps` steps |
    | `constant` | `learning_rate` |

    From `max_steps` on, the rate is constant. The warm-up may have 0 steps, or `max_steps`: the rate then
    only rises, and the decay is a jump at `max_steps`. A `wsd` decay that is longer than the steps after
    the warm-up starts at its end.

    Args:
        config: `learning_rate`, `warmup_steps`, `max_steps`, `lr_schedule`, `min_lr_ratio` and
            `decay_ratio` are used.

    Reference: cosine: Loshchilov and Hutter, arXiv:1608.03983; wsd: Hu et al., MiniCPM, arXiv:2404.06395.

    >>> rate = create_schedule(TrainConfig(learning_rate=1.0, warmup_steps=3, max_steps=13))
    >>> [round(rate(mx.array(n)).item(), 3) for n in (0, 1, 3, 8, 13)]
    [0.25, 0.5, 1.0, 0.55, 0.1]
    """
    _check_config("create_schedule", config)
    peak, warmup, total, low = (
        config.learning_rate,
        config.warmup_steps,
        config.max_steps,
        config.min_lr_ratio,
    )
    first = peak / (warmup + 1)
    if config.lr_schedule == "constant":
        return linear(first, peak, warmup) if warmup else constant(peak)
    if config.lr_schedule == "linear":
        return warmup_linear_decay(first, peak, warmup, total, low)
    if config.lr_schedule == "wsd":
        ratio = _DECAY_RATIO if config.decay_ratio is None else config.decay_ratio
        decay = min(max(round(ratio * total), 1), total - warmup)
        return warmup_stable_decay(first, peak, warmup, total - warmup - decay, decay, low)
    if warmup == total:
        return join_schedules([linear(first, peak, warmup), constant(low * peak)], [warmup])
    return warmup_cosine_decay(first, peak, warmup, total, low * peak)


def create_optimizer(
    config: TrainConfig, *, mask: Mask | None = None, hidden: Tree | Callable[..., Any] = hidden_matrices
) -> GradientTransform:
    """Return the gradient transform that a configuration describes.

    In this order, and each only if the configuration has it: dynamic loss scaling (for float16), `accumulate`
    over `grad_accumulation_steps` and, for the mean gradient of a window, `clip_by_global_norm`, the
    optimizer's direction, weight decay and `create_schedule`. The schedule counts steps, also if only every
    k-th step updates: the rate of an update is that of the first step of its window.

    | `optimizer` | direction | weight decay |
    |---|---|---|
    | `adamw`, `nadamw` | `scale_by_adam`, its biases corrected | decoupled |
    | `adam` | `scale_by_adam` | added to the gradient |
    | `ademamix` | `scale_by_ademamix` | decoupled |
    | `lamb` | `scale_by_adam`, then `scale_by_trust_ratio` after the decay | decoupled |
    | `lion` | `scale_by_lion` | decoupled |
    | `adafactor` | `scale_by_factored_rms`, `clip_by_block_rms(1.0)` | decoupled |
    | `muon` | `scale_by_muon` for hidden matrices, of AdamW's size; else `scale_by_adam` | decoupled |
    | `sgd` | `trace` | added to the gradient |

    A decoupled decay subtracts `rate * weight_decay * param` in each update. The rate of `adafactor` is the
    configuration's: it is neither relative to the parameters nor replaced by one of its own.

    Args:
        config: the hyperparameters.
        mask: the parameters that decay, in any form that `masked` accepts. `None` selects those with two or
            more axes, so biases and norms do not decay.
        hidden: the matrices that Muon trains, as `matrices` in `scale_by_muon`. The default excludes
            embeddings by their names.

    Reference: AdamW: Loshchilov and Hutter, arXiv:1711.05101; Muon of AdamW's size: Liu et al.,
    arXiv:2502.16982; the others: see `purestep.optimizers`.

    >>> config = TrainConfig(learning_rate=0.1, weight_decay=0.0, lr_schedule="constant", warmup_steps=0)
    >>> transform, params = create_optimizer(config), {"w": mx.array([[1.0, 1.0]])}
    >>> transform.update({"w": mx.array([[4.0, -3.0]])}, transform.init(params), params)[0]
    {'w': array([[-0.1, 0.1]], dtype=float32)}
    """
    _check_config("create_optimizer", config)
    return _optimizer(config, matrices if mask is None else mask, hidden, None)


def create_mup_optimizer(
    config: TrainConfig,
    *,
    width_mult: float,
    mask: Mask | None = None,
    hidden: Tree | Callable[..., Any] = hidden_matrices,
) -> GradientTransform:
    """Return the optimizer of `create_optimizer` with the learning rates of muP.

    A configuration that was tuned on a narrow model then suits a wider one. With `m` for `width_mult`, the
    steps of matrices whose number of inputs grows with the width are divided by `m`. Norms, biases and
    embeddings are left at the full rate. Weight decay is not divided: each update still subtracts
    `rate * weight_decay * param`. muP also has rules for the model, which `optimizers.mup` lists.

    The rule holds for optimizers whose steps do not depend on the scale of the gradients: adamw, adam,
    nadamw, ademamix, lion, adafactor. sgd, muon and lamb have other rules and are refused.

    Args:
        config: hyperparameters that were tuned on the narrow model.
        width_mult: the width of this model over that of the tuned one, above 0.
        mask: the parameters that decay, as in `create_optimizer`.
        hidden: the matrices whose steps are divided, as `mask` in `scale_by_width`.

    Raises:
        ValueError: for an optimizer with other rules.

    Reference: Yang et al., Tensor programs V, arXiv:2203.03466, tables 3 and 8.

    >>> config = TrainConfig(learning_rate=0.1, weight_decay=0.0, lr_schedule="constant", warmup_steps=0)
    >>> transform = create_mup_optimizer(config, width_mult=4)
    >>> params = {"fc": mx.ones((1, 2)), "norm": mx.ones(1)}
    >>> transform.update(params, transform.init(params), params)[0]
    {'fc': array([[-0.025, -0.025]], dtype=float32), 'norm': array([-0.1], dtype=float32)}
    """
    caller = "create_mup_optimizer"
    _check_config(caller, config)
    width_mult = checks.number(caller, "width_mult", width_mult, above=0)
    if config.optimizer not in _MUP:
        rule = f"config.optimizer must be one of {', '.join(_MUP)}"
        raise checks.error(caller, f"{rule}, got {config.optimizer!r}: muP has other rules for it")
    narrow = scale_by_width(width_mult, hidden)
    return _optimizer(config, matrices if mask is None else mask, hidden, narrow)


def create_step(
    config: TrainConfig,
    loss_fn: LossFn,
    transform: GradientTransform | None = None,
    *,
    stateful: bool = False,
    reference: Params | None = None,
) -> Step | Compiled:
    """Return the training step that a configuration describes.

    The loss function receives the parameters in `config.dtype`; gradients, parameters and optimizer state
    stay float32. The step is compiled if `compile_step` is true. With float16 it is a `loss_scaled_step`.

    Args:
        config: `dtype`, `compile_step`, `measure` and `measure_every` are used, and all of the optimizer's
            fields.
        loss_fn: as in `train_step`.
        stateful: as in `train_step`.
        transform: the optimizer; `None` is `create_optimizer(config)`. For float16 it contains
            `dynamic_loss_scale`.
        reference: the first parameters, from which the measurement `drift` is computed. They stay in memory.

    Raises:
        ValueError: if `measure` has `drift` and there is no reference.

    >>> config = TrainConfig(learning_rate=0.1, warmup_steps=0, dtype="bfloat16")
    >>> step = create_step(config, lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean())
    >>> import purestep as ps
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, create_optimizer(config), seed=config.seed)
    >>> state, metrics = step(state, {"x": mx.array([1.0, 3.0])})
    >>> metrics["loss"], state.params["w"].dtype == mx.float32
    (array(5, dtype=float32), True)
    """
    _check_config("create_step", config)
    build = loss_scaled_step if config.dtype == "float16" else train_step
    transform = create_optimizer(config) if transform is None else transform
    measure = measurements("create_step", config, reference)
    step = build(computed_in(config, loss_fn), transform, stateful=stateful, measure=measure)
    return compiled(step) if config.compile_step else step


def computed_in(config: TrainConfig, loss_fn: LossFn) -> LossFn:
    """Return the loss function, which casts the parameters to the dtype of the configuration first."""
    if config.dtype == "float32" or not callable(loss_fn):
        return loss_fn
    given: Any = loss_fn
    dtype = getattr(mx, config.dtype)

    @functools.wraps(given)
    def cast(params: Any, *rest: Any) -> Any:
        return given(tree.cast(params, dtype), *rest)

    return cast


def _optimizer(
    config: TrainConfig, mask: Mask, hidden: Any, narrow: GradientTransform | None
) -> GradientTransform:
    decay = [add_decayed_weights(config.weight_decay, mask)] if _is_set(config.weight_decay) else []
    members = [clip_by_global_norm(config.max_grad_norm)] if _is_set(config.max_grad_norm) else []
    if config.optimizer in _L2:
        members += decay
    members.append(_direction(config, hidden))
    if narrow is not None:
        members.append(narrow)
    if config.optimizer not in _L2:
        members += decay
    if config.optimizer == "lamb":
        members.append(scale_by_trust_ratio())
    schedule, every = create_schedule(config), config.grad_accumulation_steps
    members.append(scale_by_learning_rate(lambda count: schedule(count * every)))
    transform = chain(*members)
    if every > 1:
        transform = accumulate(transform, every=every)
    return dynamic_loss_scale(transform) if config.dtype == "float16" else transform


def _is_set(value: Any) -> bool:
    """Return whether a number is not 0. An array, as a sweep has in its optimizer's state, is not read."""
    return isinstance(value, mx.array) or value != 0


def _direction(config: TrainConfig, hidden: Any) -> GradientTransform:
    """Return the transform from gradients to steps of a rate of 1, which are subtracted."""
    name = config.optimizer
    given: dict[str, Any] = {"b1": config.b1, "b2": config.b2}
    means = {name: value for name, value in given.items() if value is not None}
    if name == "lion":
        return scale_by_lion(**means)
    if name == "ademamix":
        return scale_by_ademamix(**means, alpha=5.0)
    if name == "adafactor":
        return chain(scale_by_factored_rms(), clip_by_block_rms(1.0))
    if name == "sgd":
        return trace(0.9 if config.momentum is None else config.momentum)
    if name == "muon":
        on_matrices = chain(
            scale_by_muon(beta=0.95 if config.momentum is None else config.momentum, matrices=hidden),
            scale_by_shape(consistent_rms=_MATCH_ADAMW, matrices=hidden),
        )
        return matrices_and_rest(on_matrices, scale_by_adam(**means), hidden)
    return scale_by_adam(**means, nesterov=name == "nadamw", eps=1e-6 if name == "lamb" else 1e-8)


def _check_config(caller: str, config: Any) -> None:
    if not isinstance(config, TrainConfig):
        raise TypeError(f"{caller}: config must be a TrainConfig, got {checks.shown(config)}")
