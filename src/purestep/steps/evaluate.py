"""The evaluation step: `eval_step(state, batch) -> metrics`."""

from collections.abc import Callable

from purestep import checks
from purestep.mean import Mean
from purestep.state import TrainState, check_arrays
from purestep.steps.batches import check_batch
from purestep.steps.outcome import outcome_of
from purestep.types import Batch, LossFn


def eval_step(loss_fn: LossFn, *, stateful: bool = False) -> Callable[[TrainState, Batch], dict[str, Mean]]:
    """Build the pure function that measures a state on one batch.

    `loss_fn` is the one that `train_step` takes, called with `None` for its key: what `functional`
    made then runs in evaluation mode, and a loss function that needs a key says so.

    Returns:
        `step(state, batch) -> {"loss": Mean, ...}`, with the loss function's metrics as `Mean`s too, so
        that batches merge to the exact mean over all of them.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: ps.Mean.of(mx.square(params["w"] - batch["x"]))
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, ps.optimizers.sgd(0.5))
    >>> eval_step(loss_fn)(state, {"x": mx.array([1.0, 3.0])})
    {'loss': Mean(total=array(10, dtype=float32), weight=array(2, dtype=float32))}
    """
    where = "eval_step"
    checks.function(where, "loss_fn", loss_fn)

    def step(state: TrainState, batch: Batch) -> dict[str, Mean]:
        check_arrays(where, "state", state)
        check_batch(where, batch)
        outcome = outcome_of(where, loss_fn, state.params, state.model_state, batch, None, stateful=stateful)
        if "loss" in outcome.metrics:
            raise checks.refuse(where, "loss_fn's metrics may not be named loss")
        return {"loss": outcome.loss, **outcome.metrics}

    return step
