"""The callbacks of a run, called in their order."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from purestep._core import checks
from purestep._loop.core.progress import Callback, Progress, Request, Run, Save, Stop


class _Function(Callback):
    """A plain function as a callback."""

    def __init__(self, function: Callable[[Progress], Request]):
        self._function = function

    def on_step_end(self, progress: Progress) -> Request:
        return self._function(progress)


class Hooks:
    """Calls the hooks of all callbacks and collects their requests."""

    def __init__(self, caller: str, callbacks: Iterable[Any]):
        self._caller = caller
        self._callbacks = [_callback(caller, number, given) for number, given in enumerate(callbacks)]
        # A hook that is not overridden is not called.
        self._steps = [c for c in self._callbacks if _overrides(c, "on_step_end")]

    def train_begin(self, run: Run) -> None:
        """Call `on_train_begin`."""
        for callback in self._callbacks:
            callback.on_train_begin(run)

    def step_end(self, progress: Progress) -> list[Stop | Save]:
        """Call `on_step_end`; return the requests."""
        return [
            request
            for callback in self._steps
            if (request := self._checked(callback, callback.on_step_end(progress))) is not None
        ]

    def eval_end(self, progress: Progress) -> list[Stop | Save]:
        """Call `on_eval_end`; return the requests."""
        return [
            request
            for callback in self._callbacks
            if (request := self._checked(callback, callback.on_eval_end(progress))) is not None
        ]

    def checkpoint(self, progress: Progress) -> None:
        """Call `on_checkpoint`."""
        for callback in self._callbacks:
            callback.on_checkpoint(progress)

    def train_end(self, result: Any) -> None:
        """Call `on_train_end` of every callback; then raise the first error."""
        failures = []
        for callback in self._callbacks:
            try:
                callback.on_train_end(result)
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def to_plain(self) -> dict[str, Any]:
        """Return the states of the callbacks that have one."""
        return {name: state for name, callback in self._named() if (state := callback.state())}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Give each callback its state back; callbacks are matched by class and order."""
        for name, callback in self._named():
            if name in saved:
                callback.restore(saved[name])

    def _named(self) -> list[tuple[str, Callback]]:
        counts: dict[str, int] = {}
        named = []
        for callback in self._callbacks:
            kind = type(callback).__name__
            counts[kind] = counts.get(kind, 0) + 1
            named.append((f"{kind} {counts[kind]}", callback))
        return named

    def _checked(self, callback: Callback, request: Any) -> Request:
        if request is None or isinstance(request, (Stop, Save)):
            return request
        raise TypeError(
            f"{self._caller}: {type(callback).__name__.lstrip('_')} must return Stop, Save or None, "
            f"got {checks.shown(request)}"
        )


def _callback(caller: str, number: int, given: Any) -> Callback:
    if isinstance(given, Callback) and not isinstance(given, type):
        return given
    if callable(given) and not isinstance(given, type):
        function: Any = given
        return _Function(function)
    raise TypeError(
        f"{caller}: callbacks[{number}] must be a Callback or a function of the progress, "
        f"got {checks.shown(given)}"
    )


def _overrides(callback: Callback, name: str) -> bool:
    return getattr(type(callback), name, None) is not getattr(Callback, name)
