"""What a loss function returns, in one form."""

import copy
import inspect
from contextlib import nullcontext
from typing import Any, NamedTuple

import mlx.core as mx

from purestep import checks, context, tree
from purestep.mean import AnyMean, Mean, MeanSum
from purestep.state import check_arrays
from purestep.types import Batch, LossFn, Params, Tree


class Outcome(NamedTuple):
    """One evaluation of a loss function, each number a `Mean` or a sum of them, so that evaluations merge.

    Attributes:
        loss: what is minimized.
        metrics: what else the loss function reported.
        model_state: as the forward pass left it; `None` for a loss function that has none.
    """

    loss: AnyMean
    metrics: dict[str, AnyMean]
    model_state: Tree

    def merge(self, later: "Outcome") -> "Outcome":
        """Join two evaluations over different data; the later one's model_state stands."""
        metrics = {name: Mean.merge(mean, later.metrics[name]) for name, mean in self.metrics.items()}
        return Outcome(Mean.merge(self.loss, later.loss), metrics, later.model_state)


def outcome_of(
    where: str,
    loss_fn: LossFn,
    params: Params,
    model_state: Tree,
    batch: Batch,
    rng: mx.array | None,
    *,
    stateful: bool,
    training: bool = False,
) -> Outcome:
    """Call a loss function and check what it returns.

    A plain scalar, for the loss or a metric, is a mean of weight 1. In `training`, a module that `loss_fn`
    runs must be given a key or be told to evaluate. The function gets containers and handles of
    its own: what it writes into them does not reach the caller's.
    """
    params, model_state, batch = own(params), own(model_state), own(batch)
    with context.training_step(tree.leaves(params)) if training else nullcontext():
        returned = loss_fn(params, model_state, batch, rng) if stateful else loss_fn(params, batch, rng)
    if stateful:
        if type(returned) is not tuple or len(returned) != 3:
            raise TypeError(
                f"{where}: a stateful loss_fn must return (loss, metrics, model_state), "
                f"got {_shown(returned)}"
            )
        loss, metrics, model_state = returned
        check_arrays(where, "loss_fn's model_state", model_state)
    else:
        if type(returned) is not tuple:
            returned = (returned, {})
        if len(returned) != 2:
            raise TypeError(f"{where}: loss_fn must return loss or (loss, metrics), got {_shown(returned)}")
        loss, metrics = returned
    if type(metrics) is not dict:
        raise TypeError(f"{where}: loss_fn's metrics must be a dict of 0-d arrays, got {_shown(metrics)}")
    means = {name: _mean(where, f"metric {name!r}", value) for name, value in metrics.items()}
    return Outcome(_mean(where, "loss", loss), means, model_state)


def own(value: Tree) -> Tree:
    """Return the same tree in new containers, by new handles of the same arrays."""
    return tree.map(copy.copy, value)


def check_loss_fn(where: str, loss_fn: LossFn, *, stateful: bool) -> None:
    """Refuse a loss function that does not take the arguments it will be given."""
    checks.function(where, "loss_fn", loss_fn)
    try:
        signature = inspect.signature(loss_fn)
    except (TypeError, ValueError):  # a builtin, which does not say
        return
    plain, full = ("params", "batch", "rng"), ("params", "model_state", "batch", "rng")
    want, other = (full, plain) if stateful else (plain, full)
    if _takes(signature, want):
        return
    hint = f"; pass stateful={not stateful} for one that takes ({', '.join(other)})"
    name = getattr(loss_fn, "__name__", "one")
    raise TypeError(
        f"{where}: loss_fn must take ({', '.join(want)}), got {name}{signature}"
        + (hint if _takes(signature, other) else "")
    )


def _takes(signature: inspect.Signature, names: tuple[str, ...]) -> bool:
    try:
        signature.bind(*names)
    except TypeError:
        return False
    return True


def _mean(where: str, name: str, value: Any) -> AnyMean:
    if isinstance(value, MeanSum):
        return MeanSum(tuple(_term(where, name, mean) for mean in value.terms))
    return _term(where, name, value)


def _term(where: str, name: str, value: Any) -> Mean:
    for part in value if isinstance(value, Mean) else (value,):
        if not isinstance(part, mx.array):
            raise TypeError(f"{where}: loss_fn's {name} must be a 0-d array or a Mean, got {_shown(part)}")
        if part.ndim != 0:
            raise ValueError(f"{where}: loss_fn's {name} must be a scalar, got shape {part.shape}")
    dtype = value.total.dtype if isinstance(value, Mean) else value.dtype
    floating = mx.issubdtype(dtype, mx.floating)
    if not floating and (name == "loss" or dtype == mx.complex64):
        raise TypeError(f"{where}: loss_fn's {name} must be floating, got {tree.dtype_name(dtype)}")
    if isinstance(value, Mean):
        # The weight counts data. Microbatches could not follow a gradient through it, so none does.
        return Mean(value.total, mx.stop_gradient(value.weight))
    return Mean(value.astype(mx.float32), mx.array(1.0))


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")
