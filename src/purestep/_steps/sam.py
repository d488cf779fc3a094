"""Sharpness-aware minimization: the gradient of the worst place nearby."""

from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, LossFn, Params, Step, Tree, Updates
from purestep._steps.core.outcome import check_loss_fn, outcome_of
from purestep._steps.core.parts import Parts, parts_of, step_of
from purestep._steps.state import TrainState, check_state
from purestep._steps.train import opt_state_check, step_for
from purestep._transforms.core.base import GradientTransform, check_transform


def sam_step(
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    microbatches: int = 1,
    stateful: bool = False,
) -> Step:
    """Build the pure function that makes one step of SAM: two gradients, one update.

    With `g` the gradient at the parameters `p`, the update is what `transform` makes of the gradient at

        p + rho * g / |g|                   and with adaptive, elementwise,
        p + rho * p ** 2 * g / |abs(p) * g|

    Both are gradients of the whole batch, microbatches and all, with the same key: one dropout mask.

    Differences from `optax.contrib.sam`:

    1. A step, not a transform: each call makes a whole update, with no gradients of other batches mixed
       in, and the transform sees the gradients of the second kind alone.

    Args:
        loss_fn: as in `train_step`.
        transform: as in `train_step`. Its `value` and `grad_norm` are those of the second place.
        rho: how far to go, at least 0; with 0 it is `train_step`, at twice the price.
        adaptive: measure the distance in units of the parameters (ASAM; there a rho of 0.5 to 2).
        microbatches: as in `train_step`.
        stateful: as in `train_step`; the model_state is that of the first pass.

    Returns:
        A step as `train_step` returns it. The metrics are of the first pass, at the parameters
        themselves, with `perturbed_loss`, that of the second.

    Reference: Foret et al., arXiv:2010.01412; Kwon et al., arXiv:2102.11600.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> state, metrics = sam_step(loss_fn, transform, rho=1.0)(state, {"x": mx.array([2.0])})
    >>> state.params["w"], metrics["loss"], metrics["perturbed_loss"]  # the gradient is that at -1
    (array(1.5, dtype=float32), array(4, dtype=float32), array(9, dtype=float32))
    """
    caller = "sam_step"
    check_loss_fn(caller, loss_fn, stateful=stateful)
    rho = checks.number(caller, "rho", rho, least=0)
    check_transform(caller, "transform", transform)
    check_opt_state = opt_state_check(caller, transform)

    def probe(updates: Updates, state: Tree, params: Params = None) -> tuple[Updates, Tree]:
        return tree.zeros_like(updates), _perturbation(updates, params, rho, adaptive)

    def perturbed(params: Params, carried: tuple[Tree, Tree], batch: Batch, rng: mx.array) -> Any:
        shift, model_state = carried
        there = tree.map(lambda p, s: (p + s).astype(p.dtype), params, shift)
        outcome = outcome_of(
            caller, loss_fn, there, model_state, batch, rng, stateful=stateful, training=True
        )
        return outcome.loss, {}, carried

    # The first step moves nothing and leaves the perturbation as its optimizer state; the second is
    # handed it as model_state, which reaches the loss function over all microbatches.
    look = GradientTransform(lambda params: tree.zeros_like(params, mx.float32), probe)
    first = step_for(caller, loss_fn, look, microbatches=microbatches, stateful=stateful)
    second = parts_of(step_for(caller, perturbed, transform, microbatches=microbatches, stateful=True))

    def parts(state: TrainState, batch: Batch) -> Parts:
        check_state(caller, state)
        check_opt_state(state.opt_state, state.params)
        seen, metrics = first(state.replace(opt_state=look.init(state.params)), batch)
        carried = (seen.opt_state, state.model_state)
        made = second(state.replace(model_state=carried), batch)
        if "perturbed_loss" in metrics or "learning_rate" in metrics:
            raise checks.error(caller, "loss_fn's metrics may not be named perturbed_loss or learning_rate")
        metrics["perturbed_loss"] = made.metrics["loss"]
        if "learning_rate" in made.metrics:
            metrics["learning_rate"] = made.metrics["learning_rate"]
        return made._replace(state=made.state.replace(model_state=seen.model_state), metrics=metrics)

    return step_of(parts)


def _perturbation(gradients: Updates, params: Params, rho: float, adaptive: bool) -> Tree:
    gradients = tree.map(lambda g: g.astype(mx.float32), gradients)
    if adaptive:
        weighted = tree.map(lambda g, p: mx.abs(p.astype(mx.float32)) * g, gradients, params)
    else:
        weighted = gradients
    norm = tree.norm(weighted)
    factor = rho / mx.where(norm > 0, norm, 1.0)  # no gradient, no direction: stay
    if adaptive:
        return tree.map(lambda w, p: factor * mx.abs(p.astype(mx.float32)) * w, weighted, params)
    return tree.map(lambda w: factor * w, weighted)
