"""`gradient_health`: the leaves whose gradients vanish, explode or are not finite."""

import warnings
from collections import deque
from collections.abc import Mapping

from purestep._core import checks
from purestep._loop.core.progress import Monitor, Progress, Request, Run, Stop, params_of
from purestep._loop.monitors.leaves import Health, Leaf, examined, judged_leaves, judged_values

_SHOWN = 3  # paths in a warning
_SAID = {
    "nonfinite": "has a NaN or an infinity",
    "zero": "has a gradient of zero",
    "exploding": "explodes",
}


class GradientWarning(UserWarning):
    """A gradient is zero, exploding or not finite."""


class GradientHealth(Monitor):
    """Looks at gradients; `gradient_health` makes it.

    Attributes:
        health: what was found at the last row with a measurement.
    """

    def __init__(self, metric: str, factor: float, window: int, stop: bool):
        self._prefix, self._factor, self._window, self._stop = f"{metric}/", factor, window, stop
        self.health = Health()
        self._forget()

    def _forget(self) -> None:
        self._last: dict[str, Leaf] = {}
        self._before: dict[str, deque[float]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._judged = -1  # the step of `health`

    def on_train_begin(self, run: Run) -> Stop | None:
        """Forget another run."""
        self._forget()

    def figures(self, progress: Progress) -> Mapping[str, float]:
        """Judge all leaves; return how many are not well."""
        measured = {
            name.removeprefix(self._prefix): values
            for name, values in progress.values.items()
            if name.startswith(self._prefix)
        }
        if measured:
            before = {
                path: progress.history.column(f"{self._prefix}{path}")[1][:-1][-self._window :]
                for path in measured
            }
            self.health = judged_values(measured, before, self._factor)
        elif any(name.startswith(self._prefix) for name in progress.history.names):
            return {}  # the measurement has a longer interval than the rows: nothing new is known
        else:
            self.health = self._parameters(progress)
        self._judged = progress.step
        self._warn(progress.step, "the gradient" if measured else "the parameter")
        return {f"gradients_{kind}": len(paths) for kind, paths in self.health._asdict().items()}

    def on_step_end(self, progress: Progress) -> Request:
        """At a row, ask to stop if a leaf is not finite or exploding, if that is wanted."""
        if progress.row is None or not self._stop or self._judged != progress.step:
            return None
        for kind in ("nonfinite", "exploding"):
            paths = getattr(self.health, kind)
            if paths:
                return Stop(f"the gradient of {paths[0]} {_SAID[kind]} at step {progress.step}")
        return None

    def _parameters(self, progress: Progress) -> Health:
        now = examined(params_of(progress.state, progress.state))
        found = judged_leaves(now, self._last, self._before, self._factor)
        for path, leaf in now.items():
            self._before.setdefault(path, deque(maxlen=self._window)).append(leaf.norm)
        self._last = now
        return found

    def _warn(self, step: int, what: str) -> None:
        for kind, paths in self.health._asdict().items():
            new = [path for path in paths if (kind, path) not in self._warned]
            if not new:
                continue
            self._warned |= {(kind, path) for path in new}
            said = (
                "has not changed since the row before" if (kind, what) == ("zero", "the parameter") else None
            )
            more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
            names = ", ".join(new[:_SHOWN])
            message = f"gradient_health: at step {step} {what} of {names}{more} {said or _SAID[kind]}"
            warnings.warn(message, GradientWarning, stacklevel=2)


def gradient_health(
    metric: str = "grad_norms", *, factor: float = 10.0, window: int = 20, stop: bool = False
) -> GradientHealth:
    """Name the parameters whose gradients are zero, exploding or not finite, at each row.

    It makes no backward pass. It reads the metrics `grad_norms/PATH` of the steps since the last row, which
    `train_step(measure=[ps.metrics.grad_norms(by=str)])` gives: they are Python numbers already. Rows between
    two measurements are not judged. If the step has no such metrics, it looks at the parameters: which are
    not finite, which have no bit changed since the row before, and whose norm explodes. That reads each
    parameter once a row, and waits for the device once.
    If none has changed, there was no update, as within a window of `accumulate`, and none is reported.

    The rows have the counts `gradients_nonfinite`, `gradients_zero` and `gradients_exploding`; the attribute
    `health` has the paths.

    Args:
        metric: the name before the slash of the metrics.
        factor: a norm is exploding above `factor` times the median of the rows before; above 1.
        window: the number of these rows, at least 3.
        stop: also stop the run at a gradient that is not finite or exploding. The reason names it.

    Warns:
        GradientWarning: once for each path and kind.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step, watched = ps.train_step(loss_fn, transform), gradient_health()
    >>> result = ps.fit(step, state, [{"x": mx.ones(8)}], steps=20, callbacks=[watched])
    >>> watched.health
    Health(nonfinite=[], zero=[], exploding=[])
    """
    caller = "gradient_health"
    if not isinstance(metric, str) or not metric:
        raise checks.error(caller, f"metric must be a name, got {checks.shown(metric):.80}")
    factor = checks.number(caller, "factor", factor, above=1)
    window = checks.integer(caller, "window", window, least=3)
    if not isinstance(stop, bool):
        raise TypeError(f"{caller}: stop must be true or false, got {checks.shown(stop):.80}")
    return GradientHealth(metric, factor, window, stop)
