"""`profile`: where the time of each step goes."""

import json
import os
import threading
from contextlib import AbstractContextManager
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._core import checks
from purestep._loop.core.extras import load
from purestep._loop.profiling.capturing import Capture, check_capture
from purestep._loop.profiling.clock import CURRENT, Clock, StepTimes
from purestep._loop.profiling.figures import PartTimes, summary, table

_CALLER = "profile"


class Profile:
    """The times of the steps in a `with` block; `profile` makes it.

    `str(profile)` is a table. It can be read at any time, also after an exception.

    >>> with profile(steps=2, warmup=1) as found:
    ...     for number in range(3):
    ...         with found.part("data"):
    ...             batch = list(range(number))
    ...         found.step()
    >>> [row.step for row in found.rows], list(found.summary)
    ([2, 3], ['data', 'other', 'step'])

    Attributes:
        first: the `StepTimes` of the first step, in which MLX traces and compiles; `None` before.
        rows: the `StepTimes` of the measured steps: their number, seconds, and seconds by part.
        summary: the figures by part, then those of the whole `step`: share of the time, median, 10 % and 90 %
            quantile, maximum and mean, in seconds.
    """

    def __init__(self, clock: Clock, steps: int, warmup: int):
        self._clock, self._steps, self._warmup = clock, steps, warmup
        self._thread: int | None = None

    @property
    def first(self) -> StepTimes | None:
        """The times of the first step."""
        return self._clock.rows[0] if self._clock.rows else None

    @property
    def rows(self) -> list[StepTimes]:
        """The times of the measured steps."""
        return self._clock.rows[self._warmup :]

    @property
    def summary(self) -> dict[str, PartTimes]:
        """The figures by part, then those of the whole step; empty before a step is measured."""
        return summary(self.rows)

    def step(self) -> None:
        """End a step of a loop of your own, and begin the next one. `run` and `fit` do it themselves.

        Raises:
            ValueError: outside the `with` block or in another thread; if a run in this block is measured.
        """
        self._check("step")
        if self._clock.taken and not self._clock.done:
            raise checks.error("Profile.step", "run and fit count their steps themselves")
        self._clock.lap()

    def part(self, name: str) -> AbstractContextManager[Any]:
        """Measure a block as a part of the step, in a loop of your own, a callback or a loop body.

        A block within the block of another part is not counted in that one.

        Args:
            name: the name in the table. The names that `run` uses are `data`, `build`, `dispatch`, `queue`,
                `wait` and `loop body`.

        Raises:
            ValueError: outside the `with` block or in another thread; for an empty name, one with control
                characters, and `step`.
        """
        self._check("part")
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or name == "step":
            raise checks.error("Profile.part", f"name must be a word other than 'step', got {name!r}")
        return self._clock.part(name)

    def to_json(self) -> str:
        """Return the first step, the measured steps and the summary as JSON text."""
        content = {
            "asked": {"steps": self._steps, "warmup": self._warmup},
            "first": None if self.first is None else self.first._asdict(),
            "rows": [row._asdict() for row in self.rows],
            "summary": {name: part._asdict() for name, part in self.summary.items()},
        }
        return json.dumps(content, indent=1)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the parts of each step, and their shares, into a PNG.

        Args:
            path: the file, which must end in `.png`; its directory is created.

        Raises:
            ValueError: if no step is measured, or the path does not end in `.png`.
            ImportError: without matplotlib: `pip install 'purestep[demo]'`.
        """
        caller = "Profile.plot"
        place = check_path(caller, path)
        if place.suffix != ".png":
            raise checks.error(caller, f"path must end in .png, got {str(place)!r}")
        if not self.rows:
            raise checks.error(caller, "at least one step must be measured, got none")
        load(caller, "purestep._loop.profiling.drawing", "demo").draw(place, self.rows)

    def __enter__(self) -> "Profile":
        if self._thread is not None:
            raise checks.error(_CALLER, "a profile is used once: call profile again")
        if CURRENT.get() is not None:
            raise checks.error(_CALLER, "a profile must not lie in the block of another one")
        self._thread = threading.get_ident()
        CURRENT.set(self._clock)
        self._clock.begin()
        return self

    def __exit__(self, *error: object) -> None:
        CURRENT.set(None)
        self._clock.end()

    def __str__(self) -> str:
        return table(self.first, self.rows, self._steps)

    def __repr__(self) -> str:
        return f"<profile of {len(self.rows)} of {self._steps} steps>"

    def _check(self, name: str) -> None:
        caller = f"Profile.{name}"
        if self._thread is None or CURRENT.get() is not self._clock:
            place = "on another thread" if self._thread not in (None, threading.get_ident()) else "outside"
            raise checks.error(
                caller, f"it must be called in the with block of its profile, got a call {place}"
            )


def profile(steps: int = 10, *, warmup: int = 3, capture: str | os.PathLike[str] | None = None) -> Profile:
    """Measure where the time of each step goes, in a `with` block around `run`, `fit` or a loop of your own.

    The run makes the same steps, bit for bit. It waits for the device where it always does. Each moment on
    the thread of the loop belongs to one part, so the parts add up to the wall-clock time:

    - `data`: the loop waits for a batch, or prepares it if no thread does.
    - `build`: the call of the step function. In the first step, it includes the trace.
    - `dispatch`: `mx.async_eval` sends the work to the device. In the first step, kernels may be compiled.
    - `queue`: the thread sleeps in `mx.async_eval`: MLX's queue is full, so this is waiting for the device.
      In the first step, and on a machine with too few cores, it has other causes.
    - `wait`: the loop waits for the step before the one that was sent.
    - `loop body` of a loop over `run`; `callbacks`, `evaluation` and `checkpoint` of `fit`.
    - `other`: the rest.

    The device computes one step while Python prepares the next: `wait` is not the time that the device takes,
    but what is left of it when Python has nothing else to do. As long as `wait` is long, the other parts are
    hidden behind the device, and shortening them does not shorten the step.

    A row is one round of the loop: step k + 1 is built and sent, step k is waited for and handed out. Only
    the first run that begins in the block, on the same thread, is measured. Steps after the last measured one
    are not slowed down.

    Args:
        steps: the number of steps to measure.
        warmup: steps before them that are not measured, at least 1: the first step includes traces and
            compilers. It is reported apart.
        capture: a new path that ends in `.gputrace`: Metal's commands in the measured steps are captured, for
            Xcode. It needs Metal and the environment variable `MTL_CAPTURE_ENABLED=1`. A capture slows the
            steps down, and waits for the device before the first and after the last of them.

    Returns:
        A `Profile`: the context manager, and its result.

    Raises:
        ValueError: if a number is out of range; if a capture cannot be made; at the beginning of the block,
            if it lies in the block of another profile.

    >>> import mlx.core as mx, purestep as ps
    >>> loss_fn = lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean()
    >>> transform = ps.optimizers.sgd(0.25)
    >>> state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    >>> step = ps.train_step(loss_fn, transform)
    >>> with profile(steps=5) as found:
    ...     result = ps.fit(step, state, [{"x": mx.ones(4)}], steps=10)
    >>> [row.step for row in found.rows]
    [4, 5, 6, 7, 8]
    >>> sorted({"data", "build", "dispatch", "wait"} - set(found.summary))
    []
    """
    steps = checks.integer(_CALLER, "steps", steps, least=1)
    warmup = checks.integer(_CALLER, "warmup", warmup, least=1)
    if capture is None:
        return Profile(Clock(steps, warmup), steps, warmup)
    captured = Capture(_CALLER, check_capture(_CALLER, capture))
    clock = Clock(steps, warmup, started=captured.start, ended=captured.stop)
    return Profile(clock, steps, warmup)
