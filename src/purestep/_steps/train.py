"""The training step: `step(state, batch) -> (state, metrics)`."""

import copy
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from purestep._core import checks, graph, microbatching, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
from purestep._core.rng import fold_in, scope
from purestep._core.scalars import increment
from purestep._core.types import Batch, LossFn, Step, Tree, Updates
from purestep._steps.core.batches import after, check_batch, microbatch
from purestep._steps.core.outcome import Outcome, check_loss_fn, keyless, no_backward_draws, outcome_of, own
from purestep._steps.core.parts import Parts, step_of
from purestep._steps.state import TrainState, check_state
from purestep._transforms.core.base import GradientTransform, apply_updates, check_transform, taking_extra
from purestep._transforms.core.fitting import StateCheck

_UPDATE = 0x7570  # folded into a key for what the transform draws without one: not what the loss draws


def train_step(
    loss_fn: LossFn, transform: GradientTransform, *, microbatches: int = 1, stateful: bool = False
) -> Step:
    """Build the pure function that makes one step of training.

    `step(state, batch) -> (state, metrics)` splits `state.rng`, takes the gradient of the loss, passes
    it through the transform and adds what comes out to the parameters. It mutates nothing, waits for
    the device nowhere, and can be compiled, vmapped, differentiated and replayed. `step.parts(state, batch)`
    is the same function with the gradients and updates in sight: `(state, metrics, gradients, updates)`.

    The metrics, 0-d float32 arrays: `loss`; `grad_norm`, of the gradient before the transforms;
    `learning_rate`, when the transform's state has one; and those the loss function returned.

    Differentiated through (for hypergradients), a step carries the gradient of its parameters, optimizer
    state and `loss`; the loss function's own metrics and the model_state count as constants.

    The transform's `update` receives, if it names them, `value` (the loss), `weight` (what the loss is a
    mean over; of a sum of means, what the first is), `gradients` (as the first transform sees them) and
    `grad_norm` (their norm).

    Args:
        loss_fn: `loss_fn(params, batch, rng) -> loss` or `-> (loss, metrics)`. `loss` is a 0-d array, a
            `Mean` or a sum of them, `ce + 0.01 * aux`; metrics is a dict of these. `rng` is a key of this
            call's own. Random numbers drawn without a key are a function of the state's as well.
        transform: what turns gradients into updates.
        microbatches: cut the batch along its first axis into this many parts and hold the activations
            of one at a time. With a `Mean` for the loss the gradient is that of the whole batch, also
            when the parts weigh differently, and with a sum of `Mean`s too, each by its own weight; a plain
            scalar counts each part alike. Gradients are then gathered, and handed to the transform, in
            float32. For a sum of `Mean`s the loss function is called twice for each part, first for the
            weights; the device computes of these calls only what the weights are made of. A loss that is
            defined by the whole batch, as contrastive ones are, is refused: see `cached_contrastive_step`.
        stateful: `loss_fn(params, model_state, batch, rng) -> (loss, metrics, model_state)`; the
            microbatches hand the model_state on.

    Raises:
        TypeError: when the step is built, for a loss function that takes other arguments.
        ValueError, TypeError: on the first call with a new structure, before anything is computed: for a
            state that is not a `TrainState` or that this transform did not make, an empty batch or one that
            does not divide, a leaf that is not an array, a loss that is not a floating scalar or does not
            depend on the parameters, a state that would change its structure, shapes or dtypes, each named by
            its path.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> state, metrics = train_step(loss_fn, transform)(state, {"x": mx.array([1.0, 3.0])})
    >>> state.params["w"], metrics["loss"]
    (array(2, dtype=float32), array(5, dtype=float32))
    """
    return step_for("train_step", loss_fn, transform, microbatches=microbatches, stateful=stateful)


