"""The training step of a float16 model: the loss is scaled so that gradients do not underflow."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import Mean, map_terms
from purestep._core.tracing.custom import custom_function
from purestep._core.types import Batch, LossFn, Params, Tree
from purestep._steps.core import measuring
from purestep._steps.core.measuring import Measurement, Moment
from purestep._steps.core.objective import Objective
from purestep._steps.core.outcome import check_loss_fn, outcome_of
from purestep._steps.state import TrainState, check_state
from purestep._steps.step import Parts, Step, around
from purestep._steps.train import loss_at, opt_state_check, step_for
from purestep._transforms.core.base import GradientTransform, check_transform
from purestep._transforms.core.unpacking import accepting


@custom_function
def _with_scaled_gradient(total: mx.array, scale: mx.array) -> mx.array:
    return total


@_with_scaled_gradient.vjp
def _(primals: Any, cotangent: mx.array, _: mx.array) -> Any:
    return cotangent * primals[1].astype(cotangent.dtype), mx.zeros_like(primals[1])


def loss_scaled_step(
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    microbatches: int = 1,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
) -> Step:
    """Build a training step that multiplies the gradient of its loss by the scale in the optimizer state.

    `transform` is or contains `transforms.dynamic_loss_scale(...)`, which divides by the scale again, skips
    gradients that overflowed and adapts the scale. Only the backward pass is scaled: the metric `loss`
    and the transform's `value` are unscaled. `step.parts` returns the scaled gradients.

    The metrics are those of `train_step`, with `grad_norm` divided by the scale, and `loss_scale`, the scale
    of this step.

    Args:
        loss_fn: as in `train_step`. It may compute in float16, but the loss itself should be float32.
        transform: as in `train_step`; it contains one `dynamic_loss_scale`.
        microbatches: as in `train_step`.
        stateful: as in `train_step`. The forward pass of a skipped step still updates the model_state.
        measure: as in `train_step`. Measurements see the gradients divided by the scale, in float32. In a
            skipped step the gradients are those that overflowed, so that their norms are infinite or NaN and
            name the layer. The updates are 0, and the parameters before and after are equal.

    Raises:
        ValueError: on the first call, if the optimizer state has no scale, and as in `train_step`.

    >>> import purestep as ps
    >>> from purestep.transforms import dynamic_loss_scale
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = dynamic_loss_scale(ps.optimizers.sgd(0.5), init_scale=1024.0)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> state, metrics = loss_scaled_step(loss_fn, transform)(state, {"x": mx.array([1.0, 3.0])})
    >>> state.params["w"], metrics["loss"], metrics["loss_scale"]
    (array(2, dtype=float32), array(5, dtype=float32), array(1024, dtype=float32))
    """
    caller = "loss_scaled_step"
    check_loss_fn(caller, loss_fn, stateful=stateful)
    microbatches = checks.integer(caller, "microbatches", microbatches, least=1)
    measure = measuring.checked(caller, measure, microbatches, taken="loss_scale")
    check_transform(caller, "transform", transform)
    check_opt_state = opt_state_check(caller, transform)

    @accepting
    def scaled(params: Params, carried: tuple[mx.array, Tree], batch: Batch, rng: mx.array) -> Any:
        scale, model_state = carried
        outcome = outcome_of(
            caller, loss_fn, params, model_state, batch, rng, stateful=stateful, training=True
        )

        def times(mean: Mean) -> Mean:
            return Mean(_with_scaled_gradient(mean.total, scale), mean.weight)

        return map_terms(times, outcome.loss), outcome.metrics, (scale, outcome.model_state)

    # The scale reaches the loss function in every microbatch, as part of its model_state.
    objective = Objective(caller, loss_fn, microbatches, stateful)

    def view(moment: Moment, state: TrainState, key: mx.array) -> Moment:
        scale, model_state = state.model_state
        inverse, small = 1 / scale, moment.small_square
        return moment._replace(
            gradients=tree.map(lambda g: inverse * g.astype(mx.float32), moment.gradients),
            small_square=None if small is None else inverse * (inverse * small),
            loss=loss_at(objective, model_state, key),
        )

    inner = step_for(
        caller, scaled, transform, microbatches=microbatches, stateful=True, measure=measure, view=view
    )

    def parts(inner: Step, state: TrainState, batch: Batch) -> Parts:
        check_state(caller, state)
        check_opt_state(state.opt_state, state.params)
        scales = tree.fields(state.opt_state, "loss_scale")
        if len(scales) != 1:
            raise checks.error(
                caller, f"state must hold one loss_scale, from dynamic_loss_scale, got {len(scales)}"
            )
        scale = scales[0][1]
        made = inner.parts(state.replace(model_state=(scale, state.model_state)), batch)
        new, metrics = made.state, made.metrics
        if "loss_scale" in metrics:
            raise checks.error(caller, "loss_fn's metrics may not be named loss_scale")
        metrics |= {"grad_norm": metrics["grad_norm"] / scale, "loss_scale": scale}
        return made._replace(state=new.replace(model_state=new.model_state[1]))

    return around(inner, parts, transform=transform)
