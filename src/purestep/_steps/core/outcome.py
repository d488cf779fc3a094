"""The results of a loss function in one form, and the checks on loss functions."""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.mean import AnyMean, Mean, MeanSum
from purestep._core.packing import unpacked
from purestep._core.rng import fold_in, forbidden, scope
from purestep._core.tracing import context
from purestep._core.types import Batch, Params, Tree
from purestep._steps.state import check_arrays
from purestep._transforms.core.unpacking import accepts_packed

_handle = mx.array.__copy__  # `copy.copy` takes three times as long
# Folded into the step's key for draws without one, so that they differ from others.
_KEYLESS = mx.array(0x6B65, mx.uint32)


class Outcome(NamedTuple):
    """One evaluation of a loss function. Each number is a `Mean` or a sum of them, so evaluations merge.

    Attributes:
        loss: the loss.
        metrics: the other metrics of the loss function.
        model_state: the state after the forward pass; `None` for a loss function without one.
    """

    loss: AnyMean
    metrics: dict[str, AnyMean]
    model_state: Tree

    def merge(self, later: "Outcome") -> "Outcome":
        """Merge two evaluations over different data, with the later model_state."""
        metrics = {name: Mean.merge(mean, later.metrics[name]) for name, mean in self.metrics.items()}
        return Outcome(Mean.merge(self.loss, later.loss), metrics, later.model_state)


def outcome_of(
    caller: str,
    loss_fn: Callable[..., Any],
    params: Params,
    model_state: Tree,
    batch: Batch,
    rng: mx.array | None,
    *,
    stateful: bool,
    training: bool = False,
    owned: bool = False,
) -> Outcome:
    """Call a loss function and check its results.

    A plain scalar, as the loss or a metric, becomes a mean of weight 1. The loss function receives containers
    and handles of its own: writing into them changes nothing outside.

    Args:
        caller: the public name for errors.
        loss_fn: the loss function.
        params: its parameters.
        model_state: its model_state, if `stateful`.
        batch: its batch.
        rng: its key, or `None`.
        stateful: whether it takes and returns a model_state.
        training: whether a training step calls it. Modules that it runs then need a key or `train=False`.
        owned: whether the containers and handles of `params`, `model_state` and `batch` are its own already.
    """
    # The vectors of `packed` become the model's own tree. `compute_in` is made for vectors.
    params = params if accepts_packed(loss_fn) else unpacked(params)
    if not owned:
        params, model_state, batch = own((params, model_state, batch))
    rng = copy.copy(rng)
    with context.training_step(tree.leaves(params)) if training else nullcontext():
        returned = loss_fn(params, model_state, batch, rng) if stateful else loss_fn(params, batch, rng)
    if stateful:
        if type(returned) is not tuple or len(returned) != 3:
            raise TypeError(
                f"{caller}: a stateful loss_fn must return (loss, metrics, model_state), "
                f"got {_shown(returned)}"
            )
        loss, metrics, model_state = returned
        check_arrays(caller, "loss_fn's model_state", model_state)
    else:
        if type(returned) is not tuple:
            returned = (returned, {})
        if len(returned) != 2:
            raise TypeError(f"{caller}: loss_fn must return loss or (loss, metrics), got {_shown(returned)}")
        loss, metrics = returned
    if type(metrics) is not dict:
        raise TypeError(f"{caller}: loss_fn's metrics must be a dict of 0-d arrays, got {_shown(metrics)}")
    means = {name: _mean(caller, f"metric {name!r}", value) for name, value in metrics.items()}
    return Outcome(_mean(caller, "loss", loss), means, model_state)


def own(value: Tree) -> Tree:
    """Return the tree in new containers, with new handles of the same arrays."""
    return tree.map(_handle, value)


def keyless(key: mx.array) -> AbstractContextManager[None]:
    """Make draws without a key, within the block, a function of `key` and independent of draws with it."""
    return scope(fold_in(key, _KEYLESS))


def no_backward_draws(caller: str) -> AbstractContextManager[None]:
    """Refuse draws without a key in the backward pass, outside the scopes of the forward pass.

    A function that `mx.checkpoint` decorates at its definition captures no scope. When it is recomputed, it
    would draw other numbers than in the forward pass.
    """
    return forbidden(
        f"{caller}: in the backward pass,",
        "call mx.checkpoint within the loss function, not as a decorator, or draw from a key",
    )


def check_loss_fn(caller: str, loss_fn: Any, *, stateful: bool, name: str = "loss_fn") -> None:
    """Refuse a loss function, or an encoder, that does not take the expected arguments."""
    plain, full = ("params", "batch", "rng"), ("params", "model_state", "batch", "rng")
    want, other = (full, plain) if stateful else (plain, full)
    check_takes(caller, name, loss_fn, want, other, f"; pass stateful={not stateful}")


def check_takes(
    caller: str, name: str, fn: Any, want: tuple[str, ...], other: tuple[str, ...] = (), hint: str = ""
) -> None:
    """Refuse a function without these arguments, with a hint if it takes the `other` arguments."""
    checks.function(caller, name, fn)
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    if _takes(signature, want):
        return
    got = f"{getattr(fn, '__name__', 'one')}{signature}"
    more = f"{hint} for one that takes ({', '.join(other)})" if other and _takes(signature, other) else ""
    raise TypeError(f"{caller}: {name} must take ({', '.join(want)}), got {got}{more}")


def _takes(signature: inspect.Signature, names: tuple[str, ...]) -> bool:
    try:
        signature.bind(*names)
    except TypeError:
        return False
    return True


def _mean(caller: str, name: str, value: Any) -> AnyMean:
    if isinstance(value, MeanSum):
        return MeanSum(tuple(_term(caller, name, mean) for mean in value.terms))
    return _term(caller, name, value)


def _term(caller: str, name: str, value: Any) -> Mean:
    for part in value if isinstance(value, Mean) else (value,):
        if not isinstance(part, mx.array):
            raise TypeError(f"{caller}: loss_fn's {name} must be a 0-d array or a Mean, got {_shown(part)}")
        if part.ndim != 0:
            raise ValueError(f"{caller}: loss_fn's {name} must be a scalar, got shape {part.shape}")
    dtype = value.total.dtype if isinstance(value, Mean) else value.dtype
    floating = mx.issubdtype(dtype, mx.floating)
    if not floating and (name == "loss" or dtype == mx.complex64):
        kind = "floating" if name == "loss" else "real"
        raise TypeError(f"{caller}: loss_fn's {name} must be {kind}, got {tree.dtype_name(dtype)}")
    if isinstance(value, Mean):
        # The weight is a count of data. No gradient flows through it: microbatches could not compute one.
        return Mean(value.total, mx.stop_gradient(value.weight))
    return Mean(value.astype(mx.float32), mx.array(1.0))


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")
