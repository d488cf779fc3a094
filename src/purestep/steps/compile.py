"""Compile a step, and notice when it is compiled over and over."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from purestep import checks, tree
from purestep.state import check_arrays


class Compiled:
    """A compiled step; call it as the step itself. Made by `compiled`.

    Attributes:
        step: the step as it was, uncompiled.
        traces: how often the step has been traced so far.
    """

    def __init__(self, step: Callable[..., Any], max_traces: int):
        self._max_traces = max_traces
        self._signatures: list[dict[str, str]] = []
        self.step = step
        self._call = mx.compile(self._trace)

    @property
    def traces(self) -> int:
        """Return how often the step has been traced so far."""
        return len(self._signatures)

    def __call__(self, state: Any, batch: Any) -> Any:
        try:
            return self._call(state, batch)
        except ValueError:
            # MLX refuses a foreign leaf without saying which; arrays alone pass this check.
            check_arrays("compiled", "state", state)
            check_arrays("compiled", "batch", batch)
            raise

    def _trace(self, state: Any, batch: Any) -> Any:
        # Runs while MLX traces, never in a step that is already compiled: nothing here costs a step time.
        check_arrays("compiled", "state", state)
        check_arrays("compiled", "batch", batch)
        signature = _signature("state", state) | _signature("batch", batch)
        if self.traces >= self._max_traces:
            varying = "; ".join(_varying([*self._signatures, signature]))
            raise checks.refuse(
                "compiled",
                f"the step would be traced {self.traces + 1} times, max_traces is {self._max_traces}: "
                f"{varying}. "
                "Give every batch the same shapes (pad, or drop the last), or raise max_traces: "
                "each trace is compiled, and kept as long as the process lives",
            )
        result = self.step(state, batch)
        self._signatures.append(signature)
        return result


def compiled(step: Callable[..., Any], *, max_traces: int = 8) -> Compiled:
    """Compile a step: the same function, its graph built once for each set of shapes and dtypes.

    Args:
        step: `step(state, batch)`, as `train_step` or `eval_step` build it, or your own pure function.
        max_traces: how many sets of shapes and dtypes to accept. Each is traced and compiled anew, and
            MLX never forgets one, so an unbounded number is a leak of time and memory.

    Returns:
        A callable like `step`, with `.traces`, the number of traces so far.

    Raises:
        ValueError: past `max_traces`, with the paths whose shape or dtype varies. The call that would
            trace is refused before any work; the shapes already compiled go on working.

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
    checks.function("compiled", "step", step)
    checks.integer("compiled", "max_traces", max_traces, least=1)
    return Compiled(step, max_traces)


def _signature(name: str, value: Any) -> dict[str, str]:
    return {
        tree.join(name, path): f"{tree.dtype_name(leaf.dtype)} {leaf.shape}"
        for path, leaf in tree.items(value)
    }


def _varying(signatures: list[dict[str, str]]) -> list[str]:
    lines = []
    for path in dict.fromkeys(path for signature in signatures for path in signature):
        seen = list(dict.fromkeys(signature.get(path, "absent") for signature in signatures))
        if len(seen) > 1:
            more = f" and {len(seen) - 4} more" if len(seen) > 4 else ""
            lines.append(f"{path} varies: {', '.join(seen[:3] + seen[-1:] if len(seen) > 4 else seen)}{more}")
    return lines or ["a container or a None of the state or the batch varies"]
