"""Compiled steps, and the bound on how often a step is compiled."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import mlx.core as mx

from purestep._core import checks, tree
from purestep._steps.core import tracing
from purestep._steps.core.running import run, run_stage
from purestep._steps.core.staging import InseparableError, Stages
from purestep._steps.core.tracing import NotCompiledWarning as NotCompiledWarning
from purestep._steps.state import check_arrays
from purestep._steps.step import Step

_MAX_TRACES = 8

Args = ParamSpec("Args")
Result = TypeVar("Result")


class Compiled(Generic[Args, Result]):
    """A compiled step. Call it like the step itself; `compiled` makes it.

    >>> step = compiled(lambda state, batch: (state, {"sum": batch["x"].sum()}))
    >>> step({"w": mx.zeros(1)}, {"x": mx.ones(3)})[1]
    {'sum': array(3, dtype=float32)}
    >>> step.traces
    1

    Attributes:
        step: the step before compilation.
        traces: the number of traces made so far, in all threads that are alive.
    """

    def __init__(self, step: Callable[Args, Result], max_traces: int, keep: int | None, staged: bool = False):
        self.step = step
        self._max_traces, self._keep, self._staged = max_traces, keep, staged
        self._starting = getattr(step, "starting", None)
        self._chosen: dict[int, Compiled[Args, Result]] = {}  # by the `id` of a step that `step` keeps
        self._threads: weakref.WeakSet[tracing.Traces] = weakref.WeakSet()
        local = _Local(self._threads)
        # Not a method of this object: a reference cycle would keep the arrays that the step captures in
        # memory.
        self._call = (
            mx.compile(partial(run, step, local.current, max_traces, None))
            if keep is None
            else partial(_call_recent, step, local, keep)
        )
        if staged and isinstance(step, Step) and step.divides:
            stages = Stages(lambda function: mx.compile(partial(run_stage, function, local.current)))
            self._call = partial(_call_in_stages, step, local.current, max_traces, stages, self._call)

    @property
    def traces(self) -> int:
        """The number of traces made so far, in all threads that are alive."""
        own = sum(traces.made for traces in list(self._threads))
        return own + sum(each.traces for each in list(self._chosen.values()))

    @property
    def steps(self) -> int:
        """The number of training steps that one call makes."""
        return self.step.steps if isinstance(self.step, Step) else 1

    def at(self, number: int) -> "Compiled[Args, Result]":
        """Return the compiled step with the measurements that are due after `number` steps; see `Step.at`.

        Each set of measurements is compiled once, when it is first due.
        """
        chosen: Any = self.step.at(number) if isinstance(self.step, Step) else self.step
        if chosen is self.step:
            return self
        if id(chosen) not in self._chosen:
            self._chosen[id(chosen)] = Compiled(chosen, self._max_traces, self._keep, self._staged)
        return self._chosen[id(chosen)]

    if TYPE_CHECKING:

        def __call__(self, *args: Args.args, **kwargs: Args.kwargs) -> Result: ...

    else:

        def __call__(self, state: Any, batch: Any) -> Any:
            """Return the result of the step."""
            if self._starting is not None:
                self._starting(state)
                self._starting = None
            try:
                return self._call(state, batch)
            except IndexError as error:
                clearer = tracing.reworded_index(error)
                if clearer is None:
                    raise
                raise clearer from error
            except ValueError as error:
                if "uncaptured inputs" not in str(error):
                    # MLX's error for a leaf that is not an array has no path. These checks raise one with it.
                    check_arrays("compiled", "state", state)
                    check_arrays("compiled", "batch", batch)
                    raise
            # The step captures an array that it also receives, and MLX refuses to trace that. This call
            # passes other arrays with the same data; in the trace the captured array is a constant.
            return self._call(*tree.map(mx.contiguous, (state, batch)))


def compiled(
    step: Callable[Args, Result],
    *,
    max_traces: int | None = None,
    keep: int | None = None,
    staged: bool = False,
) -> Compiled[Args, Result]:
    """Compile a step. MLX traces it once for each set of shapes and dtypes of its arguments.

    An array that the step captures is a constant of its trace: it keeps the value that it had when the step
    was traced, and its memory is held until the trace is freed. The step may also receive that array as an
    argument. For example, a loss may capture the starting parameters as a reference.

    Compile last: inside `mx.vmap`, `mx.grad` or another compiled function, MLX runs the Python function, and
    `compiled` has no effect. Each thread has its own traces, which are freed when the thread ends.

    Args:
        step: `step(state, batch)` from `train_step` or `eval_step`, or your own pure function.
        max_traces: the number of sets of shapes and dtypes that each thread may trace; `None` is 8. Each
            trace takes time to compile, and its memory is held until the compiled step is freed.
        keep: use it instead of `max_traces` for batches of many shapes: the traces of the `keep` most recent
            shapes are kept, and others are freed. A freed shape is traced again when it returns. Each call
            reads the shapes of the batch in Python, which takes about a microsecond per array. `None`: all
            traces are kept.
        staged: compile each microbatch of `train_step` as a call of its own. The first call takes less time,
            since two microbatches are traced, however many there are, and a GPU computes a microbatch while
            the host prepares the next.
            A call then starts computing. The numbers are those of a step that is compiled as a whole, up to
            rounding. Other steps are compiled as a whole: those without microbatches, of several processes,
            or with a loss that is a sum of means, and those of other functions than `train_step`.

    Returns:
        A callable with the signature of `step`. Its attribute `traces` is the number of traces made so far.

    Raises:
        ValueError: if a call needs more than `max_traces` traces, with the paths whose shape or dtype varies.
            It is raised before any work, and the shapes that are compiled continue to work.
        ValueError: if the step reads the value of an array, by a Python `if`, `float()` or `.item()`, with
            the line of code; if it draws random numbers from MLX's global stream.
        TypeError: for a leaf that is not an array, with its path; for a result with values other than arrays,
            Python numbers and strings.

    Warns:
        NotCompiledWarning: once, with the reason, if MLX does not compile: after `mx.disable_compile()`,
            with `MLX_DISABLE_COMPILE` set, or on a Linux CPU without g++. The step then runs uncompiled.

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
                caller,
                f"max_traces and keep exclude each other, got max_traces={max_traces} and keep={keep}",
            )
    if max_traces is not None:
        max_traces = checks.integer(caller, "max_traces", max_traces, least=1)
    if staged and keep is not None:
        raise checks.error(caller, f"staged and keep exclude each other, got keep={keep} and staged=True")
    return Compiled(step, max_traces or _MAX_TRACES, keep, bool(staged))


