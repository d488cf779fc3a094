"""The loss over all representations of a batch and its gradient, with one part's activations in memory."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import AnyMean, Mean
from purestep._core.tracing.custom import custom_function
from purestep._core.types import Batch, Params, Tree
from purestep._layers.observing import Watch, recording
from purestep._steps.core.batches import after, microbatch
from purestep._steps.core.outcome import Outcome, keyless, no_backward_draws, outcome_of, own


class Contrast(NamedTuple):
    """An encoder, and a loss over the representations of a whole batch.

    Attributes:
        caller: the public name for errors.
        encode: as in `cached_contrastive_step`.
        loss_fn: as in `cached_contrastive_step`.
        microbatches: the number of parts into which the batch is cut for the encoder.
        stateful: whether `encode` takes and returns a model_state.
    """

    caller: str
    encode: Callable[..., Any]
    loss_fn: Callable[..., Any]
    microbatches: int
    stateful: bool


class Inputs(NamedTuple):
    """The inputs of one evaluation besides the parameters: no gradient is computed for them."""

    model_state: Tree
    batch: Batch
    rng: mx.array


def cached_loss(contrast: Contrast, params: Params, inputs: Inputs) -> tuple[Mean, dict[str, AnyMean], Tree]:
    """Return the loss, the metrics and the model_state, as a stateful loss function does.

    The gradient with respect to the parameters is computed together with the loss, part by part.
    """
    leaves, others = tree.leaves(params), tree.leaves(inputs)
    count = len(leaves)
    form = tree.map(lambda _: 0, (params, inputs))  # the containers, without the arrays
    auxiliary: Any = None

    def arguments(arrays: Any) -> tuple[Params, Inputs]:
        return tree.unflatten(form, list(arrays))

    def with_gradient(*arrays: mx.array) -> tuple[mx.array, ...]:
        """Return the loss, its gradient, and the leaves of the rest, whose containers `auxiliary` keeps."""
        nonlocal auxiliary
        value, gradients, rest = _cached_gradient(contrast, *arguments(arrays))
        auxiliary = tree.map(lambda _: 0, rest)
        return value, *gradients, *tree.leaves(rest)

    # Returns the computed gradient. Its derivative is needed only for a gradient through the step, and only
    # then is the loss of all parts built again.
    gradient_again: Any = custom_function(lambda *arrays: list(arrays[-count:]))

    @gradient_again.vjp
    def curvature(primals: Any, cotangents: Any, outputs: Any) -> Any:
        leaves, others, found = primals[:count], primals[count:-count], primals[-count:]
        cotangents = list(cotangents) if isinstance(cotangents, (tuple, list)) else [cotangents]
        gradient = lambda *p: _whole_gradient(contrast, *arguments((*p, *others)))  # noqa: E731
        made = mx.vjp(gradient, list(leaves), cotangents)[1]
        return [*made, *(mx.zeros_like(x) for x in (*others, *found))]

    forward: Any = custom_function(with_gradient)

    @forward.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        gradients = gradient_again(*primals, *map(mx.stop_gradient, outputs[1 : 1 + count]))
        made = zip(gradients, primals[:count], strict=True)
        slopes = [(cotangents[0] * gradient).astype(leaf.dtype) for gradient, leaf in made]
        return [*slopes, *(mx.zeros_like(x) for x in primals[count:])]

    value, *rest = forward(*leaves, *others)
    weight, metrics, model_state = tree.unflatten(auxiliary, [mx.stop_gradient(x) for x in rest[count:]])
    return Mean(value * weight, weight), metrics, model_state


def _cached_gradient(
    contrast: Contrast, params: Params, inputs: Inputs
) -> tuple[mx.array, list[mx.array], Tree]:
    """Return the loss, the leaves of its gradient, and (weight, metrics, model_state)."""
    parts, states = _first_pass(contrast, params, inputs)

    def loss(leaves: list[mx.array], whole: list[mx.array]) -> tuple[mx.array, Any]:
        found = tree.unflatten(parts[0], whole)
        with _unobserved():
            outcome = _outcome(contrast, tree.unflatten(params, leaves), found, inputs)
        return outcome.loss.value, (outcome.loss.weight, outcome.metrics)

    with no_backward_draws(contrast.caller):
        taken = mx.value_and_grad(loss, argnums=(0, 1))(tree.leaves(params), _joined(parts))
    (value, (weight, metrics)), (gradients, slopes) = taken
    gradients = [gradient.astype(mx.float32) for gradient in gradients]
    gradients = _second_pass(contrast, params, inputs, states, slopes, gradients)
    return value, gradients, (weight, metrics, states[-1])


def _whole_gradient(contrast: Contrast, params: Params, inputs: Inputs) -> list[mx.array]:
    """Return the same gradient as one differentiable computation, with all activations in memory."""

    def loss(leaves: list[mx.array]) -> mx.array:
        at = tree.unflatten(params, leaves)
        parts, _ = _first_pass(contrast, at, inputs)
        return _outcome(contrast, at, tree.unflatten(parts[0], _joined(parts)), inputs).loss.value

    return [gradient.astype(mx.float32) for gradient in mx.grad(loss)(tree.leaves(params))]


def _first_pass(contrast: Contrast, params: Params, inputs: Inputs) -> tuple[list[Tree], list[Tree]]:
    """Return the representations of each part, and the model_state before each part and after the last."""
    parts: list[Tree] = []
    states = [inputs.model_state]
    for index, key in enumerate(mx.random.split(inputs.rng, contrast.microbatches)):
        cut = microbatch(inputs.batch, index, contrast.microbatches)
        cut = after(cut, parts[-1]) if parts else cut
        found, new = _encoded(contrast, params, states[-1], cut, key)
        _check_representations(contrast.caller, found, cut)
        parts.append(found)
        states.append(new)
    return parts, states


def _second_pass(
    contrast: Contrast,
    params: Params,
    inputs: Inputs,
    states: list[Tree],
    slopes: list[mx.array],
    summed: list[mx.array],
) -> list[mx.array]:
    """Add the gradient through the encoder to `summed`; `slopes` is the gradient for the representations."""
    count = contrast.microbatches
    for index, key in enumerate(mx.random.split(inputs.rng, count)):
        # Without an order, MLX may keep the activations of all parts. The first part needs the order too:
        # otherwise mx.compile would merge its two passes and keep the activations of the first.
        cut = after(microbatch(inputs.batch, index, count), (summed, slopes))
        pieces = [microbatch(slope, index, count) for slope in slopes]

        def again(*leaves: mx.array, cut=cut, key=key, before=states[index]) -> list[mx.array]:
            with _unobserved():
                found = _encoded(contrast, tree.unflatten(params, list(leaves)), before, cut, key)[0]
            return tree.leaves(found)

        with no_backward_draws(contrast.caller):
            _, gradients = mx.vjp(again, tree.leaves(params), pieces)
        summed = [a + b.astype(mx.float32) for a, b in zip(summed, gradients, strict=True)]
    return summed


def _encoded(
    contrast: Contrast, params: Params, model_state: Tree, cut: Batch, key: mx.array
) -> tuple[Tree, Tree]:
    """Return the representations and the model_state of one part.

    The encoder receives its own copies of the arguments and a scope of its own, so that both passes see the
    same arrays and random numbers.
    """
    params, before, cut, given = own(params), own(model_state), own(cut), copy.copy(key)
    with keyless(key):
        if not contrast.stateful:
            return contrast.encode(params, cut, given), model_state
        returned = contrast.encode(params, before, cut, given)
    if type(returned) is not tuple or len(returned) != 2:
        raise TypeError(
            f"{contrast.caller}: a stateful encode must return (representations, model_state), "
            f"got a {type(returned).__name__}"
        )
    return returned


def _outcome(contrast: Contrast, params: Params, found: Tree, inputs: Inputs) -> Outcome:
    """Evaluate the loss of all representations."""
    loss_fn = lambda params, batch, rng: contrast.loss_fn(params, own(found), batch)  # noqa: E731
    with keyless(inputs.rng):
        return outcome_of(contrast.caller, loss_fn, params, None, inputs.batch, None, stateful=False)


def _unobserved() -> AbstractContextManager[Any]:
    """Record nothing within the block: measurements see the encoder's first pass alone."""
    nothing = Watch(
        "cached_contrastive_step", (), "outputs", lambda *_: {}, lambda _: [], lambda first, _: first
    )
    return recording([nothing])


def _joined(parts: list[Tree]) -> list[mx.array]:
    return [mx.concatenate(list(pieces)) for pieces in zip(*map(tree.leaves, parts), strict=True)]


def _check_representations(caller: str, found: Tree, cut: Batch) -> None:
    name = "representations"
    named = [(tree.join(name, path) if path else name, leaf) for path, leaf in tree.items(found)]
    rows = tree.leaves(cut)[0].shape[:1]
    if not named:
        raise checks.error(caller, "encode must return at least one array, got none")
    for path, leaf in named:
        if not isinstance(leaf, mx.array) or not mx.issubdtype(leaf.dtype, mx.floating):
            got = leaf.dtype if isinstance(leaf, mx.array) else f"a {type(leaf).__name__}"
            raise TypeError(f"{caller}: {path} must be a floating array, got {got}")
        if leaf.shape[:1] != rows:
            raise checks.error(
                caller, f"{path} must have a row for each of the {rows[0]} examples, got shape {leaf.shape}"
            )
