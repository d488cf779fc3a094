"""Sessions of the short demos: phases of training that can be resumed, with measurements."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.display.live import TrainingProgress
from purestep._loop.callbacks.display.status import is_milestone
from purestep._loop.callbacks.pictures import curves
from purestep.demos.shared import running
from purestep.demos.shared.figures import as_float, check_finite, made
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import Signals, StoppedError
from purestep.demos.shared.settings import out_of_range

MEASUREMENTS = 8  # per phase


@dataclass(frozen=True)
class Settings:
    """The settings that determine the results of a run bit for bit."""

    steps: int
    seed: int = 0
    compile: bool = True


def add_arguments(parser: argparse.ArgumentParser, name: str, steps: int) -> None:
    """Add the options of a short demo."""
    running.add_shared_arguments(parser, name, steps, "all that is random")


def conduct(
    options: argparse.Namespace,
    name: str,
    steps: int,
    work: Callable[["Session"], dict[str, Any]],
    phases: Sequence[str] = (),
    seeds: int = 2**64,
) -> int:
    """Start or resume a run, run the work and report its figures; return the exit status.

    Args:
        options: the parsed arguments.
        name: the name of the demo.
        steps: the default of `--steps`.
        work: trains the phases and returns figures.
        phases: the names of the phases in order, to show the number of a phase.
        seeds: the number of valid seeds, from 0 on.
    """
    began = time.perf_counter()
    console = running.open_console(options)
    settings, directory, facts = running.settled(
        options, name, Settings(steps), lambda found: out_of_range(found.steps, found.seed, seeds)
    )
    if facts is None:
        directory.start({"demo": name, "settings": asdict(settings), "computed_by": running.computer()})
    else:
        running.compare_computers(facts, console)

    def whole(asked: Signals) -> dict[str, Any]:
        return work(Session(settings, directory, console, asked, phases))

    result = running.ended(whole, name, directory, console, options.json)
    if isinstance(result, int):
        return result
    result |= {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
        "out": str(directory.path),
    }
    running.report(result, console, options.json)
    running.say(console, f"\ncurves.png, metrics.jsonl and the states are in {directory.path}/")
    return 0


class Session:
    """One run: its settings, its files and its console.

    Attributes:
        settings: the settings, which determine the results bit for bit.
        directory: the directory of the files.
        console: the console; a quiet one shows nothing.
    """

    def __init__(
        self,
        settings: Settings,
        directory: RunDirectory,
        console: Console,
        asked: Signals,
        phases: Sequence[str] = (),
    ):
        self.settings, self.directory, self.console = settings, directory, console
        self._asked, self._phases = asked, phases

    def step(self, loss_fn: ps.types.LossFn, transform: ps.GradientTransform) -> ps.types.StepFn:
        """Return the training step, compiled if the settings say so."""
        step = ps.train_step(loss_fn, transform)
        return ps.compiled(step) if self.settings.compile else step

    def draw(self, panels: Sequence[curves.Panel], title: str) -> None:
        """Draw panels side by side into `curves.png`."""
        curves.draw(self.directory.path / "curves.png", panels, title)

    def history(self, phase: str) -> list[dict[str, Any]]:
        """Return the metrics of one phase. The first row, of step 0, holds measurements only."""
        return [row for row in self.directory.history() if row.get("phase") == phase]

    def train(
        self,
        phase: str,
        state: ps.TrainState,
        step: ps.types.StepFn,
        batch_of: Callable[[ps.TrainState], ps.types.Batch],
        *,
        steps: int,
        tokens: int,
        measure: Callable[[ps.TrainState], Mapping[str, float]] = lambda state: {},
        shown: Mapping[str, str] | None = None,
    ) -> ps.TrainState:
        """Run the remaining steps of one phase, with a measurement at each milestone.

        Args:
            phase: the name of the phase, in the state's file name and in the rows of metrics.
            state: the state before the first step; a saved state replaces it.
            step: a step as `self.step` builds it.
            batch_of: returns the batch for a state. It must be a pure function, so that a resumed run gets
                the same batches.
            steps: the number of steps of the whole phase.
            tokens: the number of tokens in a batch, for the rate.
            measure: returns further figures of a state, at each milestone.
            shown: the labels of the figures to show, by name, most important first.

        Raises:
            StoppedError: if the run is interrupted.
            FloatingPointError: if a metric is not finite; the last good state is kept.
            ValueError: if metrics are missing for steps before the saved state.
        """
        shown = {"loss": "loss", "grad_norm": "|g|"} if shown is None else shown
        file = self.directory.path / f"{phase}.safetensors"
        state = ps.checkpoint.load(file, like=state) if file.exists() else state
        start, every = made(state), max(1, math.ceil(steps / MEASUREMENTS))
        self._rewind(phase, start)
        measured: Mapping[str, float] = {}
        name = _numbered(phase, self._phases)
        with TrainingProgress(self.console, name, steps, start, every, tokens) as progress:
            if start == 0:
                progress.say("measuring the start")
                self.directory.record({"phase": phase, "step": 0, **measure(state)})
                progress.pause()
            progress.say("compiling" if self.settings.compile else "the first step")
            loop = ps.run(step, state, _Source(batch_of), steps=steps)
            for number, (after, metrics) in enumerate(loop, start=start + 1):
                figures = {name: as_float(value) for name, value in metrics.items()}
                check_finite(f"step {number} of {phase}", figures, after)
                state, row = after, {"phase": phase, "step": number, **figures}
                progress.step_seconds()
                milestone = is_milestone(number, steps, every)
                if milestone:
                    measured = measure(state)
                self.directory.record(row | dict(measured) if milestone else row)
                if milestone or self._asked.received:
                    self.directory.save(file, state)
                    progress.pause()
                merged = {**figures, **measured}
                texts = [f"{label} {merged[name]:.3f}" for name, label in shown.items() if name in merged]
                progress.show(number, texts, milestone=milestone)
                if self._asked.received and number < steps:
                    raise StoppedError(f"after step {number} of {phase}")
        return state

    def _rewind(self, phase: str, step: int) -> None:
        """Drop the rows of steps after the saved state; raise if rows of earlier steps are missing."""
        rows = self.directory.history()
        kept = [row for row in rows if row.get("phase") != phase or (step and row["step"] <= step)]
        there = [row["step"] for row in kept if row.get("phase") == phase]
        if step and there != list(range(step + 1)):
            raise ValueError(
                f"demo: {self.directory.metrics} lacks rows of {phase} before the saved state: "
                "start another run in another directory"
            )
        self.directory.rewrite(kept)


class _Source:
    """Batches as a function of the state."""

    on_policy = True

    def __init__(self, batch_of: Callable[[ps.TrainState], ps.types.Batch]):
        self.at = batch_of


def _numbered(phase: str, phases: Sequence[str]) -> str:
    if phase not in phases or len(phases) < 2:
        return phase
    return f"{phase} ({phases.index(phase) + 1} of {len(phases)})"
