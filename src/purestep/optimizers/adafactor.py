"""Adafactor: little memory, steps relative to the parameters."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from purestep import checks, tree
from purestep.transforms.adafactor import scale_by_factored_rms
from purestep.transforms.base import GradientTransform, checked
from purestep.transforms.block import scale_by_param_block_rms
from purestep.transforms.bounding import clip_by_block_rms
from purestep.transforms.combining import chain
from purestep.transforms.scaling import scale, scale_by_learning_rate
from purestep.transforms.weight_decay import add_decayed_weights
from purestep.types import Params, ScalarOrSchedule, Tree, Updates


def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int | mx.array = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | mx.array | None = 1.0,
    momentum: float | None = None,
    dtype_momentum: mx.Dtype = mx.float32,
    weight_decay_rate: float | mx.array | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Tree | Callable[[Params], Tree] | None = None,
) -> GradientTransform:
    """Scale by factored mean squares, clip, rate, parameter scale, momentum, decay, then flip the sign.

    `scale_by_factored_rms`, `clip_by_block_rms`, `scale_by_learning_rate`, `scale_by_param_block_rms`, a
    running mean, `add_decayed_weights` and `scale(-1)`; a member whose argument is `None` or false is
    left out. A learning rate that is given is the one that is used: nothing replaces or bounds it.
    `weight_decay_rate` is not multiplied by it. Reference: arXiv:1804.04235.

    Args:
        learning_rate: a number of at least 0, or a schedule; relative to the parameters' scale unless
            `multiply_by_parameter_scale` is false.
        min_dim_size_to_factor: as in `scale_by_factored_rms`: both of the two largest axes have as much.
        decay_rate: the exponent of the decay.
        decay_offset: updates by which the decay starts later.
        multiply_by_parameter_scale: make steps relative.
        clipping_threshold: as in `clip_by_block_rms`.
        momentum: decay of a running mean of updates, in [0, 1), not corrected for its start at zero.
        dtype_momentum: the dtype in which that mean is stored.
        weight_decay_rate: as in `add_decayed_weights`.
        eps: added to squares.
        factored: false keeps whole mean squares.
        weight_decay_mask: which parameters decay.

    >>> transform = adafactor(0.1)
    >>> params = {"w": mx.array([2.0, -2.0])}
    >>> transform.update({"w": mx.array([3.0, 0.5])}, transform.init(params), params)[0]
    {'w': array([-0.2, -0.2], dtype=float32)}
    """
    members = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        members.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        members.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        members.append(scale_by_param_block_rms())
    if momentum is not None:
        members.append(_running_mean(momentum, dtype_momentum))
    if weight_decay_rate is not None:
        members.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*members, scale(-1.0))


class RunningMeanState(NamedTuple):
    """State of adafactor's momentum.

    Attributes:
        ema: like params, in `dtype_momentum`, the running mean of updates.
    """

    ema: Tree


def _running_mean(decay: float, dtype: mx.Dtype) -> GradientTransform:
    decay = checks.number("adafactor", "momentum", decay, least=0, below=1)

    def update(
        updates: Updates, state: RunningMeanState, params: Params | None = None
    ) -> tuple[Updates, RunningMeanState]:
        ema = tree.map(
            lambda u, m: decay * m.astype(mx.float32) + (1 - decay) * u.astype(mx.float32), updates, state.ema
        )
        return ema, RunningMeanState(tree.map(lambda m: m.astype(dtype), ema))

    return checked("adafactor", lambda params: RunningMeanState(tree.zeros_like(params, dtype)), update)
