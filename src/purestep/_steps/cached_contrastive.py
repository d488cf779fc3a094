"""The training step of a contrastive loss over a batch whose activations do not fit at once."""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import Mean
from purestep._core.types import Batch, Params, Step, Tree
from purestep._steps.core.batches import after, check_batch, microbatch
from purestep._steps.core.outcome import (
    check_loss_fn,
    check_takes,
    keyless,
    no_backward_draws,
    outcome_of,
    own,
)
from purestep._steps.train import step_for
from purestep._transforms.core.base import GradientTransform

_WHERE = "cached_contrastive_step"


def cached_contrastive_step(
    encode: Callable[..., Any],
    loss_fn: Callable[..., Any],
    transform: GradientTransform,
    *,
    microbatches: int,
    stateful: bool = False,
) -> Step:
    """Build a `train_step` whose loss is over all examples together, and whose encoder sees some at a time.

    In a contrastive loss every example is a negative of all others, so the loss of a part of the batch is
    another loss. This step makes the gradient of the whole one, with the activations of one part in memory:

    1. encode each microbatch, and keep its representations only;
    2. take the loss of all representations, and its gradient with respect to them;
    3. encode each microbatch again, with the same key, and pass that gradient back through it.

    It costs one more forward pass of the encoder than `train_step` on the whole batch. The gradient is the
    same, up to rounding; what the encoder draws, as in Dropout, depends on how the batch is cut, and is the
    same in both passes.

    Differentiated through, it carries the gradient that `train_step` on the whole batch does, with the
    activations of all parts in memory; the batch and the model_state count as constants.

    Args:
        encode: `encode(params, batch, rng) -> representations`, a tree of floating arrays whose first axis is
            that of the batch, such as `{"queries": ..., "keys": ...}`.
        loss_fn: `loss_fn(params, representations, batch) -> loss` or `-> (loss, metrics)`, of the whole
            batch; loss and metrics as in `train_step`. It may use `params`, a learned temperature say.
        transform: as in `train_step`.
        microbatches: into how many parts the batch is cut for the encoder.
        stateful: `encode(params, model_state, batch, rng) -> (representations, model_state)`; the
            microbatches hand the model_state on, and it stays as the first pass leaves it.

    Returns:
        A step as `train_step` returns it, with the same metrics. Gradients are added up in float32 and
        rounded once to the dtype of the parameters.

    Raises:
        TypeError: when the step is built, for functions that take other arguments.
        ValueError, TypeError: on the first call, as `train_step`; and for representations that are not
            floating arrays of as many rows as their microbatch.

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
    check_loss_fn(_WHERE, encode, stateful=stateful, name="encode")
    check_takes(_WHERE, "loss_fn", loss_fn, ("params", "representations", "batch"))
    microbatches = checks.integer(_WHERE, "microbatches", microbatches, least=1)

    def encoded(params: Params, model_state: Tree, cut: Batch, key: mx.array) -> tuple[Tree, Tree]:
        # What the encoder draws or writes into what it gets in one pass must not show in the other.
        params, before, cut, given = own(params), own(model_state), own(cut), copy.copy(key)
        with keyless(key):
            returned = encode(params, before, cut, given) if stateful else encode(params, cut, given)
        if not stateful:
            return returned, model_state
        if type(returned) is not tuple or len(returned) != 2:
            raise TypeError(
                f"{_WHERE}: a stateful encode must return (representations, model_state), "
                f"got a {type(returned).__name__}"
            )
        return returned

    def first_pass(params: Params, others: Tree) -> tuple[list[Tree], list[Tree]]:
        """Return the representations of each part, and the model_state before each and after the last."""
        model_state, batch, rng = others
        parts, states = [], [model_state]
        for index, key in enumerate(mx.random.split(rng, microbatches)):
            cut = microbatch(batch, index, microbatches)
            cut = after(cut, parts[-1]) if parts else cut
            found, new = encoded(params, states[-1], cut, key)
            _check_representations(found, cut)
            parts.append(found)
            states.append(new)
        return parts, states

    def second_pass(
        params: Params, others: Tree, states: list[Tree], slopes: list[mx.array], summed: Any
    ) -> Any:
        """Add, to what is summed, the gradient that comes back through the encoder."""
        _, batch, rng = others
        for index, key in enumerate(mx.random.split(rng, microbatches)):
            # Without an order MLX may hold the activations of all parts. The first needs it as well, or
            # mx.compile would find its two passes alike and hold the activations of the one.
            cut = after(microbatch(batch, index, microbatches), (summed, slopes))
            rows = [slope.shape[0] // microbatches for slope in slopes]
            pieces = [s[index * n : (index + 1) * n] for s, n in zip(slopes, rows, strict=True)]

            def again(*leaves: mx.array, cut=cut, key=key, before=states[index]) -> list[mx.array]:
                return tree.leaves(encoded(tree.unflatten(params, list(leaves)), before, cut, key)[0])

            with no_backward_draws(_WHERE):
                _, gradients = mx.vjp(again, tree.leaves(params), pieces)
            summed = [a + b.astype(mx.float32) for a, b in zip(summed, gradients, strict=True)]
        return summed

    def loss_of(params: Params, found: Tree, others: Tree) -> Any:
        """Return the loss of all representations, as an outcome."""
        _, batch, rng = others
        fn = lambda params, batch, rng: loss_fn(params, own(found), batch)  # noqa: E731
        with keyless(rng):
            return outcome_of(_WHERE, fn, params, None, batch, None, stateful=False)

    def cached(params: Params, model_state: Tree, batch: Batch, rng: mx.array) -> Any:
        check_batch(_WHERE, batch, microbatches)
        leaves, others = tree.leaves(params), tree.leaves((model_state, batch, rng))
        count = len(leaves)
        form = tree.map(
            lambda _: 0, (params, (model_state, batch, rng))
        )  # the containers, without the arrays
        built: Any = None

        def taken_apart(arrays: Any) -> tuple[Params, Tree]:
            return tree.unflatten(form, list(arrays))

        def with_gradient(*arrays: mx.array) -> tuple[mx.array, ...]:
            """Return the loss, its gradient, and the leaves of everything else, which `built` describes."""
            nonlocal built
            at, others = taken_apart(arrays)
            parts, states = first_pass(at, others)

            def loss(leaves: list[mx.array], whole: list[mx.array]) -> tuple[mx.array, Any]:
                outcome = loss_of(tree.unflatten(at, leaves), tree.unflatten(parts[0], whole), others)
                return outcome.loss.value, (outcome.loss.weight, outcome.metrics)

            with no_backward_draws(_WHERE):
                taken = mx.value_and_grad(loss, argnums=(0, 1))(tree.leaves(at), _joined(parts))
            (value, (weight, metrics)), (summed, slopes) = taken
            summed = [gradient.astype(mx.float32) for gradient in summed]
            summed = second_pass(at, others, states, slopes, summed)
            more = (weight, metrics, states[-1])
            built = tree.map(lambda _: 0, more)
            return value, *summed, *tree.leaves(more)

        def slope_of_all(*arrays: mx.array) -> list[mx.array]:
            """Return the same gradient in one piece, for derivatives of it."""
            others = taken_apart(arrays)[1]

            def loss(leaves: list[mx.array]) -> mx.array:
                at = tree.unflatten(form[0], leaves)
                parts, _ = first_pass(at, others)
                return loss_of(at, tree.unflatten(parts[0], _joined(parts)), others).loss.value

            return [gradient.astype(mx.float32) for gradient in mx.grad(loss)(list(arrays[:count]))]

        # The gradient that is there, as a function of the parameters: only a gradient through the step
        # asks for its derivative, and only then is the loss of all parts built again.
        known: Any = mx.custom_function(lambda *arrays: list(arrays[-count:]))

        @known.vjp
        def curvature(primals: Any, cotangents: Any, outputs: Any) -> Any:
            leaves, others, found = primals[:count], primals[count:-count], primals[-count:]
            cotangents = list(cotangents) if isinstance(cotangents, (tuple, list)) else [cotangents]
            made = mx.vjp(lambda *p: slope_of_all(*p, *others), list(leaves), cotangents)[1]
            return [*made, *(mx.zeros_like(x) for x in (*others, *found))]

        forward: Any = mx.custom_function(with_gradient)

        @forward.vjp
        def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
            gradients = known(*primals, *map(mx.stop_gradient, outputs[1 : 1 + count]))
            made = zip(gradients, primals[:count], strict=True)
            slopes = [(cotangents[0] * gradient).astype(leaf.dtype) for gradient, leaf in made]
            return [*slopes, *(mx.zeros_like(x) for x in primals[count:])]

        value, *rest = forward(*leaves, *others)
        weight, metrics, new = tree.unflatten(built, [mx.stop_gradient(x) for x in rest[count:]])
        return Mean(value * weight, weight), metrics, new

    return step_for(_WHERE, cached, transform, stateful=True)


def _joined(parts: list[Tree]) -> list[mx.array]:
    return [mx.concatenate(list(pieces)) for pieces in zip(*map(tree.leaves, parts), strict=True)]


def _check_representations(found: Tree, cut: Batch) -> None:
    name = "representations"
    named = [(tree.join(name, path) if path else name, leaf) for path, leaf in tree.items(found)]
    rows = tree.leaves(cut)[0].shape[:1]
    if not named:
        raise checks.error(_WHERE, "encode must return at least one array, got none")
    for path, leaf in named:
        if not isinstance(leaf, mx.array) or not mx.issubdtype(leaf.dtype, mx.floating):
            got = leaf.dtype if isinstance(leaf, mx.array) else f"a {type(leaf).__name__}"
            raise TypeError(f"{_WHERE}: {path} must be a floating array, got {got}")
        if leaf.shape[:1] != rows:
            raise checks.error(
                _WHERE, f"{path} must have a row for each of the {rows[0]} examples, got shape {leaf.shape}"
            )
