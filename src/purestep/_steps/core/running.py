"""The functions that `mx.compile` calls to trace a step, or a stage of one."""

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep._core import cuda, tree
from purestep._core.rng import forbidden
from purestep._core.tracing import graph
from purestep._core.tracing.custom import differentiated_once
from purestep._steps.core import tracing

_REMEDY = "take one from state.rng, or draw within rng.scope(key)"


def run(
    step: Callable[..., Any],
    current: Callable[[], tracing.Traces],
    most: int | None,
    known: set[tree.Spec] | None,
    state: Any,
    batch: Any,
) -> Any:
    # MLX runs this function only while it traces, so nothing here slows down a compiled step.
    spec, traces = tracing.spec_of(state, batch), current()
    if not tracing.is_traced(state, batch):
        _warn(traces)
        return step(state, batch)
    traces.check_room(spec, most)
    result = _checked(step, state, batch)
    traces.add(spec)
    if known is not None:
        known.add(spec)
    return result


def run_stage(step: Callable[..., Any], current: Callable[[], tracing.Traces], *args: Any) -> Any:
    """Call a stage of a step on placeholders, or on arrays if MLX does not compile."""
    if not tracing.is_traced(_arrays(args)):
        _warn(current())
        return step(*args)
    current().enter()
    return _checked(step, *args)


def _warn(traces: tracing.Traces) -> None:
    if not traces.warned:
        traces.warned = True
        tracing.warn_not_compiled()


def _checked(step: Callable[..., Any], *args: Any) -> Any:
    try:
        # Draws from the global stream would be constants of the trace: the same numbers at every step.
        with forbidden("compiled: the step", _REMEDY):
            result = _traced(step, *args)
    except (ValueError, RuntimeError) as error:
        reworded = tracing.reworded(error)
        if reworded is None:
            raise
        raise reworded from error
    tracing.check_result(result)
    return result


def _arrays(trees: Any) -> list[mx.array]:
    return [leaf for leaf in tree.leaves(trees) if isinstance(leaf, mx.array)]


class _Trace(threading.local):
    def __init__(self) -> None:
        self.open = False


_trace = _Trace()


def _traced(step: Callable[..., Any], *args: Any) -> Any:
    if _trace.open:  # within the trace of a step around this one, which makes the attempts
        return step(*args)
    attempts = [(True, True), (True, False), (False, False)]
    # The placeholders of `mx.grad` are copies. It takes its gradient later, and kernels may have none.
    if "Copy" in graph.primitives(*_arrays(args)):
        attempts = attempts[2:]
    for kernels, once in attempts:
        _trace.open = True
        try:
            with cuda.kernels(allow=kernels), differentiated_once(once):
                return step(*args)
        except ValueError as error:
            # MLX cannot vmap or forward-differentiate a kernel of one's own, differentiate one in a gradient,
            # or vmap a strided view.
            if not kernels or not any(name in str(error) for name in ("CustomKernel", "AsStrided")):
                raise
        finally:
            _trace.open = False
    raise AssertionError("the last attempt returns or raises")
