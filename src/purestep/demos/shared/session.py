"""One run of a demo: its phases of training, with checkpoints, figures and a progress line."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep.demos.shared import running
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import StoppedError
from purestep.demos.shared.settings import out_of_range

SettingsT = TypeVar("SettingsT", bound="Settings")

MEASUREMENTS = 8  # of a phase, beside the one before its first step


@dataclass(frozen=True)
class Settings:
    """The settings that determine the results of a run bit for bit."""

    steps: int
    seed: int = 0
    compile: bool = True


def in_range(settings: Settings) -> str | None:
    """Return the first error in the settings, or `None`."""
    return out_of_range(settings.steps, settings.seed)


def conduct(
    options: argparse.Namespace,
    name: str,
    defaults: SettingsT,
    work: Callable[["Session"], dict[str, Any]],
    *,
    phases: Sequence[str] = (),
    fault: Callable[[SettingsT], str | None] = in_range,
    facts_of: Callable[[SettingsT, Mapping[str, Any] | None, Console], dict[str, Any]] = lambda *given: {},
) -> int:
    """Start or resume a run, run the work and report its figures; return the exit status.

    Args:
        options: the parsed arguments.
        name: the name of the demo.
        defaults: the settings if no option is given.
        work: trains the phases and returns figures.
        phases: the names of the phases in order; each has a directory of its own.
        fault: returns the first error in the settings, or `None`.
        facts_of: returns what else decides the results, to be stored. It receives the settings, the facts of
            a resumed run, and the console. It raises a `ValueError` to refuse the run.
    """
    began = time.perf_counter()
    console = running.open_console(options)
    settings, directory, begun = running.settled(options, name, defaults, fault)
    facts = facts_of(settings, begun, console)
    if begun is None:
        computer = running.computer()
        directory.start({"demo": name, "settings": asdict(settings), **facts, "computed_by": computer})
    else:
        running.compare_computers(begun, console)
    session = Session(name, settings, directory, console, phases)
    result = running.ended(lambda: work(session), name, directory, console, options.json)
    if isinstance(result, int):
        return result
    result |= {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
        "out": str(directory.path),
    }
    running.report(result, console, options.json)
    *most, last = directory.contents()
    running.say(console, f"\n{', '.join(most)} and {last} are in {directory.path}/")
    return 0


class Session:
    """One run: its settings, its files and its console.

    Attributes:
        name: the name of the demo.
        settings: the settings, which determine the results bit for bit.
        directory: the directory of the files.
        console: the console; a quiet one shows nothing.
    """

    def __init__(
        self,
        name: str,
        settings: Any,
        directory: RunDirectory,
        console: Console,
        phases: Sequence[str] = (),
    ):
        self.name, self.settings, self.directory, self.console = name, settings, directory, console
        self._phases = phases

    def say(self, text: str) -> None:
        """Print text."""
        running.say(self.console, text)

    def step(self, loss_fn: Any, transform: ps.GradientTransform, **options: Any) -> ps.types.StepFn:
        """Return `ps.train_step(loss_fn, transform, **options)`, compiled if the settings say so."""
        step = ps.train_step(loss_fn, transform, **options)
        return ps.compiled(step) if self.settings.compile else step

    def fit(
        self,
        step: ps.types.StepFn,
        state: ps.TrainState,
        source: Any,
        *,
        evaluate: Sequence[ps.Evaluation] = (),
        steps: int | None = None,
        phase: str = "",
        callbacks: Sequence[ps.callbacks.Callback] = (),
    ) -> ps.FitResult:
        """Make the remaining steps of a phase: `ps.fit` with checkpoints, `metrics.jsonl`, a progress line.

        Args:
            step: the step.
            state: the state before the first step; a checkpoint replaces it.
            source: the batches.
            evaluate: made before the first step, and then `MEASUREMENTS` times if they have no `every`.
            steps: the number of steps of the whole phase. The default is that of the settings.
            phase: the name of the phase, and of its directory within that of the run.
            callbacks: further callbacks.

        Raises:
            StoppedError: if the run is interrupted.
            FloatingPointError: if the parameters are not finite.
            WriteError: if a checkpoint cannot be written.
        """
        total = self.settings.steps if steps is None else steps
        every, directory = math.ceil(total / MEASUREMENTS), self.directory.path / phase
        evaluate = [each if each.every else replace(each, every=every) for each in evaluate]
        nonfinite = ps.callbacks.nonfinite(directory / "bundles")
        place = directory / "checkpoints"
        with (
            self.directory.writing(place),
            ps.checkpoint.Checkpointer(place, keep=ps.checkpoint.keep_last(1)) as checkpointer,
        ):
            newest = checkpointer.latest()
            ended = newest is not None and newest.step == total
            shown = [] if ended else [ps.callbacks.progress(self._label(phase), console=self.console)]
            result = ps.fit(
                step, state, source, steps=total, evaluate=evaluate, checkpointer=checkpointer,
                save_every=every, log_every=rows_every(total),
                callbacks=[
                    *shown,
                    ps.callbacks.jsonl(directory / "metrics.jsonl"),
                    _AtStart(evaluate),
                    nonfinite,
                    *callbacks,
                ],
            )  # fmt: skip
            return finished(result, phase, checkpointer, nonfinite.bundle)

    def draw(self, panels: Sequence[curves.Panel], title: str, file: str = "curves.png") -> None:
        """Draw panels side by side into a file of the run."""
        with self.directory.writing(self.directory.path / file):
            curves.draw(self.directory.path / file, panels, title)

    def _label(self, phase: str) -> str:
        if phase not in self._phases:
            return phase or self.name
        return f"{phase} ({self._phases.index(phase) + 1} of {len(self._phases)})"


def rows_every(steps: int) -> int:
    """Return the steps from one row of figures to the next.

    >>> rows_every(4), rows_every(100), rows_every(600)
    (1, 5, 10)
    """
    return max(1, min(10, steps // 20))


class _AtStart(ps.callbacks.Callback):
    """Makes the evaluations before the first step as well; the history gets them as step 0."""

    def __init__(self, evaluations: Sequence[ps.Evaluation]):
        self._evaluations = evaluations

    def on_train_begin(self, run: ps.callbacks.Run) -> None:
        """Measure the first state of a new run."""
        if run.start == 0:
            for evaluation in self._evaluations:
                run.history.evaluated(0, evaluation.measured("demo", run.state).figures)


def finished(
    result: ps.FitResult, phase: str, checkpointer: ps.checkpoint.Checkpointer, bundle: Path | None
) -> ps.FitResult:
    """Return the result of a phase that made all its steps.

    Raises:
        StoppedError: if it was interrupted.
        FloatingPointError: if it ended at a value that is not finite. The message says where the last good
            checkpoint and the replay bundle are.
    """
    of_phase = f" of {phase}" if phase else ""
    if result.reason == "signal" and not result.steps:
        raise StoppedError(f"before the first step{of_phase}")
    if result.reason == "signal":
        raise StoppedError(f"after step {result.steps}{of_phase}; the state is saved")
    if result.reason != "steps":
        newest, said = checkpointer.latest(), f"{phase}: {result.reason}" if phase else result.reason
        if bundle is not None and str(bundle) not in said:  # a checkpoint found it before a row did
            said += f"; the step is kept in {bundle}"
        kept = "no checkpoint was saved before"
        if newest is not None:
            kept = f"the checkpoint of step {newest.step} is kept in {checkpointer.path}"
        raise FloatingPointError(f"{said}; {kept}")
    return result
