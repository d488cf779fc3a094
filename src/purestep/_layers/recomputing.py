"""Functions that are recomputed for their gradient."""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.rng import scope
from purestep._core.tracing import context, graph

Fn = TypeVar("Fn", bound=Callable[..., Any])


def recompute(fn: Fn) -> Fn:
    """Return a function that keeps only its arguments in memory, and is computed again for its gradient.

    Each function is recomputed only after the gradient of its outputs is computed, so under one `mx.eval` the
    activations of a single function are in memory at a time. `mx.checkpoint` alone has no such order. Draws
    without a key within `rng.scope`, as in a module's `apply(rng=)`, are the same in both runs.

    Gradients flow to the floating-point arrays among the arguments, not to arrays that `fn` reads from
    elsewhere: pass parameters as arguments. For the layers of a module use `functional(remat=)`.

    Args:
        fn: a function of trees of arrays; other arguments, such as strings, are passed on.

    Raises:
        ValueError: in a `train_step`, if `fn` uses parameters that are not among its arguments.

    Reference: Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174.

    >>> block = recompute(lambda w, x: mx.tanh(x @ w))
    >>> mx.grad(lambda w: block(w, mx.ones((1, 2))).sum())(mx.zeros((2, 2)))
    array([[1, 1],
           [1, 1]], dtype=float32)
    """
    checks.function("recompute", "fn", fn)
    recomputed = context.recomputed(fn)

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse_captured(fn, args, kwargs)
        return recomputed(*args, **kwargs)

    result: Any = call
    return result


def _refuse_captured(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a function that reads the parameters of the present training step from elsewhere."""
    step = context.current_step()
    if step is None:
        return
    named = {str(index): leaf for index, leaf in enumerate(step.leaves)}
    # Arguments that are computed from parameters are replaced, so that only the function's own use is found.
    stand_ins = tree.map(
        lambda x: mx.zeros(x.shape, x.dtype) if isinstance(x, mx.array) else x, (args, kwargs)
    )
    with scope(copy.copy(mx.random.state[0])):  # type: ignore[index]
        again_args, again_kwargs = stand_ins
        outputs = [
            leaf for leaf in tree.leaves(fn(*again_args, **again_kwargs)) if isinstance(leaf, mx.array)
        ]
    used = graph.used(outputs, named)
    if used:
        shapes = ", ".join(str(named[name].shape) for name in used[:3])
        raise checks.error(
            "recompute",
            f"fn must receive its parameters as arguments, got one that reads others, of shape {shapes}: "
            "their gradient would be lost",
        )
