"""The training step of a contrastive loss over a batch whose activations do not fit in memory at once."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Batch, Encoder, LossOutput, Params, Tree
from purestep._steps.core import measuring
from purestep._steps.core.batches import check_batch
from purestep._steps.core.cached import Contrast, Inputs, cached_loss
from purestep._steps.core.measuring import Measurement
from purestep._steps.core.outcome import check_loss_fn, check_takes
from purestep._steps.step import Step
from purestep._steps.train import step_for
from purestep._transforms.core.base import GradientTransform


def cached_contrastive_step(
    encode: Encoder,
    loss_fn: Callable[[Params, Tree, Batch], LossOutput],
    transform: GradientTransform,
    *,
    microbatches: int,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
) -> Step:
    """Build a training step with a loss over the whole batch and an encoder that receives one part at a time.

    In a contrastive loss every example is a negative of all others, so the loss cannot be divided into
    parts. This step computes the gradient over the whole batch with the activations of one part in memory:

    1. It encodes each microbatch, and keeps only the representations.
    2. It computes the loss over all representations, and the gradient with respect to the representations.
    3. It encodes each microbatch again, with the same key, and passes that gradient back through the encoder.

    The cost is one more forward pass of the encoder than `train_step` on the whole batch. The gradient is the
    same up to rounding. The encoder's random draws, such as those of Dropout, depend on the number of
    microbatches, and are the same in both passes.

    The step itself can be differentiated, which needs the activations of all parts in memory. The result is
    that of `train_step` on the whole batch. No gradient flows through the batch and the model_state.

    Args:
        encode: `encode(params, batch, rng) -> representations`, a tree of floating-point arrays with the
            first axis of the batch, such as `{"queries": ..., "keys": ...}`.
        loss_fn: `loss_fn(params, representations, batch) -> loss` or `-> (loss, metrics)`, over the whole
            batch, with loss and metrics as in `train_step`. It may use `params`, for example a learned
            temperature.
        transform: as in `train_step`.
        microbatches: the number of parts into which the batch is cut for the encoder.
        stateful: the encoder is `encode(params, model_state, batch, rng) -> (representations, model_state)`.
            Each microbatch passes its model_state to the next. The step returns the last one of the first
            pass.
        measure: as in `train_step`. Layers are recorded in the first pass of the encoder, over the whole
            batch; those that `loss_fn` runs are not. Measurements that need the gradient of each microbatch,
            such as `noise_scale`, are refused: the loss of one part does not exist.

    Returns:
        A `Step` with the metrics of `train_step`. Gradients are summed in float32 and rounded once to the
        dtype of the parameters.

    Raises:
        TypeError: when the step is built, if a function takes other arguments.
        ValueError: when the step is built, for a measurement that needs the gradient of each microbatch.
        ValueError, TypeError: on the first call, as `train_step`; also for representations that are not
            floating-point arrays, or that do not have one row for each example of the microbatch.

    Reference: Gao et al., arXiv:2101.06983.

    >>> import purestep as ps
    >>> encode = lambda params, batch, rng: {"queries": batch["a"] @ params["w"], "keys": batch["b"]}
    >>> loss_fn = lambda params, found, batch: ps.losses.info_nce(**found, temperature=1.0)
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create({"w": mx.eye(4)}, transform)
    >>> step = cached_contrastive_step(encode, loss_fn, transform, microbatches=2)
    >>> state, metrics = step(state, {"a": mx.eye(4), "b": mx.eye(4)})
    >>> metrics["loss"]
    array(0.743668, dtype=float32)
    """
    caller = "cached_contrastive_step"
    check_loss_fn(caller, encode, stateful=stateful, name="encode")
    check_takes(caller, "loss_fn", loss_fn, ("params", "representations", "batch"))
    microbatches = checks.integer(caller, "microbatches", microbatches, least=1)
    measure = measuring.checked(caller, measure, microbatches=2)
    for each in measure:
        if each.small_squares:
            raise checks.error(
                caller,
                f"measure must not hold {each.name!r}, which needs the gradient of each microbatch: the loss "
                "is over the whole batch",
            )
    contrast = Contrast(caller, encode, loss_fn, microbatches, stateful)

    def cached(params: Params, model_state: Tree, batch: Batch, rng: mx.array) -> Any:
        check_batch(caller, batch, microbatches)
        return cached_loss(contrast, params, Inputs(model_state, batch, rng))

    return step_for(caller, cached, transform, stateful=True, measure=measure)
