"""Plain functions as callbacks."""

from collections.abc import Callable
from typing import Any

from purestep._core import checks
from purestep._loop.core.progress import Callback, Progress, Request


class FunctionCallback(Callback):
    """Calls a function at the end of each step."""

    def __init__(self, function: Callable[[Progress], Request]):
        self._function = function
        self.all_ranks = bool(getattr(function, "all_ranks", False))

    def on_step_end(self, progress: Progress) -> Request:
        """Call the function."""
        return self._function(progress)


def as_callback(caller: str, name: str, given: Any) -> Callback:
    """Return a callback, made of a plain function if it is one; refuse other values."""
    if isinstance(given, Callback) and not isinstance(given, type):
        return given
    if callable(given) and not isinstance(given, type):
        function: Any = given
        return FunctionCallback(function)
    raise TypeError(
        f"{caller}: {name} must be a Callback or a function of the progress, got {checks.shown(given)}"
    )
