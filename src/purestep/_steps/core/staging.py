"""Steps that are compiled in stages: each microbatch, and the update, is a compiled function of its own.

MLX describes the graph of a whole call before it starts any of it. For many microbatches that takes the host
many milliseconds, in which a GPU has nothing to do. In stages, the device computes one microbatch while the
host describes the next.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

from purestep._core import tree

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
_CURRENT: ContextVar["Stages | None"] = ContextVar("purestep_stages", default=None)


class InseparableError(Exception):
    """Raised within a stage by a step that can only be compiled as a whole."""


class Stages:
    """The compiled stages of one step.

    Attributes:
        inseparable: whether the step can only be compiled as a whole.
    """

    def __init__(self, compile_stage: Compile):
        self.inseparable = False
        self._compile, self._made = compile_stage, dict[str, Callable[..., Any]]()

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call the compiled stage of this name; the first `function` of a name is compiled."""
        if name not in self._made:
            self._made[name] = self._compile(function)
        token = _CURRENT.set(None)  # a step within the stage, such as one of an inner loop, has no stages
        try:
            return self._made[name](*args)
        except ValueError as error:
            if "uncaptured inputs" not in str(error):
                raise
            # It receives an array that it also captures, which MLX refuses to trace; see `Compiled`.
            leaves = tree.leaves(args)
            copies = [mx.contiguous(leaf) if isinstance(leaf, mx.array) else leaf for leaf in leaves]
            return self._made[name](*tree.unflatten(args, copies))
        finally:
            _CURRENT.reset(token)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Compile the stages of the step that runs within the block."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


def active() -> bool:
    """Tell whether the step that runs is compiled in stages."""
    return _CURRENT.get() is not None


def stage(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return `function(*args)`, computed by a compiled stage if the step has stages.

    `function` must not capture arrays, and nothing that changes between two calls of the step.
    """
    stages = _CURRENT.get()
    return function(*args) if stages is None else stages.call(name, function, args)


def start(results: Any) -> None:
    """Start the computation of results of a stage. Without stages this does nothing."""
    if active():
        mx.async_eval(tree.leaves(results))
