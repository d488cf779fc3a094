"""The class of training steps, and the parts of one step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from purestep._core.types import Batch, Metrics, Updates
from purestep._steps.state import TrainState
from purestep._transforms.core.base import GradientTransform


class Parts(NamedTuple):
    """The results of one step together with its gradients and updates.

    >>> import mlx.core as mx, purestep as ps
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(1.0)}, transform)
    >>> step = ps.train_step(lambda params, batch, rng: params["w"] * batch["x"], transform)
    >>> parts = step.parts(state, {"x": mx.array(3.0)})
    >>> parts.gradients, parts.updates
    ({'w': array(3, dtype=float32)}, {'w': array(-1.5, dtype=float32)})

    Attributes:
        state: the new state.
        metrics: the metrics of the step.
        gradients: the gradients that the transform received, a tree like the parameters.
        updates: the updates that the transform returned, a tree like the parameters.
    """

    state: TrainState
    metrics: Metrics
    gradients: Updates
    updates: Updates


class Step:
    """A training step: `step(state, batch) -> (state, metrics)`, a pure function.

    `train_step`, `sam_step` and the other builders return a `Step`. You can also build one from your own
    function that returns `Parts`, and use it wherever a step is expected.

    >>> import mlx.core as mx, purestep as ps
    >>> def parts(state, batch):
    ...     return Parts(state.replace(step=state.step + 1), {"loss": batch["x"]}, {}, {})
    >>> state = ps.TrainState.create({"w": mx.array(1.0)}, ps.identity())
    >>> state, metrics = Step(parts)(state, {"x": mx.array(3.0)})
    >>> state.step, metrics["loss"]
    (array(1, dtype=int32), array(3, dtype=float32))

    Attributes:
        parts: `parts(state, batch) -> Parts`: the same step, which also returns its gradients and updates.
            Evaluation is lazy, so results that you do not use cost nothing.
        transform: the gradient transform of the step, or `None` if it is not known. `fit` uses it to flush an
            incomplete window of `accumulate`.
        steps: the number of training steps that one call makes: 1, and more for a step of `scan`.
        starting: called with the state before the first call of a compiled step, or `None`. It may wait for
            the device.
        group: the `mx.distributed.Group` of the processes that compute the step together, or `None`. `fit`
            takes its decisions together with them.
        divides: whether `compiled(staged=True)` can compile the microbatches of the step one by one.
    """

    def __init__(
        self,
        parts: Callable[[TrainState, Batch], Parts],
        *,
        transform: GradientTransform | None = None,
        choose: Callable[[int], "Step | None"] | None = None,
        steps: int = 1,
        starting: Callable[[TrainState], None] | None = None,
        group: Any = None,
        divides: bool = False,
    ):
        self.divides = divides
        self.parts, self.transform, self.steps, self.starting = parts, transform, steps, starting
        self.group = group
        self._choose = choose

    def at(self, number: int) -> "Step":
        """Return the step with the measurements that are due after `number` steps, and no others.

        A measurement with `every=n` costs nothing in the steps between, since the returned step does not
        contain it. Equal sets of measurements give the same object. `run` and `fit` call `at` themselves. In
        a loop of your own:

            for number, batch in enumerate(batches):
                state, metrics = step.at(number)(state, batch)

        Without measurements, `at` returns the step itself.
        """
        return (self._choose(number) if self._choose is not None else None) or self

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Return the new state and the metrics of the step."""
        made = self.parts(state, batch)
        return made.state, made.metrics


def around(
    inner: Step,
    parts: Callable[[Step, TrainState, Batch], Parts],
    *,
    transform: GradientTransform,
    starting: Callable[[TrainState], None] | None = None,
    group: Any = None,
) -> Step:
    """Return the step `parts(inner, state, batch)`; its `at` is that of `inner`."""
    chosen: dict[int, Step] = {}  # by the `id` of a step that `inner` keeps

    def choose(number: int) -> Step | None:
        step = inner.at(number)
        if step is inner:
            return None
        if id(step) not in chosen:
            chosen[id(step)] = Step(partial(parts, step), transform=transform, starting=starting)
        return chosen[id(step)]

    return Step(partial(parts, inner), transform=transform, choose=choose, starting=starting, group=group)
