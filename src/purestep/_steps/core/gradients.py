"""The loss over a whole batch and its gradient, computed from microbatches in turn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, microbatching, norms, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
from purestep._core.tracing import graph
from purestep._core.types import Batch, Params, Tree, Updates
from purestep._layers import observing
from purestep._layers.observing import Observed, Watch
from purestep._steps.core import measuring
from purestep._steps.core.batches import after, microbatch
from purestep._steps.core.outcome import Outcome, keyless, no_backward_draws, outcome_of
from purestep._steps.state import TrainState


class Narrowed(NamedTuple):
    """A loss function on parameters of a reduced dtype, and how they are made.

    A loss function may have one as its attribute `narrowed`. It does not count for a function that has copied
    the attributes of another one, as `functools.wraps` does. A step then differentiates with respect to the
    cast parameters. On a GPU, the norm reads these gradients, and the update widens them as it goes.

    Attributes:
        whole: the function that has the attribute.
        cast: from the parameters to those that `loss_fn` takes.
        loss_fn: as in `train_step`.
    """

    whole: Callable[..., Any]
    cast: Callable[[Params], Params]
    loss_fn: Callable[..., Any]


class Objective(NamedTuple):
    """A loss function and how a step evaluates it.

    Attributes:
        caller: the public name for errors.
        loss_fn: as in `train_step`.
        microbatches: the number of parts into which each batch is cut.
        stateful: whether `loss_fn` takes and returns a model_state.
        watches: what is recorded in the layers of modules.
        small_squares: whether the norms of the microbatches' gradients are computed.
    """

    caller: str
    loss_fn: Callable[..., Any]
    microbatches: int
    stateful: bool
    watches: tuple[Watch, ...] = ()
    small_squares: bool = False

    def outcome(self, params: Params, model_state: Tree, batch: Batch, key: mx.array) -> Outcome:
        """Evaluate the loss function in training, with every random draw a function of `key`."""
        with keyless(key):
            return outcome_of(
                self.caller,
                self.loss_fn,
                params,
                model_state,
                batch,
                key,
                stateful=self.stateful,
                training=True,
            )


class Differentiated(NamedTuple):
    """A loss, its outcome and its gradient.

    Attributes:
        value: the loss, 0-d float32. Unlike `outcome`, it carries an outer gradient.
        outcome: the loss as a `Mean`, the metrics and the model_state.
        gradients: a tree like the parameters.
        observed: the statistics of each watch, by the path of the layer.
        small_square: the weighted mean of the squared norms of the microbatches' gradients.
        narrow: the gradients before they were cast to the dtypes of the parameters; the same numbers.
    """

    value: mx.array
    outcome: Outcome
    gradients: Updates
    observed: list[Observed]
    small_square: mx.array | None = None
    narrow: Updates = None

    @property
    def norm(self) -> mx.array:
        """The norm of the gradients, 0-d float32."""
        return norms.norm(self.gradients if self.narrow is None else self.narrow)


def differentiate(
    objective: Objective, state: TrainState, batch: Batch, key: mx.array, *, check_depends: bool
) -> Differentiated:
    """Return the loss over the whole batch with its outcome and gradient.

    Args:
        objective: the loss function.
        state: the gradient is with respect to its parameters.
        batch: the whole batch.
        key: uint32 [2]; several microbatches receive a key each, made from it.
        check_depends: refuse a loss that depends on no parameter.
    """
    narrowed: Narrowed | None = getattr(objective.loss_fn, "narrowed", None)
    if narrowed is not None and narrowed.whole is not objective.loss_fn:
        narrowed = None
    own = state.params
    if narrowed is not None:
        objective = objective._replace(loss_fn=narrowed.loss_fn)
        state = state._replace(params=narrowed.cast(own))
    with microbatching.cut_into(objective.microbatches):
        if objective.microbatches > 1:
            return _whole(objective, state, batch, key, check_depends)
        made = _part(objective, state.params, state.model_state, batch, key, check_depends=check_depends)
    if narrowed is None:
        return made
    wide = tree.map(lambda gradient, param: gradient.astype(param.dtype), made.gradients, own)
    norms.same(wide, made.gradients)
    return made._replace(gradients=wide, narrow=made.gradients)


def _part(
    objective: Objective,
    params: Params,
    model_state: Tree,
    batch: Batch,
    key: mx.array,
    weights: list[mx.array] | None = None,
    *,
    check_depends: bool = False,
) -> Differentiated:
    """Differentiate the loss of one microbatch; `weights` are the terms' weights over the whole batch."""

    def loss(leaves: list[mx.array], others: list[mx.array]) -> tuple[mx.array, Outcome, list[Observed]]:
        held, data = tree.unflatten((model_state, batch), others)
        with observing.recording(objective.watches) as observed:
            outcome = objective.outcome(tree.unflatten(params, leaves), held, data, key)
        if weights is None:
            return outcome.loss.value, outcome, observed
        return _share(outcome.loss, weights, objective.microbatches), outcome, observed

    # mx.value_and_grad refuses the None that a tree may hold, so it receives leaves. The model_state and the
    # batch are arguments too. In a microbatch they depend on earlier gradients. If the function captured
    # them, gradients through this step would be wrong.
    leaves, others = tree.leaves(params), tree.leaves((model_state, batch))
    with no_backward_draws(objective.caller):
        (value, outcome, observed), gradients = mx.value_and_grad(loss)(leaves, others)
    if check_depends:
        _check_depends(objective.caller, gradients)
    return Differentiated(value, outcome, tree.unflatten(params, gradients), observed)


