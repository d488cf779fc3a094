"""`unrolled`: several steps as one differentiable function, whose activations are recomputed."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import checks, scalars, tree
from purestep._core.tracing.custom import custom_function
from purestep._core.tracing.ordering import after, gated
from purestep._core.types import Batch, Metrics
from purestep._steps.compile import Compiled
from purestep._steps.state import check_arrays

_CALLER = "unrolled"


def unrolled(
    step: Callable[..., tuple[Any, Metrics]], n: int, *, segment: int = 1
) -> Callable[..., tuple[Any, Metrics]]:
    """Build the function that makes `n` steps, for gradients through all of them (hypergradients).

    `unrolled(step, n)(state, batches)` has the values of `scan(step, n)`. `mx.grad` of anything computed from
    its results gives gradients with respect to anything in the state, such as an initial learning rate or the
    first parameters, and in the batches, such as the weights of examples. They are exact: they include how
    each step depends on all steps before.

    The function keeps the states between the steps and recomputes the activations of one step at a time while
    the gradient is taken. So its memory grows with `n` by one state and one batch a step, and each step is
    computed twice.

    Three gradients are zero by definition. An array that `step` captures, such as a coefficient of the
    loss that a closure holds, is a constant: pass it in `shared`. The weight of a `Mean` is a count, through
    which no gradient flows: for weights of examples that are learned, return a plain scalar loss. The root of
    a second moment of 0, in Adam and others, has no derivative: it counts as constant, so a parameter whose
    gradient is exactly 0 contributes nothing. (`scan` gives NaN there: add an `eps_root` such as 1e-12.)

    Args:
        step: `step(state, batch, *shared) -> (state, metrics)`, from `train_step` or another builder, or your
            own pure function. A compiled step is traced anew; compile the function that takes the gradient.
        n: the number of steps, at least 1.
        segment: the number of steps between two states that are kept for the whole gradient. The states
            within a segment are recomputed when its gradient is taken, and each step is computed three times.
            The root of `n` keeps the fewest states. 1 keeps all.

    Returns:
        A function of the state, of `batches`, a tree like one batch whose arrays have a new first axis of
        length `n`, and of `*shared`: trees of arrays that each step receives after its batch. It returns the
        last state and the metrics, each stacked along a new first axis of length `n`.

    Raises:
        TypeError, ValueError: if `n` or `segment` is not an integer of at least 1; on a call, before any step
            is made, if `batches` holds no array or one without a first axis of length `n`; if a step changes
            the structure, a shape or a dtype of the state. The error names the path.

    Reference: Maclaurin et al., gradient-based hyperparameter optimization, arXiv:1502.03492; Chen et al.,
    recomputation in segments, arXiv:1604.06174.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.1)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> train = unrolled(ps.train_step(loss_fn, transform), 2)
    >>> def last(rate):  # w = 1 - (1 - 2 rate) ** 2 after two steps
    ...     end, _ = train(ps.set_hyperparameters(state, learning_rate=rate), {"x": mx.array([[1.0], [1.0]])})
    ...     return end.params["w"]
    >>> mx.grad(last)(mx.array(0.25))
    array(2, dtype=float32)
    """
    checks.function(_CALLER, "step", step)
    n = checks.integer(_CALLER, "n", n, least=1)
    segment = checks.integer(_CALLER, "segment", segment, least=1)
    one: Callable[..., Any] = step.step if isinstance(step, Compiled) else step

    def call(state: Any, batches: Batch, *shared: Any) -> tuple[Any, Metrics]:
        check_arrays(_CALLER, "state", state)
        check_arrays(_CALLER, "shared", shared)
        rows = _rows(batches, n)
        made: list[Metrics] = []
        for start in range(0, n, segment):
            part = rows[start : start + segment]
            run = _checked(one) if segment == 1 else gated(_segment(one))
            if made:  # the activations of one step are in memory at a time
                before = tree.leaves((state, made[-1]))
                part = tree.unflatten(part, _constant(after(tree.leaves(part), before)))
            state, metrics = run(state, part, *shared) if segment > 1 else run(state, part[0], *shared)
            made += metrics if segment > 1 else [metrics]
        names = made[0]
        for index, metrics in enumerate(made):
            if not tree.alike(metrics, names):
                lines = tree.differences(tree.spec(metrics), tree.spec(names), f"step {index}", "step 0")
                raise checks.error(_CALLER, f"the metrics must be alike in all steps: {'; '.join(lines)}")
        return state, tree.map(lambda *values: mx.stack(list(values)), *made)

    return call


def _segment(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that makes one step for each batch of a list."""

    def run(state: Any, part: list[Batch], *shared: Any) -> tuple[Any, list[Metrics]]:
        made = []
        for batch in part:
            if made:
                before = tree.leaves((state, made[-1]))
                batch = tree.unflatten(batch, _constant(after(tree.leaves(batch), before)))
            state, metrics = _checked(step)(state, batch, *shared)
            made.append(metrics)
        return state, made

    return run


def _checked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the step, recomputed for its gradient; refuse results that the next step could not take."""

    def careful(*given: Any) -> Any:
        with scalars.differentiated():
            return step(*given)

    again = gated(careful)

    def call(state: Any, batch: Batch, *shared: Any) -> tuple[Any, Metrics]:
        returned = again(state, batch, *shared)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2 or type(returned[1]) is not dict:
            kind = type(returned).__name__
            raise TypeError(
                f"{_CALLER}: step must return (state, metrics), with a dict of metrics, got {kind}"
            )
        new, metrics = returned
        check_arrays(_CALLER, "metrics", metrics)
        if not tree.alike(state, new):
            lines = tree.differences(tree.spec(new), tree.spec(state), "the new state", "the old")
            raise checks.error(_CALLER, "step must keep the structure of the state: " + "; ".join(lines))
        return new, metrics

    return call


def _constant(leaves: list[mx.array]) -> list[mx.array]:
    return [x if mx.issubdtype(x.dtype, mx.floating) else mx.stop_gradient(x) for x in leaves]


def _rows(batches: Batch, n: int) -> list[Batch]:
    """Return the batch of each step. The gradient of a row is not an array of the size of all of them."""
    check_arrays(_CALLER, "batches", batches)
    items = tree.items(batches)
    if not items:
        raise checks.error(_CALLER, "batches must hold at least one array, got none")
    for path, leaf in items:
        if leaf.ndim == 0 or leaf.shape[0] != n:
            shown = tree.join("batches", path)
            raise checks.error(_CALLER, f"{shown} must have a first axis of length n={n}, got {leaf.shape}")
    split = [_split(leaf) for _, leaf in items]
    return [tree.unflatten(batches, [rows[index] for rows in split]) for index in range(n)]


def _split(array: mx.array) -> list[mx.array]:
    if not mx.issubdtype(array.dtype, mx.floating):
        return list(array)  # type: ignore[call-overload]
    function: Any = custom_function(lambda array: [array[index] for index in range(array.shape[0])])

    @function.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return mx.stack(list(cotangents))

    return function(array)
