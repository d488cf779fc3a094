"""Sharpness-aware minimization (SAM): the gradient at the worst point nearby."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, norms, tree
from purestep._core.types import Batch, LossFn, Params, Tree, Updates
from purestep._steps.core import measuring
from purestep._steps.core.batches import after
from purestep._steps.core.measuring import Measurement, Moment
from purestep._steps.core.objective import Objective
from purestep._steps.core.outcome import check_loss_fn, outcome_of
from purestep._steps.state import TrainState, check_state
from purestep._steps.step import Parts, Step, around
from purestep._steps.train import loss_at, opt_state_check, step_for, with_measured
from purestep._transforms.core.base import GradientTransform, check_transform
from purestep._transforms.core.unpacking import accepting


def sam_step(
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    microbatches: int = 1,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
) -> Step:
    """Build the pure function that makes one step of SAM, with two gradients and one update.

    With `g` the gradient at the parameters `p`, the transform receives the gradient at a second point:

        p + rho * g / |g|                      by default
        p + rho * p ** 2 * g / |abs(p) * g|    if `adaptive`; the products are elementwise

    Both gradients are over the whole batch, also with microbatches. They use the same key, and so the same
    dropout masks.

    Differences from optax:

    1. `optax.contrib.sam` is a transform; this is a step. Each call makes a whole update from one batch, and
       the transform receives only the gradients at the second point.

    Args:
        loss_fn: as in `train_step`.
        transform: as in `train_step`. It receives `value` and `grad_norm` of the second point.
        rho: the distance to the second point, at least 0. With 0 the result is that of `train_step`, at
            twice the cost.
        adaptive: measure the distance relative to the parameters (ASAM; use a rho of 0.5 to 2).
        microbatches: as in `train_step`.
        stateful: as in `train_step`; the model_state is that of the first pass.
        measure: as in `train_step`. Measurements see the gradients that the transform receives, and so the
            layers in the pass at the second point. Their parameters are those before the update, without
            the perturbation; the curvature is that of the loss there. The perturbation depends on the whole
            batch, so the microbatches of `noise_scale` are not quite independent.

    Returns:
        A `Step`. Its metrics are those of `train_step` at the parameters themselves, and `perturbed_loss`,
        the loss at the second point.

    Reference: Foret et al., arXiv:2010.01412; Kwon et al., arXiv:2102.11600.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> state, metrics = sam_step(loss_fn, transform, rho=1.0)(state, {"x": mx.array([2.0])})
    >>> state.params["w"], metrics["loss"], metrics["perturbed_loss"]  # the gradient at -1
    (array(1.5, dtype=float32), array(4, dtype=float32), array(9, dtype=float32))
    """
    caller = "sam_step"
    check_loss_fn(caller, loss_fn, stateful=stateful)
    microbatches = checks.integer(caller, "microbatches", microbatches, least=1)
    measure = measuring.checked(caller, measure, microbatches, taken="perturbed_loss")
    rho = checks.number(caller, "rho", rho, least=0)
    check_transform(caller, "transform", transform)
    check_opt_state = opt_state_check(caller, transform)

    def probe(updates: Updates, state: Tree, params: Params = None) -> tuple[Updates, Tree]:
        return tree.zeros_like(updates), _perturbation(updates, params, rho, adaptive)

    @accepting
    def perturbed(params: Params, carried: tuple[Tree, Tree], batch: Batch, rng: mx.array) -> Any:
        shift, model_state = carried
        there = tree.map(lambda p, s: (p + s).astype(p.dtype), params, shift)
        outcome = outcome_of(
            caller, loss_fn, there, model_state, batch, rng, stateful=stateful, training=True
        )
        return outcome.loss, {}, carried

    # The first step changes no parameter and leaves the perturbation as its optimizer state. The second step
    # receives the perturbation as model_state, which reaches the loss function in every microbatch.
    start = accepting(lambda params: tree.zeros_like(params, mx.float32))
    look = GradientTransform(start, accepting(probe))
    first = step_for(caller, loss_fn, look, microbatches=microbatches, stateful=stateful)
    objective = Objective(caller, loss_fn, microbatches, stateful)

    def view(moment: Moment, state: TrainState, key: mx.array) -> Moment:
        return moment._replace(loss=loss_at(objective, state.model_state[1], key))

    second = step_for(
        caller, perturbed, transform, microbatches=microbatches, stateful=True, measure=measure, view=view
    )

    def parts(second: Step, state: TrainState, batch: Batch) -> Parts:
        check_state(caller, state)
        check_opt_state(state.opt_state, state.params)
        seen, metrics = first(state.replace(opt_state=look.init(state.params)), batch)
        # The second point needs the first gradient. On the same arrays, mx.compile would fail if the loss
        # function used mx.split on the batch.
        model_state, batch = after((state.model_state, batch), seen.opt_state)
        carried = (seen.opt_state, model_state)
        made = second.parts(state.replace(model_state=carried), batch)
        if "perturbed_loss" in metrics or "learning_rate" in metrics:
            raise checks.error(caller, "loss_fn's metrics may not be named perturbed_loss or learning_rate")
        measured = dict(made.metrics)
        metrics["perturbed_loss"] = measured.pop("loss")
        del measured["grad_norm"]
        if "learning_rate" in measured:
            metrics["learning_rate"] = measured.pop("learning_rate")
        metrics = with_measured(caller, metrics, measured)
        return made._replace(state=made.state.replace(model_state=seen.model_state), metrics=metrics)

    return around(second, parts, transform=transform)


def _perturbation(gradients: Updates, params: Params, rho: float, adaptive: bool) -> Tree:
    gradients = tree.map(lambda g: g.astype(mx.float32), gradients)
    if adaptive:
        weighted = tree.map(lambda g, p: mx.abs(p.astype(mx.float32)) * g, gradients, params)
    else:
        weighted = gradients
    norm = norms.norm(weighted)
    factor = rho / mx.where(norm > 0, norm, 1.0)  # a zero gradient has no direction
    if adaptive:
        return tree.map(lambda w, p: factor * mx.abs(p.astype(mx.float32)) * w, weighted, params)
    return tree.map(lambda w: factor * w, weighted)