def step_for(
    caller: str,
    loss_fn: LossFn,
    transform: GradientTransform,
    *,
    microbatches: int = 1,
    stateful: bool = False,
) -> Step:
    """Build a `train_step` whose errors name the function that the user called."""
    check_loss_fn(caller, loss_fn, stateful=stateful)
    check_transform(caller, "transform", transform)
    microbatches = checks.integer(caller, "microbatches", microbatches, least=1)
    update = taking_extra(transform)
    check_opt_state = opt_state_check(caller, transform)
    depends_known = False

    def parts(state: TrainState, batch: Batch) -> Parts:
        nonlocal depends_known
        check_state(caller, state)
        check_batch(caller, batch, microbatches)
        check_opt_state(state.opt_state, state.params)
        rng, key = mx.random.split(state.rng)
        inspect = None if depends_known else partial(_check_depends, caller)
        with microbatching.cut_into(microbatches):
            loss, outcome, gradients = _gradients(
                caller, loss_fn, state, batch, key, microbatches, stateful, inspect
            )
        depends_known = True  # a property of loss_fn, found on the first call
        metrics = {"loss": loss, "grad_norm": tree.norm(gradients)}
        # What the transform draws without a key comes from this call's own, as what the loss draws does.
        with scope(fold_in(key, _UPDATE)):
            # The transform gets containers and handles of its own: what it writes into them stays there.
            updates, opt_state = update(
                own(gradients),
                own(state.opt_state),
                own(state.params),
                value=copy.copy(loss),
                weight=copy.copy(outcome.loss.weight),
                gradients=own(gradients),
                grad_norm=copy.copy(metrics["grad_norm"]),
            )
        rates = tree.fields(opt_state, "learning_rate")
        if rates:
            metrics["learning_rate"] = rates[0][1]
        taken = sorted(metrics.keys() & outcome.metrics.keys())
        if taken:
            raise checks.error(caller, f"loss_fn's metrics may not be named {', '.join(taken)}")
        metrics |= {name: mean.value for name, mean in outcome.metrics.items()}
        new = state._replace(
            params=apply_updates(state.params, updates),
            opt_state=opt_state,
            step=increment(state.step),
            rng=rng,
            model_state=outcome.model_state if stateful else state.model_state,
        )
        _check_unchanged(caller, state, new)
        return Parts(new, metrics, gradients, updates)

    return step_of(parts)


def opt_state_check(caller: str, transform: GradientTransform) -> StateCheck:
    """Return the check that an optimizer state is one of this transform's.

    The state that it compares with counts by its form alone. Made within a step, it must not draw from the
    global stream, nor change the parameters.
    """

    def init(params: Tree) -> Tree:
        with scope(mx.random.key(0)):
            return transform.init(own(params))

    return StateCheck(caller, init, "state.opt_state")


