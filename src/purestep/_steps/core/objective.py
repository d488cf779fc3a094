"""What a step differentiates, and the result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import norms
from purestep._core.types import Batch, Params, Tree, Updates
from purestep._layers.observing import Observed, Watch
from purestep._steps.core.outcome import Outcome, keyless, outcome_of
from purestep._steps.core.ranks.summing import Chain, Ranks


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
        ranks: the processes that compute the step together, each with rows of its own.
    """

    caller: str
    loss_fn: Callable[..., Any]
    microbatches: int
    stateful: bool
    watches: tuple[Watch, ...] = ()
    small_squares: bool = False
    ranks: Ranks | None = None

    @property
    def parts(self) -> int:
        """The number of parts of the whole batch, over all ranks."""
        return self.microbatches * (1 if self.ranks is None else self.ranks.size)

    def outcome(
        self, params: Params, model_state: Tree, batch: Batch, key: mx.array, *, owned: bool = False
    ) -> Outcome:
        """Evaluate the loss function in training, with every random draw a function of `key`.

        `owned` is that of `outcome_of`.
        """
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
                owned=owned,
            )


class Differentiated(NamedTuple):
    """A loss, its outcome and its gradient.

    Attributes:
        value: the loss, 0-d float32. Unlike `outcome`, it carries an outer gradient.
        outcome: the loss as a `Mean`, the metrics and the model_state.
        gradients: a tree like the parameters.
        observed: the statistics of each watch, by the path of the layer.
        small_square: the weighted mean of the squared norms of the microbatches' gradients.
        weighted_parts: the number of microbatches with a weight other than 0; like `small_square`, `None` if
            it is not wanted.
        narrow: the gradients before they were cast to the dtypes of the parameters; the same numbers.
        chain: the sums over ranks that this result needs; `None` in a single process.
    """

    value: mx.array
    outcome: Outcome
    gradients: Updates
    observed: list[Observed]
    small_square: mx.array | None = None
    weighted_parts: mx.array | None = None
    narrow: Updates = None
    chain: Chain | None = None

    @property
    def norm(self) -> mx.array:
        """The norm of the gradients, 0-d float32."""
        return norms.norm(self.gradients if self.narrow is None else self.narrow)


def narrowed(objective: Objective) -> tuple[Callable[[Params], Params] | None, Objective]:
    """Return how the parameters are cast, if the loss function says it, and the objective on those."""
    found: Narrowed | None = getattr(objective.loss_fn, "narrowed", None)
    if found is None or found.whole is not objective.loss_fn:
        return None, objective
    return found.cast, objective._replace(loss_fn=found.loss_fn)
