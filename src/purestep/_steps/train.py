"""The training step: `step(state, batch) -> (state, metrics)`."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from purestep._core import checks, norms, tree
from purestep._core.mean import AnyMean
from purestep._core.packing import unpacked
from purestep._core.rng import scope
from purestep._core.scalars import increment
from purestep._core.types import Batch, LossFn, Metrics, Params, Tree, Updates
from purestep._steps.core import measuring, staging, updating
from purestep._steps.core.batches import after
from purestep._steps.core.gradients.accumulating import Accumulated, accumulated_in_stages
from purestep._steps.core.gradients.whole import differentiate
from purestep._steps.core.known import StateChecks, batch_check
from purestep._steps.core.measuring import Measurement, Moment
from purestep._steps.core.objective import Differentiated, Objective
from purestep._steps.core.outcome import check_loss_fn, own
from purestep._steps.core.ranks import sharding
from purestep._steps.core.ranks.summing import Ranks
from purestep._steps.state import TrainState
from purestep._steps.step import Parts, Step
from purestep._transforms.core.base import GradientTransform, check_transform, taking_extra
from purestep._transforms.core.fitting import StateCheck

View = Callable[[Moment, TrainState, mx.array], Moment]
"""`view(moment, state, key)`, with the state before the step and the key of the loss function."""


def train_step(
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    microbatches: int = 1,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
) -> Step:
    """Build the pure function that makes one step of training.

    `step(state, batch) -> (state, metrics)` splits `state.rng`, computes the gradient of the loss, passes it
    through the transform and adds the updates to the parameters. It mutates nothing and never waits for the
    device. It can be compiled, vmapped, differentiated and replayed. `step.parts(state, batch)` also returns
    the gradients and updates, as `Parts`.

    The metrics are 0-d float32 arrays: `loss`; `grad_norm`, the norm of the gradient before the transforms;
    `learning_rate`, if the transform's state has one; and the metrics of the loss function.

    The transform's `update` receives these keyword arguments if its signature names them: `value` (the loss),
    `weight` (the weight of the loss, or of its first term for a sum of `Mean`s; 1 for a plain scalar),
    `gradients` (before any transform) and `grad_norm` (their norm).

    A step can be differentiated, for hypergradients. The gradient flows through the parameters, the optimizer
    state and `loss`, but not through the loss function's own metrics and the model_state.

    Args:
        loss_fn: `loss_fn(params, batch, rng) -> loss` or `-> (loss, metrics)`. `loss` is a 0-d array, a
            `Mean`, or a sum of `Mean`s such as `ce + 0.01 * aux`; `metrics` is a dict of these. `rng` is a
            new key at every step. Random numbers drawn without a key are a function of `state.rng` too.
        transform: turns gradients into updates.
        microbatches: cut the batch along its first axis into this many parts, and keep the activations of
            one part at a time. If the loss is a `Mean`, or a sum of `Mean`s, the gradient is that of the
            whole batch, even if the parts have different weights. If the loss is a plain scalar, every part
            counts equally. Gradients are summed in float32, and the transform receives them in float32. For
            a sum of `Mean`s the loss function is called twice for each part. The first call is for the
            weights, and only what they depend on is computed. Losses that need the whole batch, such as
            contrastive losses, raise an error: use `cached_contrastive_step`.
        stateful: the loss function is `loss_fn(params, model_state, batch, rng) -> (loss, metrics,
            model_state)`. Each microbatch passes its model_state to the next.
        measure: measurements, such as `ps.metrics.grad_norms()`; their results are added to the metrics. A
            call of the step makes all of them. `step.at(number)` makes only those that are due, as in `run`
            and `fit`.

    Raises:
        TypeError: when the step is built, if the loss function takes other arguments.
        ValueError, TypeError: on the first call with a new structure, before anything is computed, for a
            state that is not a `TrainState` or that belongs to another transform; for an empty batch or one
            that cannot be divided; for a leaf that is not an array; for a loss that is not a floating-point
            scalar or depends on no parameter; for a step that would change the structure, a shape or a dtype
            of the state. The error names the path.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> state, metrics = train_step(loss_fn, transform)(state, {"x": mx.array([1.0, 3.0])})
    >>> state.params["w"], metrics["loss"]
    (array(2, dtype=float32), array(5, dtype=float32))
    """
    return step_for(
        "train_step", loss_fn, transform, microbatches=microbatches, stateful=stateful, measure=measure
    )


def step_for(
    caller: str,
    loss_fn: Callable[..., Any],
    transform: GradientTransform,
    *,
    microbatches: int = 1,
    stateful: bool = False,
    measure: Sequence[Measurement] = (),
    view: View | None = None,
    ranks: Ranks | None = None,
) -> Step:
    """Build a `train_step` whose errors name the public function that the user called.

    Args:
        caller: the name of that function.
        loss_fn: as in `train_step`, like the other arguments.
        transform: turns gradients into updates.
        microbatches: the number of parts of a batch.
        stateful: whether `loss_fn` takes and returns a model_state.
        measure: the measurements.
        view: changes the `Moment` of the measurements, for a step whose loss function is not the user's.
        ranks: the processes that compute each step together, each with rows of its own.
    """
    check_loss_fn(caller, loss_fn, stateful=stateful)
    check_transform(caller, "transform", transform)
    microbatches = checks.integer(caller, "microbatches", microbatches, least=1)
    measurements = measuring.checked(caller, measure, microbatches)
    update = taking_extra(transform)
    check_state = StateChecks(caller, opt_state_check(caller, transform))
    check_batch = batch_check(caller, microbatches)
    depends_known = False

    def step_with(due: tuple[Measurement, ...], choose: Callable[[int], Step | None] | None) -> Step:
        objective = Objective(
            caller,
            loss_fn,
            microbatches,
            stateful,
            tuple(each.watch for each in due if each.watch is not None),
            any(each.small_squares for each in due),
            ranks,
        )

        @norms.shared()
        def parts(state: TrainState, batch: Batch) -> Parts:
            accumulated = None
            if staging.active():
                check_state(state)
                check_batch(batch)
                key = mx.random.split(state.rng)[1]
                accumulated = accumulated_in_stages(
                    objective, state, batch, key, check_depends=lambda: not depends_known
                )
            return staging.stage("update", finished, state, batch, accumulated)

        def finished(state: TrainState, batch: Batch, accumulated: Accumulated | None) -> Parts:
            nonlocal depends_known
            form = check_state(state)
            if accumulated is None:
                check_batch(batch)
            rng, key = mx.random.split(state.rng)
            check = not depends_known  # a property of loss_fn, checked on the first call
            made = differentiate(objective, state, batch, key, check_depends=check, accumulated=accumulated)
            depends_known = True
            grad_norm, updates, params, opt_state = updating.updated(update, state, made, key)
            new = state._replace(
                params=params,
                opt_state=opt_state,
                step=increment(state.step),
                rng=rng,
                model_state=made.outcome.model_state if stateful else state.model_state,
            )
            if not check_state.unchanged(form, state, new):
                raise _changed(caller, state, new)
            metrics = _metrics(caller, made, grad_norm, check_state.learning_rate(form, opt_state))
            if due:
                whole, seen = sharding.whole_updates(made.chain, made.gradients, updates, state.params)
                narrow = made.narrow if whole is made.gradients else None  # those of parts are parts too
                given = made._replace(gradients=whole, narrow=narrow)
                moment = _moment(objective, state, new, batch, key, given, seen)
                moment = moment if view is None else view(moment, state, key)
                measured = measuring.results(caller, due, moment, made.observed, key)
                if made.chain is not None:
                    measured = made.chain.average(measured)
                metrics = with_measured(caller, metrics, measured)
            if made.chain is not None:
                new = new._replace(rng=made.chain.after(rng))  # the next step follows all sums of this one
            if accumulated is not None:  # in stages, results that nobody uses would be written
                return Parts(new, metrics, None, None)
            return Parts(new, metrics, made.gradients, updates)

        divides = microbatches > 1 and ranks is None
        return Step(parts, transform=transform, choose=choose, divides=divides)

    chosen: dict[tuple[bool, ...], Step] = {}  # the step for each set of measurements that was due

    def choose(number: int) -> Step | None:
        due = tuple(each.due(number) for each in measurements)
        if all(due):
            return None
        if due not in chosen:
            chosen[due] = step_with(tuple(itertools.compress(measurements, due)), None)
        return chosen[due]

    return step_with(measurements, choose if measurements else None)


def opt_state_check(caller: str, transform: GradientTransform) -> StateCheck:
    """Return the check that an optimizer state belongs to this transform.

    The check compares structure, shapes and dtypes with those of `transform.init(params)`. It runs `init`
    within a step, so `init` must not draw from the global stream or change the parameters.
    """

    def init(params: Tree) -> Tree:
        with scope(mx.random.key(0)):
            return transform.init(own(params))

    return StateCheck(caller, init, "state.opt_state")


def _metrics(caller: str, made: Differentiated, grad_norm: mx.array, rate: mx.array | None) -> Metrics:
    metrics = {"loss": made.value, "grad_norm": grad_norm}
    if rate is not None:
        metrics["learning_rate"] = rate
    own_metrics = made.outcome.metrics
    taken = sorted(metrics.keys() & own_metrics.keys())
    if taken:
        raise checks.error(caller, f"loss_fn's metrics may not be named {', '.join(taken)}")
    return metrics | {name: mean.value for name, mean in own_metrics.items()}


def _moment(
    objective: Objective,
    before: TrainState,
    new: TrainState,
    batch: Batch,
    key: mx.array,
    made: Differentiated,
    updates: Updates,
) -> Moment:
    """Return what the measurements receive, in containers and handles of their own."""
    unwatched = objective._replace(watches=(), small_squares=False)
    trees = unpacked((made.gradients, updates, before.params, new.params))
    gradients, updates, params, new_params = map(own, trees)
    # A measurement may evaluate the loss again: after the step, whose activations are then free. On the same
    # arrays, mx.compile would fail if the model used mx.split.
    params, model_state, batch = after((params, before.model_state, batch), gradients)
    # So that the sums of the norm serve the measurements too.
    norms.same(gradients, trees[0] if made.narrow is None else unpacked(made.narrow))
    return Moment(
        gradients=gradients,
        updates=updates,
        params=params,
        new_params=new_params,
        step=copy.copy(before.step),
        batch=batch,
        microbatches=objective.microbatches,
        small_square=copy.copy(made.small_square),
        weighted_parts=copy.copy(made.weighted_parts),
        observed={},
        loss=loss_at(unwatched, model_state, key),
    )


def loss_at(objective: Objective, model_state: Tree, key: mx.array) -> Callable[[Params, Batch], AnyMean]:
    """Return the loss as a function of the parameters and the batch."""
    return lambda params, batch: objective.outcome(params, model_state, batch, key).loss


def with_measured(caller: str, metrics: Metrics, measured: Metrics) -> Metrics:
    """Return the metrics of a step with the results of its measurements; refuse a name that is taken."""
    taken = sorted(metrics.keys() & measured.keys())
    if taken:
        raise checks.error(caller, f"a measurement may not be named {', '.join(taken)}")
    return metrics | measured


def _changed(caller: str, before: TrainState, after: TrainState) -> ValueError:
    lines = tree.differences(tree.spec(after), tree.spec(before), "the new state", "the old")
    return checks.error(caller, "a step must keep the structure of the state: " + "; ".join(lines))