def _gradients(
    caller: str,
    loss_fn: LossFn,
    state: TrainState,
    batch: Batch,
    key: mx.array,
    count: int,
    stateful: bool,
    inspect: Callable[[list[mx.array]], None] | None,
) -> tuple[mx.array, Outcome, Updates]:
    """Return the loss over the whole batch, what came with it, and its gradient, from parts taken in turn."""

    def part(
        model_state: Tree, batch: Batch, key: mx.array, weights: list[mx.array] | None = None
    ) -> tuple[mx.array, Outcome, Updates]:
        def loss(leaves: list[mx.array], others: list[mx.array]) -> tuple[mx.array, Outcome]:
            params = tree.unflatten(state.params, leaves)
            held, data = tree.unflatten((model_state, batch), others)
            with keyless(key):
                outcome = outcome_of(
                    caller, loss_fn, params, held, data, key, stateful=stateful, training=True
                )
            whole = outcome.loss.value if weights is None else _share(outcome.loss, weights, count)
            return whole, outcome

        # Leaves, not the tree: mx.value_and_grad refuses the None that a tree may hold. The others are
        # arguments as well: of a microbatch they lead back to the gradients before, through the order of
        # evaluation, and captured arrays that do make outer gradients wrong.
        differentiated, others = tree.leaves(state.params), tree.leaves((model_state, batch))
        with no_backward_draws(caller):
            (value, outcome), gradients = mx.value_and_grad(loss)(differentiated, others)
        if inspect:
            inspect(gradients)
        return value, outcome, tree.unflatten(state.params, gradients)

    if count == 1:
        return part(state.model_state, batch, key)

    merged: Outcome | None = None
    summed: Updates = None
    weights: list[mx.array] | None = None
    keys = list(mx.random.split(key, count))
    for index, part_key in enumerate(keys):
        cut = microbatch(batch, index, count)
        if merged is not None:
            cut = after(cut, summed)
        model_state = state.model_state if merged is None else merged.model_state
        value, outcome, gradients = part(model_state, cut, part_key, weights)
        if weights is None and isinstance(outcome.loss, MeanSum):
            weights = _weights(caller, loss_fn, state, batch, keys, stateful)
            value, outcome, gradients = part(model_state, cut, part_key, weights)
        weight = outcome.loss.weight if weights is None else mx.array(1.0)
        # Only the value that MLX returns carries an outer gradient (that of a learning rate, say); what
        # comes beside it is constant to the outside. So the total is taken from the value.
        outcome = outcome._replace(loss=Mean(value * weight, weight))
        # The gradient of a mean times its weight, not of the total: float16 could not hold the latter.
        weighted = tree.map(lambda g, w=weight: w * g.astype(mx.float32), gradients)
        summed = weighted if merged is None else tree.map(mx.add, summed, weighted)
        merged = outcome if merged is None else merged.merge(outcome)
    assert merged is not None
    assert isinstance(merged.loss, Mean)
    value, gradients = merged.loss.value, tree.map(merged.loss.share, summed)
    if weights is not None:
        merged = merged._replace(loss=Mean(value * weights[0], weights[0]))
    return value, merged, gradients


def _weights(
    caller: str, loss_fn: LossFn, state: TrainState, batch: Batch, keys: list[mx.array], stateful: bool
) -> list[mx.array]:
    """Return what each term of a sum of means weighs over the whole batch.

    The gradient of a microbatch can then be taken once, of all terms together. Evaluation is lazy: of these
    forward passes only what the weights are made of is computed, which mostly is a mask of the batch.
    """
    summed: list[mx.array] | None = None
    model_state = state.model_state
    for index, key in enumerate(keys):
        cut = microbatch(batch, index, len(keys))
        if summed is not None:
            cut = after(cut, summed)
        with keyless(key):
            outcome = outcome_of(
                caller, loss_fn, state.params, model_state, cut, key, stateful=stateful, training=True
            )
        model_state = outcome.model_state
        terms = outcome.loss.terms if isinstance(outcome.loss, MeanSum) else (outcome.loss,)
        if summed is not None and len(summed) != len(terms):
            raise checks.error(
                caller,
                "the loss must be a sum of as many means in every microbatch, "
                f"got {len(summed)} and {len(terms)}",
            )
        weights = [term.weight for term in terms]
        summed = weights if summed is None else [a + b for a, b in zip(summed, weights, strict=True)]
    assert summed is not None
    return summed


def _share(loss: AnyMean, weights: list[mx.array], count: int) -> mx.array:
    """Return what a microbatch adds to the loss of the whole batch, times the number of microbatches.

    Times their number, which brings the gradient to the size of the whole one: float16 could lose a part.
    """
    assert isinstance(loss, MeanSum)
    parts = [Mean(term.total, whole).value for term, whole in zip(loss.terms, weights, strict=True)]
    return count * sum(parts[1:], parts[0])


def _check_depends(caller: str, gradients: list[mx.array]) -> None:
    """Refuse a loss without a path to any parameter: MLX gives such gradients as plain zeros."""
    for gradient in gradients:
        made_of = graph.primitives(gradient)
        if "Full" not in made_of or made_of - {"Full", "Broadcast"}:
            return
    raise checks.error(caller, "the loss does not depend on any of the parameters: every gradient is zero")


def _check_unchanged(caller: str, before: TrainState, after: TrainState) -> None:
    if not tree.alike(before, after):
        lines = tree.differences(tree.spec(after), tree.spec(before), "the new state", "the old")
        raise checks.error(caller, "a step must keep the state as it is built: " + "; ".join(lines))
