"""Recomputation with the arrays, mode and key of the first run: `mx.checkpoint` within a scope.

A function under `mx.checkpoint` runs again while the gradient is taken. By then a scope of keys or a borrowed
module is put back, and the second run would see other arrays, modes and keys than the first. So while a scene
is open, `mx.checkpoint` captures every open scene when its function runs, and opens them again around the
second run. Where no scene is open, `mx.checkpoint` does what it always does.
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
    """Something that is in place while a function runs."""

    def capture(self) -> Entry:
        """Return what puts it in place again as it is now."""
        ...

    def inspect(self, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a function that cannot be recomputed right; called before its first run."""
        ...

    def settle(self, given: dict[int, mx.array]) -> None:
        """Put an array that a function was given in the place of the handle by which it received it."""
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
    """Keep a scene open, in this thread, within the `with` block."""
    _install(1)
    _open.scenes.append(opened)
    try:
        yield
    finally:
        _open.scenes.pop()
        _install(-1)


def checkpoint(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return `mx.checkpoint(fun)`, whose second run finds the scenes of its first."""

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
            # The module's update, as in mlx.nn.utils.checkpoint, puts the same arrays in by other handles.
            handles = zip(tree.leaves((args, kwargs)), given, strict=True)
            same = {id(got): was for got, was in handles if isinstance(got, mx.array)}
            for each in scenes:
                each.settle(same)
            given = []
            return out

        return _original(run)(*args, **kwargs)

    return checkpointed


def is_original(value: Any) -> bool:
    """Tell whether a value is MLX's own `mx.checkpoint`, which captures no scenes."""
    return value is _original


def _install(change: int) -> None:
    """Have `mx.checkpoint` be the function above while any thread has a scene open."""
    global _installed
    with _lock:
        _installed += change
        mx.checkpoint = checkpoint if _installed else _original  # type: ignore[assignment]


class TrainingStep:
    """That a training step differentiates these arrays: what `apply` refuses in one asks for it."""

    def __init__(self, leaves: list[mx.array]):
        self.leaves = leaves


class _Step(threading.local):
    def __init__(self) -> None:
        self.now: TrainingStep | None = None


_step = _Step()


@contextmanager
def training_step(leaves: list[mx.array]) -> Iterator[None]:
    """Say, to all that is called within, which arrays a training step differentiates."""
    before, _step.now = _step.now, TrainingStep(leaves)
    try:
        yield
    finally:
        _step.now = before


def current_step() -> TrainingStep | None:
    """Return the training step that this thread is in, or `None`."""
    return _step.now
