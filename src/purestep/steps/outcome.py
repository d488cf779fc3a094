"""What a loss function returns, in one form."""

from typing import Any, NamedTuple

import mlx.core as mx

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
) -> Outcome:
    """Call a loss function and check what it returns.

    A plain scalar, for the loss or a metric, is a mean of weight 1.
    """
    if stateful:
        returned = loss_fn(params, model_state, batch, rng)
        if type(returned) is not tuple or len(returned) != 3:
            raise TypeError(
                f"{where}: a stateful loss_fn must return (loss, metrics, model_state), "
                f"got {_shown(returned)}"
            )
        loss, metrics, model_state = returned
        check_arrays(where, "loss_fn's model_state", model_state)
    else:
        returned = loss_fn(params, batch, rng)
        if type(returned) is not tuple:
            returned = (returned, {})
        if len(returned) != 2:
            raise TypeError(f"{where}: loss_fn must return loss or (loss, metrics), got {_shown(returned)}")
        loss, metrics = returned
    if type(metrics) is not dict:
        raise TypeError(f"{where}: loss_fn's metrics must be a dict of 0-d arrays, got {_shown(metrics)}")
    means = {name: _mean(where, f"metric {name!r}", value) for name, value in metrics.items()}
    return Outcome(_mean(where, "loss", loss), means, model_state)


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
    if isinstance(value, Mean):
        # The weight counts data. Microbatches could not follow a gradient through it, so none does.
        return Mean(value.total, mx.stop_gradient(value.weight))
    return Mean(value.astype(mx.float32), mx.array(1.0))


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")
