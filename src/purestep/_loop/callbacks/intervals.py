"""`every`: call a callback at some steps only."""

from collections.abc import Callable, Mapping
from typing import Any

from purestep._core import checks
from purestep._loop.core.adapting import as_callback
from purestep._loop.core.progress import Callback, Monitor, Progress, Request, Run, Stop


class EachStep(Callback):
    """A callback that must see each step, to time it for example, also within `every`."""

    def passed(self, progress: Progress) -> None:
        """Receive a step at which `every` does not call `on_step_end`."""


class Every(Monitor):
    """A callback whose `on_step_end` is called at every n-th step. `every` makes it."""

    def __init__(self, n: int, callback: Callback):
        self._n, self._callback = n, callback
        self.all_ranks = bool(getattr(callback, "all_ranks", False))

    def on_train_begin(self, run: Run) -> Stop | None:
        """Pass the call on."""
        return self._callback.on_train_begin(run)

    def on_step_end(self, progress: Progress) -> Request:
        """Pass the call on at every n-th step."""
        if progress.step % self._n == 0:
            return self._callback.on_step_end(progress)
        if isinstance(self._callback, EachStep):
            self._callback.passed(progress)
        return None

    def figures(self, progress: Progress) -> Mapping[str, float]:
        """Pass the call on at every n-th step."""
        if isinstance(self._callback, Monitor) and progress.step % self._n == 0:
            return self._callback.figures(progress)
        return {}

    def on_eval_end(self, progress: Progress) -> Request:
        """Pass the call on."""
        return self._callback.on_eval_end(progress)

    def on_checkpoint(self, progress: Progress) -> Request:
        """Pass the call on."""
        return self._callback.on_checkpoint(progress)

    def on_train_end(self, result: Any) -> None:
        """Pass the call on."""
        self._callback.on_train_end(result)

    def state(self) -> dict[str, Any]:
        """Return the state of the callback."""
        return self._callback.state()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Pass the call on."""
        self._callback.restore(saved)


def every(n: int, callback: Callback | Callable[[Progress], Request]) -> Callback:
    """Call `on_step_end` of a callback only at steps that are multiples of `n`; other hooks as usual.

    A shipped callback that works on rows, such as `log`, acts at those n-th steps that have a row.

    Args:
        n: steps, at least 1. It counts from step 0 of the run, so a resumed run calls at the same steps.
        callback: a `Callback`, or a function of the progress.

    >>> seen = every(100, lambda progress: print(progress.step))
    """
    n = checks.integer("every", "n", n, least=1)
    return Every(n, as_callback("every", "callback", callback))
