"""Compile a step, and notice when it is compiled over and over."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.rng import forbidden
from purestep._steps.core import tracing
from purestep._steps.core.tracing import NotCompiledWarning as NotCompiledWarning
from purestep._steps.state import check_arrays

_MAX_TRACES = 8
_DRAW = "take one from state.rng, or draw within rng.scope(key)"


class Compiled:
    """A compiled step; call it as the step itself. Made by `compiled`.

    Attributes:
        step: the step as it was, uncompiled.
        traces: how many traces were made so far, in all threads that are alive.
    """

    def __init__(self, step: Callable[..., Any], max_traces: int, keep: int | None):
        self.step = step
        self._threads: weakref.WeakSet[tracing.Traces] = weakref.WeakSet()
        mine = _Mine(self._threads)
        # Not a method of this object: it would be a cycle, which keeps what the step has captured.
        self._call = (
            mx.compile(partial(_run, step, mine.own, max_traces, None))
            if keep is None
            else partial(_call_recent, step, mine, keep)
        )

    @property
    def traces(self) -> int:
        """Return how many traces were made so far, in all threads that are alive."""
        return sum(traces.made for traces in list(self._threads))

    def __call__(self, state: Any, batch: Any) -> Any:
        try:
            return self._call(state, batch)
        except ValueError as error:
            if "uncaptured inputs" not in str(error):
                # MLX refuses a foreign leaf without saying which; arrays alone pass this check.
                check_arrays("compiled", "state", state)
                check_arrays("compiled", "batch", batch)
                raise
        # The step captures an array that it is also given, and MLX refuses to trace that. So this one call
        # gets other handles of the same data; in the trace the captured array is a constant.
        return self._call(*tree.map(mx.contiguous, (state, batch)))


def compiled(step: Callable[..., Any], *, max_traces: int | None = None, keep: int | None = None) -> Compiled:
    """Compile a step: the same function, its graph built once for each set of shapes and dtypes.

    An array that the step captures is a constant of its trace: it keeps the value that it had when the step
    was traced, and its memory until the trace is freed. The step may also receive it, as a loss that captures
    the starting parameters as its reference does.

    Compile last: inside `mx.vmap`, `mx.grad` or another compiled function, MLX runs the Python function, and
    `compiled` adds nothing. Each thread has traces of its own, which are freed when it ends.

    Args:
        step: `step(state, batch)`, as `train_step` or `eval_step` build it, or your own pure function.
        max_traces: how many sets of shapes and dtypes each thread may trace, 8 unless given. Each is
            compiled, and kept until the compiled step is dropped: an unbounded number leaks time and memory.
        keep: instead of that bound, for batches of many shapes: keep the traces of the `keep` most recent
            shapes and free the others. A shape that was freed is traced again when it comes back. Each call
            reads the shapes of the batch in Python, which takes about a microsecond an array.

    Returns:
        A callable like `step`, with `.traces`, the number of traces so far.

    Raises:
        ValueError: past `max_traces`, with the paths whose shape or dtype varies. The call that would
            trace is refused before any work; the shapes already compiled go on working. Also for a step that
            reads the value of an array, by a Python `if`, `float()` or `.item()`, with the line that does;
            and for one that draws random numbers from MLX's global stream.
        TypeError: for a leaf that is not an array, with its path, or a result that is not made of arrays.

    Warns:
        NotCompiledWarning: once, with the reason, where MLX does not compile: after `mx.disable_compile()`,
            with `MLX_DISABLE_COMPILE` set, or on Linux CPUs without g++. The step then runs uncompiled.

    >>> import purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.5)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = compiled(ps.train_step(loss_fn, transform))
    >>> for _ in range(3):
    ...     state, metrics = step(state, {"x": mx.array([1.0, 3.0])})
    >>> step.traces
    1
    """
    caller = "compiled"
    checks.function(caller, "step", step)
    if keep is not None:
        keep = checks.integer(caller, "keep", keep, least=1)
        if max_traces is not None:
            raise checks.error(
                caller, f"give max_traces, a bound, or keep, got max_traces={max_traces} and keep={keep}"
            )
    if max_traces is not None:
        max_traces = checks.integer(caller, "max_traces", max_traces, least=1)
    return Compiled(step, max_traces or _MAX_TRACES, keep)


class _Mine(threading.local):
    """What belongs to the thread that looks at it, and is freed with it, as MLX's traces are."""

    def __init__(self, threads: "weakref.WeakSet[tracing.Traces]"):
        self.traces = tracing.Traces()
        self.recent: OrderedDict[Any, _Recent] = OrderedDict()  # used last, stands last
        threads.add(self.traces)

    def own(self) -> tracing.Traces:
        """Return the traces of the thread that calls."""
        return self.traces


class _Recent:
    """A compiled function for one set of shapes of the batch; dropped, MLX frees its traces."""

    def __init__(self, step: Callable[..., Any], traces: tracing.Traces):
        self.known: set[str] = set()
        # Neither of itself nor of the thread's table: a cycle would outlive the compiled step.
        self.call = mx.compile(partial(_run, step, lambda: traces, None, self.known))


def _call_recent(step: Callable[..., Any], mine: _Mine, keep: int, state: Any, batch: Any) -> Any:
    # By the batch alone: reading the shapes of a whole state would cost every step.
    shapes, recent, held = _shapes(batch), mine.recent, mine.traces.held
    entry = recent.get(shapes)
    if entry is None:
        entry = recent[shapes] = _Recent(step, mine.traces)
    else:
        recent.move_to_end(shapes)
    result = entry.call(state, batch)
    # A state of other shapes is another trace of the same entry; without traces, entries are counted.
    while max(len(held), len(recent)) > keep:
        for known in recent.popitem(last=False)[1].known:
            held.pop(known, None)
    return result


def _shapes(node: Any) -> Any:
    kind = type(node)
    if kind is mx.array:
        return node.shape, node.dtype
    if kind is dict:
        return tuple((key, _shapes(child)) for key, child in node.items())
    return (kind, *map(_shapes, node)) if isinstance(node, (list, tuple)) else kind


def _run(
    step: Callable[..., Any],
    own: Callable[[], tracing.Traces],
    most: int | None,
    known: set[str] | None,
    state: Any,
    batch: Any,
) -> Any:
    # Runs while MLX traces, never in a step that is already compiled: nothing here costs a step time.
    spec, traces = tracing.spec_of(state, batch), own()
    if not tracing.is_traced(state, batch):
        if not traces.warned:
            traces.warned = True
            tracing.warn_not_compiled()
        return step(state, batch)
    traces.check_room(spec, most)
    try:
        # Draws from the global stream would be constants of the trace: the same numbers in every step.
        with forbidden("compiled: the step", _DRAW):
            result = step(state, batch)
    except (ValueError, RuntimeError) as error:
        reworded = tracing.reworded(error)
        if reworded is None:
            raise
        raise reworded from error
    tracing.check_result(result)
    traces.add(spec)
    if known is not None:
        known.add(repr(spec))
    return result
