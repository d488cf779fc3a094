"""`run`: a loop in which the device never waits for Python."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Batch, Metrics, OnPolicySource, Source, StepFn
from purestep._data.core.ranks import whole_of
from purestep._loop.profiling.clock import OFF, OTHER, Off, take
from purestep._loop.running.cursor import Drawn, batches_per_epoch, check_source, cursor_for, is_on_policy
from purestep._loop.running.feeding import INTERRUPTED, Feed
from purestep._parallel.watchdog import beat
from purestep._steps.compile import Compiled
from purestep._steps.step import Step

State = TypeVar("State")


class SourceEndedWarning(UserWarning):
    """A source had fewer batches than the steps that were asked for."""


class Made(NamedTuple):
    """A step that is done: the state after it, its metrics, the batch it was made with.

    `last` is true for the last step of a run that reached its end: no batch comes after it. `alone` is true
    if no further step was sent, also in a run that a signal or an error ends.
    """

    state: Any
    metrics: Metrics
    drawn: Drawn
    last: bool = False
    alone: bool = False


class Span(NamedTuple):
    """The steps of a run: the first one, the number of steps at the end, and passes over an iterable."""

    start: int
    steps: int | None
    passes: int | None

    @property
    def most(self) -> int | None:
        """The most steps to make."""
        return None if self.steps is None else self.steps - self.start


def run(
    step: StepFn,
    state: State,
    source: Source | OnPolicySource | Iterable[Batch],
    *,
    steps: int | None = None,
    epochs: int | None = None,
    start: int | None = None,
    prefetch: int = 2,
) -> Iterator[tuple[State, Metrics]]:
    """Make steps one after the other; yield the state and the metrics of each.

    Step k + 1 is sent to the device before step k is handed out, so the device works while Python does. The
    loop is never more than one step ahead: it waits for step k before it sends step k + 2. When a state is
    handed out, its metrics are computed: `.item()` does not wait. Leaving the loop early is safe; the step
    that was sent ahead is dropped. An iterator is then ahead by up to `prefetch + 2` batches.

    A thread prepares up to `prefetch` batches and evaluates them. Python's garbage collector does not scan
    the objects that exist when the loop starts.

    The loop holds two states and the caller a third. An error in the source or the step is raised after all
    steps made before it are handed out.

    Args:
        step: `step(state, batch) -> (state, metrics)`. A call of a step of `scan` counts as one step here.
        state: the state before the first step.
        source: an iterable of batches, an object with `at(step) -> batch`, or an on-policy source such as
            `data.rollout`, with `at(state) -> batch` and the attribute `on_policy = True`. Its batches are
            sampled on the thread of the loop.
        steps: the number of steps at the end, those before `start` included. An iterable that ends earlier is
            read again; an iterator is not.
        epochs: passes over the data, in place of `steps`. For `at(step)`, `len(source)` is the number of
            batches of one epoch.
        start: steps made before: `at` is called with `start`, `start + 1`, ... The default is `state.step`,
            `state["step"]` for a dict, or 0 if the state has none; for a step of `scan`, divided by its `k`.
            The members of a population must have made equal numbers of steps. An iterable is read from its
            beginning.
        prefetch: batches to prepare ahead. 0 prepares each on the thread of the loop.

    Without `steps` and `epochs`, an iterable is read once, and a source with `at` has no end.

    Raises:
        ValueError: if `steps` and `epochs` are both given or out of range, or the source has no batch.
        TypeError: if the source is of another kind.

    Warns:
        SourceEndedWarning: if an iterator ends before `steps`.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = ps.train_step(loss_fn, transform)
    >>> for state, metrics in run(step, state, [{"x": mx.array([2.0])}], steps=3):
    ...     print(metrics["loss"].item())
    4.0
    1.0
    0.25
    """
    caller = "run"
    checks.function(caller, "step", step)
    check_source(caller, source)
    prefetch = checks.integer(caller, "prefetch", prefetch, least=0)
    span = span_of(caller, source, steps, epochs, calls_before(step, state) if start is None else start)
    cursor = cursor_for(caller, source, span.start, span.passes)
    feed = Feed(cursor, span.most, 0 if needs_no_thread(source) else prefetch)
    return _handed_out(caller, step, state, feed, span)


def span_of(caller: str, source: Any, steps: int | None, epochs: int | None, start: int) -> Span:
    """Return the steps of a run; refuse numbers that contradict each other."""
    if steps is not None and epochs is not None:
        raise checks.error(
            caller, f"steps and epochs exclude each other, got steps={steps} and epochs={epochs}"
        )
    start = checks.integer(caller, "start", start, least=0)
    if steps is not None:
        steps = checks.integer(caller, "steps", steps, least=0)
        if steps < start:
            raise checks.error(
                caller,
                f"steps must be at least {start}: it counts the {start} steps made before, got {steps}",
            )
        return Span(start, steps, None)
    has_at = hasattr(source, "at")
    if epochs is None:
        return Span(start, None, None if has_at else 1)
    epochs = checks.integer(caller, "epochs", epochs, least=1)
    if not has_at:
        return Span(start, None, epochs)
    length = None if is_on_policy(source) else batches_per_epoch(source)
    if length is None:
        raise checks.error(caller, "epochs needs a source with a length above 0: give steps, or len(source)")
    return Span(start, max(epochs * length, start), None)


def calls_before(step: StepFn, state: Any) -> int:
    """Return how often a step was called to reach a state: its steps, divided by those of one call."""
    return _made_before(state) // steps_a_call(step)


def steps_a_call(step: StepFn) -> int:
    """Return the number of training steps that one call makes."""
    return step.steps if isinstance(step, (Step, Compiled)) else 1


def _made_before(state: Any) -> int:
    """Return the step of a state, a field or a key, or 0 if it has none. Waits for the device."""
    found: Any = state.get("step") if isinstance(state, Mapping) else getattr(state, "step", None)
    if isinstance(found, mx.array) and found.ndim == 1 and mx.issubdtype(found.dtype, mx.integer):
        made: Any = sorted({*found.tolist()})  # type: ignore[misc]  # the steps of a population's members
        if len(made) > 1:
            rule = "start must be given for a population whose members have made different numbers of steps"
            raise checks.error("run", f"{rule}, got {made[0]} to {made[-1]}")
        return made[0] if made else 0
    found = found.item() if isinstance(found, mx.array) and found.size == 1 else found
    return found if isinstance(found, int) else 0


def needs_no_thread(source: Any) -> bool:
    """Tell whether a thread would prepare nothing, or may not: batches in memory, and on-policy sources."""
    return isinstance(whole_of(source), (list, tuple)) or is_on_policy(source)


def _handed_out(
    caller: str, step: StepFn, state: State, feed: Feed, span: Span
) -> Iterator[tuple[State, Metrics]]:
    count, clock = 0, take()
    for made in pipelined(caller, step, state, feed, start=span.start, clock=clock):
        state = None  # type: ignore[assignment]  # the loop holds no state but those in flight
        count += 1
        clock.at("loop body")
        yield made.state, made.metrics
        clock.at(OTHER)
        del made
    if span.most is not None and count < span.most:
        warnings.warn(
            f"{caller}: source ended after {count} of {span.most} steps", SourceEndedWarning, stacklevel=2
        )


def pipelined(
    caller: str,
    step: StepFn,
    state: Any,
    feed: Feed,
    interrupted: Callable[[], bool] = bool,
    *,
    start: int = 0,
    clock: Off = OFF,
) -> Iterator[Made]:
    """Yield each step after the next one is dispatched.

    Once `interrupted` returns true no step is dispatched, and an error of a step is not raised: Ctrl-C in a
    terminal also ends the compilers that MLX starts for the first step. `start` is the number of steps made
    before: it tells which measurements are due.
    """
    before: Made | None = None
    failure: Exception | None = None
    ended = False
    number = start
    with feed, quiet_collector():
        clock.begin(step)
        while True:
            try:
                clock.at("data")
                drawn = feed.next(state, interrupted)
                ended = drawn is None
                if drawn is None or drawn is INTERRUPTED or interrupted():
                    break
                clock.at("build")
                due = step.at(number) if isinstance(step, (Step, Compiled)) else step
                state, metrics = _built(caller, due, state, drawn.batch)
                drawn = feed.agreed(drawn)
                ended = drawn is None
                if drawn is None or drawn is INTERRUPTED:
                    break
                clock.dispatching()
                mx.async_eval(state, metrics)
                clock.dispatched()
                number += 1
            except Exception as error:
                failure = feed.failed(error)
                break
            if before is not None:
                clock.at("wait")
                _wait(before)
                clock.at(OTHER)
                handed, before = before, None
                yield handed
                del handed
            before = Made(state, metrics, drawn)
            clock.lap()
        del state
        if before is not None and not feed.lost:
            mx.eval(before.state, before.metrics)
            yield before._replace(last=ended, alone=True)
        # Ctrl-C in a terminal also ends the compilers that MLX starts, and MLX raises a RuntimeError.
        if failure is not None and not (type(failure) is RuntimeError and interrupted()):
            raise failure


def _built(caller: str, step: StepFn, state: Any, batch: Batch) -> tuple[Any, Metrics]:
    beat()
    made: Any = step(state, batch)
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise TypeError(f"{caller}: step must return (state, metrics), got {type(made).__name__}")
    state, metrics = made
    return state, metrics


def _wait(made: Made) -> None:
    """Wait until a step is done: any of its metrics tells, and without metrics its state."""
    arrays = isinstance(made.metrics, dict) and any(isinstance(m, mx.array) for m in made.metrics.values())
    mx.eval(made.metrics if arrays else made.state)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Keep Python's garbage collector from scanning the objects that exist now.

    A full collection walks through every container of the process: half a second in a large one. Objects that
    are made later are collected as usual. The last of several loops at a time ends it.
    """
    _loops.append(True)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        _loops.pop()
        if not _loops:
            gc.unfreeze()


_loops: list[bool] = []  # one for each loop that runs now
