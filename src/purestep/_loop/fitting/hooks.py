"""The callbacks of a run, called in their order: those of rank 0, and those of all ranks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from purestep._core import checks
from purestep._loop.core.adapting import as_callback
from purestep._loop.core.progress import Callback, Monitor, Progress, Run, Save, Stop
from purestep._loop.core.ranks import Ranks


class Hooks:
    """Calls the hooks of all callbacks and collects their requests."""

    def __init__(self, caller: str, callbacks: Iterable[Any], ranks: Ranks):
        self._caller, self._ranks = caller, ranks
        if isinstance(callbacks, Callback) or callable(callbacks) or not isinstance(callbacks, Iterable):
            raise TypeError(
                f"{caller}: callbacks must be a list, got {checks.shown(callbacks)}; write [callback]"
            )
        self._callbacks = [
            as_callback(caller, f"callbacks[{number}]", given) for number, given in enumerate(callbacks)
        ]
        for number, callback in enumerate(self._callbacks):
            if any(callback is other for other in self._callbacks[:number]):
                shown = checks.shown(callback)
                raise checks.error(caller, f"callbacks must differ from each other, got {shown} twice")
        self._own = [c for c in self._callbacks if ranks.rank == 0 or getattr(c, "all_ranks", False)]
        # A hook that is not overridden is not called.
        self._steps = [c for c in self._own if _overrides(c, "on_step_end")]
        self._monitors = [c for c in self._own if isinstance(c, Monitor)]

    def train_begin(self, run: Run) -> list[Stop | Save]:
        """Call `on_train_begin`; return the requests."""
        return self._requests("on_train_begin", self._own, run, run.start)

    def step_end(self, progress: Progress) -> list[Stop | Save]:
        """Call `on_step_end`, at a row with the figures of all monitors; return the requests."""

        def measured() -> Progress:
            if progress.row is None or not self._monitors:
                return progress
            added: dict[str, float] = {}
            for monitor in self._monitors:
                added |= monitor.figures(progress)
            return progress._replace(row={**progress.row, **added, **progress.row})

        return self._requests("on_step_end", self._steps, measured, progress.step)

    def eval_end(self, progress: Progress) -> list[Stop | Save]:
        """Call `on_eval_end`; return the requests."""
        return self._requests("on_eval_end", self._own, progress, progress.step)

    def checkpoint(self, progress: Progress) -> list[Stop | Save]:
        """Call `on_checkpoint`; return the requests."""
        return self._requests("on_checkpoint", self._own, progress, progress.step)

    def train_end(self, result: Any) -> None:
        """Call `on_train_end` of every callback; then raise the first error."""
        failures = []
        for callback in self._own:
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

    def _requests(
        self, hook: str, callbacks: list[Callback], given: Run | Progress | Callable[[], Progress], step: int
    ) -> list[Stop | Save]:
        """Call one hook; return the requests of all ranks, those of rank 0 first."""

        def own() -> list[tuple[str, str]]:
            requests, now = [], given() if callable(given) else given
            for callback in callbacks:
                request = getattr(callback, hook)(now)
                if request is not None:
                    checked = self._checked(callback, hook, request)
                    requests.append((type(checked).__name__, checked.reason))
            return requests

        found = self._ranks.gathered(f"{hook} of step {step}", own)
        kinds = {"Stop": Stop, "Save": Save}
        return [kinds[kind](reason) for requests in found for kind, reason in requests]

    def _checked(self, callback: Callback, hook: str, request: Any) -> Stop | Save:
        where = f"{self._caller}: {type(callback).__name__}.{hook}"
        if hook == "on_train_begin" and isinstance(request, Save):
            raise TypeError(f"{where} must return Stop or None: no step is made that could be saved")
        if not isinstance(request, (Stop, Save)):
            raise TypeError(f"{where} must return Stop, Save or None, got {checks.shown(request)}")
        if isinstance(request, Stop) and not (isinstance(request.reason, str) and request.reason):
            raise TypeError(f"{where} must return a Stop with a reason, got {checks.shown(request)}")
        return request


def _overrides(callback: Callback, name: str) -> bool:
    own = name in getattr(callback, "__dict__", {})
    return own or getattr(type(callback), name, None) is not getattr(Callback, name)
