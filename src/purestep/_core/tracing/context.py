"""Recomputation under `mx.checkpoint` with the arrays, mode and key of the first run.

A function under `mx.checkpoint` runs a second time while the gradient is computed. By then the keys are reset
and the module has its own arrays again, so the second run would see other arrays, modes and keys.

A scene is a block in which arrays, modes or keys are set temporarily. While one is open, `mx.checkpoint`
captures all open scenes in the first run and opens them again for the second run. If no scene is open,
`mx.checkpoint` is MLX's own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, Protocol

import mlx.core as mx

from purestep._core import tree
from purestep._core.tracing import custom
from purestep._core.tracing.ordering import gated

Entry = Callable[[], AbstractContextManager[Any]]


class Scene(Protocol):
    """Arrays, modes or keys that are set while a function runs."""

    def capture(self) -> Entry:
        """Return a function that makes a context in which they are set as they are now."""
        ...

    def inspect(self, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a function that cannot be recomputed correctly; called before its first run."""
        ...

    def settle(self, given: dict[int, mx.array]) -> None:
        """Replace arrays by those of the caller; `given` maps the `id` of an array to its replacement."""
        ...


class _Open(threading.local):
    def __init__(self) -> None:
        self.scenes: list[Scene] = []


_open = _Open()
_lock = threading.Lock()
_installed = 0
_original: Any = mx.checkpoint


class scene:  # noqa: N801
    """A `with` block within which a scene is open, in this thread."""

    def __init__(self, opened: Scene):
        self._opened = opened

    def __enter__(self) -> None:
        begin(self._opened)

    def __exit__(self, *error: object) -> None:
        end()


def begin(opened: Scene) -> None:
    """Open a scene in this thread, until `end` closes it; scenes close in the reverse order."""
    scenes = _open.scenes
    if not scenes:
        _install(1)
    scenes.append(opened)


def end() -> None:
    """Close the scene that was opened last in this thread."""
    scenes = _open.scenes
    scenes.pop()
    if not scenes:
        _install(-1)


def checkpoint(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return `recomputed(fun)` where a scene is open, and MLX's `mx.checkpoint(fun)` elsewhere."""

    @wraps(fun, updated=())
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return (recomputed if _open.scenes else custom.checkpoint)(fun)(*args, **kwargs)

    return checkpointed


def recomputed(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return `gated(fun)`; its second run has the scenes that were open in the first."""

    @wraps(fun, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        scenes = list(_open.scenes)
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
            # MLX passes new Python objects for the same arrays. A function that writes them into a module,
            # like that of mlx.nn.utils.checkpoint, leaves them there. The caller's own arrays are put back.
            handles = zip(tree.leaves((args, kwargs)), given, strict=True)
            same = {id(got): was for got, was in handles if isinstance(got, mx.array)}
            for each in scenes:
                each.settle(same)
            given = []
            return out

        return gated(run)(*args, **kwargs)

    return call


def is_original(value: Any) -> bool:
    """Return whether a value is MLX's own `mx.checkpoint`, which captures no scenes."""
    return value is _original


@contextmanager
def installed() -> Iterator[None]:
    """Replace `mx.checkpoint` by `checkpoint` within the `with` block."""
    _install(1)
    try:
        yield
    finally:
        _install(-1)


def _install(change: int) -> None:
    """Replace `mx.checkpoint` by `checkpoint` while any thread has a scene open."""
    global _installed
    with _lock:
        _installed += change
        mx.checkpoint = checkpoint if _installed else _original  # type: ignore[assignment]


class TrainingStep:
    """The arrays that the current training step differentiates; `apply` makes more checks inside a step."""

    def __init__(self, leaves: list[mx.array]):
        self.leaves = leaves


class _Step(threading.local):
    def __init__(self) -> None:
        self.now: TrainingStep | None = None


_step = _Step()


class training_step:  # noqa: N801
    """A `with` block that sets the arrays that a training step differentiates, for all calls within it."""

    def __init__(self, leaves: list[mx.array]):
        self._step = TrainingStep(leaves)

    def __enter__(self) -> None:
        self._before, _step.now = _step.now, self._step

    def __exit__(self, *error: object) -> None:
        _step.now = self._before


def current_step() -> TrainingStep | None:
    """Return the training step that runs in this thread, or `None`."""
    return _step.now
