"""The result of `fit`."""

from typing import Any, NamedTuple

from purestep._loop.core.history import History


class Best(NamedTuple):
    """The best evaluation of a run.

    Attributes:
        step: the step after which it was made; the earliest among equals.
        metric: the name of the figure, `eval_loss` for example.
        value: the figure.
    """

    step: int
    metric: str
    value: float


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
        state: the state after the last step.
        best: the best evaluation, by the checkpointer's metric or else the first evaluation's loss; `None`
            without evaluations. `checkpointer.restore(best.step, like=state)` returns its state, if that step
            was saved.
        history: the rows of the run.
        reason: why the run ended: `steps`, `epochs`, `the source ended after 37 steps`, `signal`, the reason
            of a callback's `Stop`, or `error: ...`.
        steps: steps made, those before a resumed run included.
        seconds: seconds of training, earlier parts of a resumed run included.
    """

    state: Any
    best: Best | None
    history: History
    reason: str
    steps: int
    seconds: float


def best_in(history: History, metric: str | None, mode: str) -> Best | None:
    """Return the best value of a figure and its step. NaN is never the best.

    >>> history = History()
    >>> history.evaluated(10, {"eval_loss": 2.0})
    >>> history.evaluated(20, {"eval_loss": 1.0})
    >>> history.evaluated(30, {"eval_loss": 1.0})
    >>> best_in(history, "eval_loss", "min")
    Best(step=20, metric='eval_loss', value=1.0)
    """
    if metric is None:
        return None
    rows = [(value, step) for step, value in zip(*history.column(metric), strict=True) if value == value]
    if not rows:
        return None
    sign = 1 if mode == "min" else -1
    value, step = min(rows, key=lambda row: sign * row[0])
    return Best(step, metric, value)