def _whole(
    objective: Objective, state: TrainState, batch: Batch, key: mx.array, check_depends: bool
) -> Differentiated:
    """Differentiate the loss of each microbatch in turn, and merge them."""
    merged: Outcome | None = None
    summed: Updates = None
    observed: list[Observed] = []
    squares: list[mx.array] = []
    weights: list[mx.array] | None = None
    keys = list(mx.random.split(key, objective.microbatches))
    for index, part_key in enumerate(keys):
        cut = microbatch(batch, index, len(keys))
        if merged is not None:
            cut = after(cut, (summed, observed, squares))
        inputs = state.params, state.model_state if merged is None else merged.model_state, cut, part_key
        part = _part(objective, *inputs, weights, check_depends=check_depends)
        if weights is None and isinstance(part.outcome.loss, MeanSum):
            weights = _weights(objective, state, batch, keys)
            part = _part(objective, *inputs, weights, check_depends=check_depends)
        weight = part.outcome.loss.weight if weights is None else mx.array(1.0)
        # Auxiliary outputs of mx.value_and_grad carry no outer gradient, such as that of a learning rate, so
        # the total is computed from the value.
        outcome = part.outcome._replace(loss=Mean(part.value * weight, weight))
        # Computed as the gradient of the mean times its weight: float16 could overflow in the gradient of the
        # total.
        weighted = tree.map(lambda g, w=weight: w * g.astype(mx.float32), part.gradients)
        summed = weighted if merged is None else tree.map(mx.add, summed, weighted)
        if objective.small_squares:
            squares.append(weight * mx.square(part.norm))
        observed = (
            part.observed if merged is None else measuring.merged(objective.watches, observed, part.observed)
        )
        merged = outcome if merged is None else merged.merge(outcome)
    assert merged is not None
    assert isinstance(merged.loss, Mean)
    value, gradients = merged.loss.value, tree.map(merged.loss.share, summed)
    small = merged.loss.share(tree.added(squares)) if squares else None
    if weights is not None:
        merged = merged._replace(loss=Mean(value * weights[0], weights[0]))
    return Differentiated(value, merged, gradients, observed, small)


def _weights(objective: Objective, state: TrainState, batch: Batch, keys: list[mx.array]) -> list[mx.array]:
    """Return the weight of each term of a sum of means over the whole batch.

    With these weights, one gradient for each microbatch covers all terms. Evaluation is lazy: the device
    computes only what the weights depend on, which is mostly a mask of the batch.
    """
    summed: list[mx.array] | None = None
    model_state = state.model_state
    for index, key in enumerate(keys):
        cut = microbatch(batch, index, len(keys))
        if summed is not None:
            cut = after(cut, summed)
        outcome = objective.outcome(state.params, model_state, cut, key)
        model_state = outcome.model_state
        terms = outcome.loss.terms if isinstance(outcome.loss, MeanSum) else (outcome.loss,)
        if summed is not None and len(summed) != len(terms):
            raise checks.error(
                objective.caller,
                "the loss must be a sum of the same number of means in every microbatch, "
                f"got {len(summed)} and {len(terms)}",
            )
        weights = [term.weight for term in terms]
        summed = weights if summed is None else [a + b for a, b in zip(summed, weights, strict=True)]
    assert summed is not None
    return summed


def _share(loss: AnyMean, weights: list[mx.array], count: int) -> mx.array:
    """Return a microbatch's contribution to the loss of the whole batch, times the number of microbatches.

    The factor keeps the gradient as large as that of the whole batch: in float16 a smaller one could
    underflow.
    """
    assert isinstance(loss, MeanSum)
    parts = [Mean(term.total, whole).value for term, whole in zip(loss.terms, weights, strict=True)]
    return count * sum(parts[1:], parts[0])


def _check_depends(caller: str, gradients: list[mx.array]) -> None:
    """Refuse a loss that depends on no parameter: MLX returns plain zeros as such gradients."""
    for gradient in gradients:
        made_of = graph.primitives(gradient)
        if "Full" not in made_of or made_of - {"Full", "Broadcast"}:
            return
    raise checks.error(caller, "the loss does not depend on any of the parameters: every gradient is zero")
