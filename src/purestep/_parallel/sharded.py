"""A training step whose optimizer state is divided over several processes."""

from collections.abc import Sequence

import mlx.core as mx

from purestep._core import collective
from purestep._core.types import LossFn, Params, Tree
from purestep._parallel.data_parallel import agreeing, agreeing_once, check_reduce_dtype
from purestep._parallel.groups import group_of
from purestep._steps.core.measuring import Measurement
from purestep._steps.core.ranks import sharding
from purestep._steps.core.ranks.summing import Chain, Ranks
from purestep._steps.step import Step
from purestep._steps.train import step_for
from purestep._transforms.core.base import GradientTransform, check_transform
from purestep._transforms.core.unpacking import accepting

_CALLER = "sharded"


def sharded(
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    group: mx.distributed.Group | None = None,
    microbatches: int = 1,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
    reduce_dtype: mx.Dtype = mx.float32,
) -> Step:
    """Build a `data_parallel` step in which each process holds a part of the optimizer state.

    Parameters are vectors, as in `ps.packed`, and each rank updates a part of each vector. It receives its
    part of the summed gradients, computes its part of the update, and all ranks gather the new parameters.
    The optimizer state takes 1 / ranks of the memory on each rank (ZeRO-1). With NCCL and JACCL, gradients
    are summed by a reduce-scatter, so a rank never holds all of the sums (ZeRO-2). The other backends have
    none: there, gradients are summed by an all-reduce, and each rank keeps its part.

    The optimizer state belongs to the step's own transform, so create the state with it:
    `TrainState.create(params, step.transform)`. `state.params` is whole on every rank. Parameters from
    `ps.packed` are not copied; others are joined at every step.

    The transform must treat all elements alike, such as Adam, Lion, and chains and masks of these. Norms of
    the whole tree, such as that of `clip_by_global_norm`, are computed over all ranks. A transform that needs
    whole arrays, such as Muon, LARS or Adafactor, is refused. Random numbers that the transform draws differ
    from those of `data_parallel`.

    The gradients and updates of `step.parts` are the parts of the rank. Measurements receive whole ones,
    which are gathered at the steps that measure.

    Args:
        loss_fn: as in `train_step`.
        transform: as in `train_step`, of elements.
        group: as in `data_parallel`.
        microbatches: as in `data_parallel`.
        stateful: as in `data_parallel`.
        measure: as in `data_parallel`.
        reduce_dtype: as in `data_parallel`.

    Raises:
        ValueError, TypeError: as in `data_parallel`; when the state is created, for a transform that needs
            whole arrays; on the first call, for a state that was not created with the step's transform.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> step = ps.sharded(loss_fn, ps.optimizers.adamw(0.5, weight_decay=0.0))
    >>> state = ps.TrainState.create(ps.packed({"w": mx.array([0.0])}), step.transform)
    >>> state, metrics = step(state, {"x": mx.array([1.0, 3.0])})  # this rank's rows
    >>> ps.unpacked(state.params)["w"], metrics["loss"]
    (array([0.5], dtype=float32), array(5, dtype=float32))
    """
    processes = group_of(_CALLER, group)
    check_transform(_CALLER, "transform", transform)
    check_reduce_dtype(_CALLER, reduce_dtype)
    size = processes.size()
    ranks = None
    if size > 1:
        options = {"microbatches": microbatches, "stateful": stateful, "reduce_dtype": reduce_dtype}
        agree = agreeing_once(_CALLER, options, measure, processes)
        ranks = Ranks(processes, size, processes.rank(), reduce_dtype, True, _scatters(processes), agree)
        transform = in_parts(transform, ranks)
    inner = step_for(
        _CALLER,
        loss_fn,
        transform,
        microbatches=microbatches,
        stateful=stateful,
        measure=measure,
        ranks=ranks,
    )
    return inner if ranks is None else agreeing(_CALLER, inner, transform, processes)


def in_parts(transform: GradientTransform, ranks: Ranks) -> GradientTransform:
    """Return the transform whose `init` makes the state of the part of this rank."""

    @accepting
    def init(params: Params) -> Tree:
        chain = Chain(ranks, mx.array(0))
        with collective.over_parts(chain.sum):
            return transform.init(sharding.own_part(ranks, params))

    return GradientTransform(init, transform.update)


def _scatters(group: mx.distributed.Group) -> bool:
    """Return whether the group has a reduce-scatter. MLX does not tell, so a small one is tried."""
    try:
        mx.eval(mx.distributed.sum_scatter(mx.zeros(group.size()), group=group))
    except RuntimeError:
        return False
    return True
