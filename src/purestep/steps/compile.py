"""Compile a step, and notice when it is compiled over and over."""

from collections.abc import Callable
from functools import partial
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
        self._signatures: list[dict[str, str]] = []
        self.step = step
        # Not a method of this object: it would be a cycle, which keeps what the step has captured.
        self._call = mx.compile(partial(_trace, step, max_traces, self._signatures))

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


def compiled(step: Callable[..., Any], *, max_traces: int = 8) -> Compiled:
    """Compile a step: the same function, its graph built once for each set of shapes and dtypes.

    Args:
        step: `step(state, batch)`, as `train_step` or `eval_step` build it, or your own pure function.
        max_traces: how many sets of shapes and dtypes to accept. Each is traced and compiled anew, and
            kept until the compiled step is dropped, so an unbounded number is a leak of time and memory.

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


def _trace(
    step: Callable[..., Any], max_traces: int, signatures: list[dict[str, str]], state: Any, batch: Any
) -> Any:
    # Runs while MLX traces, never in a step that is already compiled: nothing here costs a step time.
    check_arrays("compiled", "state", state)
    check_arrays("compiled", "batch", batch)
    signature = _signature("state", state) | _signature("batch", batch)
    if len(signatures) >= max_traces:
        varying = "; ".join(_varying([*signatures, signature]))
        raise checks.refuse(
            "compiled",
            f"the step would be traced {len(signatures) + 1} times, max_traces is {max_traces}: {varying}. "
            "Give every batch the same shapes (pad, or drop the last), or raise max_traces: "
            "each trace is compiled, and kept until the compiled step is dropped",
        )
    result = step(state, batch)
    signatures.append(signature)
    return result


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