class _Local(threading.local):
    """The traces of the current thread. They are freed with the thread, like MLX's traces."""

    def __init__(self, threads: "weakref.WeakSet[tracing.Traces]"):
        self.traces = tracing.Traces()
        self.recent: OrderedDict[Any, _Recent] = OrderedDict()  # the most recently used shape is last
        threads.add(self.traces)

    def current(self) -> tracing.Traces:
        """Return the traces of the calling thread."""
        return self.traces


class _Recent:
    """A compiled function for one set of shapes of the batch; MLX frees its traces with it."""

    def __init__(self, step: Callable[..., Any], traces: tracing.Traces):
        self.known: set[tree.Spec] = set()
        # The function refers neither to this object nor to the thread's table: a cycle would outlive the
        # compiled step.
        self.call = mx.compile(partial(run, step, lambda: traces, None, self.known))


def _call_recent(step: Callable[..., Any], local: _Local, keep: int, state: Any, batch: Any) -> Any:
    # Only the shapes of the batch are read: reading those of a whole state would slow down every step.
    shapes, recent, traces = _shapes(batch), local.recent, local.traces
    entry = recent.get(shapes)
    if entry is None:
        entry = recent[shapes] = _Recent(step, local.traces)
    else:
        recent.move_to_end(shapes)
    result = entry.call(state, batch)
    # A state with other shapes makes another trace of the same entry, so traces are counted. Entries are
    # counted too, since nothing is traced when MLX does not compile.
    while max(len(traces.held), len(recent)) > keep:
        for known in recent.popitem(last=False)[1].known:
            traces.discard(known)
    return result


def _call_in_stages(
    step: Callable[..., Any],
    current: Callable[[], tracing.Traces],
    most: int,
    stages: Stages,
    whole: Callable[..., Any],
    state: Any,
    batch: Any,
) -> Any:
    if stages.inseparable or tracing.is_traced(state, batch):
        return whole(state, batch)
    traces, made = current(), list[tree.Spec]()

    def enter() -> None:
        if not made:
            spec = tracing.spec_of(state, batch)
            traces.check_room(spec, most)
            made.append(spec)

    before, traces.enter = traces.enter, enter
    try:
        with stages.running():
            result = step(state, batch)
    except InseparableError:
        stages.inseparable = True
        return whole(state, batch)
    finally:
        traces.enter = before
    for spec in made:
        traces.add(spec)
    return result


def _shapes(node: Any) -> Any:
    kind = type(node)
    if kind is mx.array:
        return node.shape, node.dtype
    if kind is dict:
        return tuple((key, _shapes(child)) for key, child in node.items())
    return (kind, *map(_shapes, node)) if isinstance(node, (list, tuple)) else kind
