"""Recomputation under `mx.checkpoint` with the arrays, mode and key of the first run.

A function under `mx.checkpoint` runs again in the backward pass. By then the scope of keys has ended and the
module is restored, so the second run would see other arrays, modes and keys than the first. Therefore, while
a scene is open, `mx.checkpoint` captures every open scene when its function runs, and opens the scenes again
around the second run. If no scene is open, `mx.checkpoint` behaves as usual.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, Protocol

import mlx.core as mx

from purestep._core import tree

Entry = Callable[[], AbstractContextManager[Any]]


class Scene(Protocol):
    """A temporary change, such as a scope of keys, that is in effect while a function runs."""

    def capture(self) -> Entry:
        """Return a function that opens the scene again in its present state."""
        ...

    def inspect(self, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a function that would be recomputed wrongly; called before its first run."""
        ...

    def settle(self, given: dict[int, mx.array]) -> None:
        """Replace handles, by `id`, with the arrays that were passed to the function."""
        ...


class _Open(threading.local):
    def __init__(self) -> None:
        self.scenes: list[Scene] = []


_open = _Open()
_lock = threading.Lock()
_installed = 0
_original: Any = mx.checkpoint


@contextmanager
def scene(opened: Scene) -> Iterator[None]:
    """Keep a scene open in this thread within the `with` block."""
    _install(1)
    _open.scenes.append(opened)
    try:
        yield
    finally:
        _open.scenes.pop()
        _install(-1)


def checkpoint(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return `mx.checkpoint(fun)`, with the scenes of its first run also open in its second."""

    @wraps(fun, updated=())
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        scenes = list(_open.scenes)
        if not scenes:
            return _original(fun)(*args, **kwargs)
        for each in scenes:
            each.inspect(fun, args, kwargs)
        entries = [each.capture() for each in scenes]
        given = tree.leaves((args, kwargs))
        ran = False

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal ran, given
            with ExitStack() as stack:
                if ran:
                    for enter in entries:
                        stack.enter_context(enter())
                    return fun(*args, **kwargs)
                ran = True
                out = fun(*args, **kwargs)
            # Updating the module, as mlx.nn.utils.checkpoint does, inserts other handles of the same arrays.
            handles = zip(tree.leaves((args, kwargs)), given, strict=True)
            same = {id(got): was for got, was in handles if isinstance(got, mx.array)}
            for each in scenes:
                each.settle(same)
            given = []
            return out

        return _original(run)(*args, **kwargs)

    return checkpointed


def is_original(value: Any) -> bool:
    """Return whether a value is MLX's own `mx.checkpoint`, which captures no scenes."""
    return value is _original


def _install(change: int) -> None:
    """Replace `mx.checkpoint` by `checkpoint` while any thread has a scene open."""
    global _installed
    with _lock:
        _installed += change
        mx.checkpoint = checkpoint if _installed else _original  # type: ignore[assignment]


class TrainingStep:
    """The arrays that the present training step differentiates; `apply` has stricter checks for them."""

    def __init__(self, leaves: list[mx.array]):
        self.leaves = leaves


class _Step(threading.local):
    def __init__(self) -> None:
        self.now: TrainingStep | None = None


_step = _Step()


@contextmanager
def training_step(leaves: list[mx.array]) -> Iterator[None]:
    """Set the arrays that a training step differentiates, within the `with` block."""
    before, _step.now = _step.now, TrainingStep(leaves)
    try:
        yield
    finally:
        _step.now = before


def current_step() -> TrainingStep | None:
    """Return the present training step of this thread, or `None`."""
    return _step.now
