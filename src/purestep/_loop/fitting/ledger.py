"""The counts and figures of a run, and how they are stored with a checkpoint."""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.types import Batch, Metrics
from purestep._loop.core.history import History
from purestep._loop.core.progress import Progress
from purestep._loop.running.run import Made

_UNREAD = 32  # steps whose metrics may stay on the device
_LAST = "learning_rate"  # the figure of which a row has the last value, not the mean


class Ledger:
    """What a run has counted and measured so far."""

    def __init__(self, caller: str, log_every: int, steps_a_call: int = 1):
        self._caller, self.steps_a_call = caller, steps_a_call
        self.steps: int | None = None  # at the end of the run
        self.log_every = log_every
        self.step = self.epoch = self.samples = self.tokens = 0
        self.position: Mapping[str, Any] = {}
        self.history = History()
        self.owed: list[str] = []  # the evaluations that are due and not made
        self._unread: list[Metrics] = []
        self._values: dict[str, list[float]] = {}
        self._steps: dict[str, list[int]] = {}  # of the values
        self._before, self._since = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, earlier parts of a resumed run included."""
        return self._before + time.perf_counter() - self._since

    def count(self, made: Made) -> None:
        """Count a step; refuse metrics that cannot be a row of figures."""
        check_metrics(self._caller, made.metrics, self.steps_a_call)
        self.step += 1
        self.epoch, self.position = made.drawn.epoch, made.drawn.position
        samples, tokens = made.drawn.sizes or sizes(made.drawn.batch, self.steps_a_call)
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens
        self._unread.append(dict(made.metrics))  # a callback may change the dict that it gets
        if len(self._unread) >= _UNREAD:
            self._read()

    def progress(self, made: Made, *, last: bool) -> Progress:
        """Return the progress after a step; close a row if one is due."""
        row: dict[str, float] | None = None
        values: dict[str, list[float]] = {}
        steps: dict[str, list[int]] = {}
        if last or self.step % self.log_every == 0:
            values, steps = self.values(), self._steps
            row = {name: _figure(name, numbers) for name, numbers in values.items()}
            self._refuse_both(row, self.history.evaluated_names)
            self.history.log(self.step, row)
            self._values, self._steps = {}, {}
        return Progress(
            self.step, self.steps, self.epoch, made.state, made.drawn.batch, _of_call(made.metrics), row,
            values, None, {}, self.history, self.samples, self.tokens, self.seconds, steps, made.alone,
        )  # fmt: skip

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Add the figures of evaluations to the history; refuse the name of a metric of the step."""
        self._refuse_both(figures, self.history.logged_names)
        self.history.evaluated(self.step, figures)

    def _refuse_both(self, row: Mapping[str, float], others: Collection[str]) -> None:
        for name in row:
            if name in others:
                raise checks.error(
                    self._caller,
                    f"{name!r} is a metric of the step and a figure of an evaluation: rename the evaluation",
                )

    def standing(self, state: Any) -> Progress:
        """Return the progress of a run that is resumed, before its first step."""
        return Progress(
            self.step, self.steps, self.epoch, state, None, {}, None, {}, None,
            {}, self.history, self.samples, self.tokens, self.seconds,
        )  # fmt: skip

    def values(self) -> dict[str, list[float]]:
        """Return each metric of each step since the last row. Waits for the device."""
        self._read()
        return self._values

    @property
    def value_steps(self) -> dict[str, list[int]]:
        """The numbers of the steps of `values`."""
        return self._steps

    def _read(self) -> None:
        for step, metrics in enumerate(self._unread, self.step - len(self._unread) + 1):
            for name, value in metrics.items():
                numbers: Any = value.reshape(-1).tolist() if isinstance(value, mx.array) else [value]
                self._values.setdefault(name, []).extend(map(float, numbers))
                self._steps.setdefault(name, []).extend([step] * len(numbers))
        self._unread = []

    def to_plain(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as JSON values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "samples": self.samples,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "owed": list(self.owed),
            "position": dict(self.position),
            "history": self.history.to_plain(),
            "values": {name: list(numbers) for name, numbers in self.values().items()},
            # Of metrics that are not in every step: those of the others are the last steps.
            "value_steps": {
                name: list(steps)
                for name, steps in self._steps.items()
                if steps != _last_steps(self.step, len(steps))
            },
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Continue from what `to_plain` returned."""
        self.step, self.epoch = plain["step"], plain["epoch"]
        self.samples, self.tokens = plain["samples"], plain["tokens"]
        self.owed = list(plain["owed"])
        self.position, self.history = plain["position"], History.from_plain(plain["history"])
        self._values = {name: list(numbers) for name, numbers in plain["values"].items()}
        given = plain.get("value_steps", {})  # absent in files of earlier versions
        self._steps = {
            name: list(given.get(name, _last_steps(self.step, len(numbers))))
            for name, numbers in self._values.items()
        }
        self._before, self._since = plain["seconds"], time.perf_counter()


def check_metrics(caller: str, metrics: Any, steps: int = 1) -> None:
    """Refuse metrics that are not a dict of numbers, or of up to `steps` numbers each. Reads no array."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{caller}: step must return a dict of metrics, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if isinstance(value, mx.array):
            if value.size == 1 or 0 < value.size <= steps:
                continue
            raise checks.error(
                caller, f"step must return metrics that are 0-d arrays, got {name} of shape {value.shape}"
            )
        if not isinstance(value, bool) and not checks.is_number(value):
            kind = type(value).__name__
            hint = "; write mean.value" if kind in ("Mean", "MeanSum") else ""
            raise TypeError(
                f"{caller}: step must return metrics that are 0-d arrays, got {name} of type {kind}{hint}"
            )
    if "step" in metrics:
        raise checks.error(caller, "step must not return a metric named step: it is the number of a row")


def sizes(batch: Batch, steps: int = 1) -> tuple[int, int]:
    """Return the samples and tokens of a batch, from its shapes alone.

    Args:
        batch: a batch, or a stack of batches for a step of `scan`.
        steps: the number of batches. A stack has first axes, one for each scan, whose lengths multiply to it.
    """
    samples = tokens = 0
    for leaf in tree.leaves(batch):
        if not isinstance(leaf, mx.array):
            continue
        stacked = 0
        while math.prod(leaf.shape[:stacked]) < steps and stacked < leaf.ndim:
            stacked += 1
        own = leaf.shape[stacked:]
        if not own:
            continue
        samples = samples or steps * own[0]
        if len(own) == 2 and mx.issubdtype(leaf.dtype, mx.integer):
            tokens = max(tokens, leaf.size)
    return samples, tokens


def _of_call(metrics: Metrics) -> Metrics:
    """Return one number for each metric: of several steps the mean, but the last learning rate."""
    if all(not isinstance(value, mx.array) or value.size == 1 for value in metrics.values()):
        return metrics
    return {
        name: value
        if not isinstance(value, mx.array) or value.size == 1
        else value.reshape(-1)[-1]
        if name == _LAST
        else value.astype(mx.float32).mean()
        for name, value in metrics.items()
    }


def _last_steps(step: int, count: int) -> list[int]:
    return list(range(step - count + 1, step + 1))


def _figure(name: str, values: list[float]) -> float:
    if name == _LAST:
        return values[-1]
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # fsum refuses infinities of both signs
        return sum(values) / len(values)
