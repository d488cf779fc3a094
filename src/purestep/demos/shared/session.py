"""What the short demos share: phases of training that resume, measured now and then."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from rich.console import Console

from purestep import GradientTransform, TrainState, checkpoint, compiled, train_step
from purestep._checkpoint.run.signals import Signals
from purestep._core.types import Batch, LossFn, StepFn
from purestep.demos.shared import running
from purestep.demos.shared.progress import TrainingProgress
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import StoppedError as StoppedError
from purestep.demos.shared.settings import out_of_range
from purestep.demos.shared.status import is_milestone
from purestep.metrics import nonfinite_paths

MEASUREMENTS = 8  # a phase


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a run."""

    steps: int
    seed: int = 0
    compile: bool = True


def add_arguments(parser: argparse.ArgumentParser, name: str, steps: int) -> None:
    """Declare the options of a short demo."""
    running.add_shared_arguments(parser, name, steps, "all that is random")


def conduct(
    options: argparse.Namespace,
    name: str,
    steps: int,
    work: Callable[["Session"], dict[str, Any]],
    phases: Sequence[str] = (),
    seeds: int = 2**64,
) -> int:
    """Open or resume a run, do the work, report what it returns; return the exit status.

    Args:
        options: the parsed arguments.
        name: of the demo.
        steps: the default of `--steps`.
        work: trains one phase after the other, and returns figures.
        phases: their names in order, to say how many there are.
        seeds: how many seeds there are.
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
    """One run: its settings, its files, and what it shows.

    Attributes:
        settings: what decides the bits.
        directory: where the files go.
        console: where to show; a quiet one shows nothing.
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

    def step(self, loss_fn: LossFn, transform: GradientTransform) -> StepFn:
        """Return the training step, compiled unless the settings say otherwise."""
        step = train_step(loss_fn, transform)
        return compiled(step) if self.settings.compile else step

    def history(self, phase: str) -> list[dict[str, Any]]:
        """Return the metrics of one phase; its first row, of step 0, holds measurements alone."""
        return [row for row in self.directory.history() if row.get("phase") == phase]

    def train(
        self,
        phase: str,
        state: TrainState,
        step: StepFn,
        batch_of: Callable[[TrainState], Batch],
        *,
        steps: int,
        tokens: int,
        measure: Callable[[TrainState], Mapping[str, float]] = lambda state: {},
        shown: Mapping[str, str] | None = None,
    ) -> TrainState:
        """Make the steps of one phase that are not made yet, measuring now and then.

        Args:
            phase: names the state's file and the rows of metrics.
            state: before the first step; one that was saved takes its place.
            step: as `self.step` builds it.
            batch_of: the batch for a state; a pure function, for a resumed run to see the same.
            steps: of the whole phase.
            tokens: a batch, for tokens a second.
            measure: figures of a state that no batch gives.
            shown: the figures to show, the most important first, and what to call them.

        Raises:
            StoppedError: when asked to stop.
            FloatingPointError: when a metric is not finite; the last good state stays.
            ValueError: if the metrics of steps that the saved state has made are missing.
        """
        shown = {"loss": "loss", "grad_norm": "|g|"} if shown is None else shown
        file = self.directory.path / f"{phase}.safetensors"
        state = checkpoint.load(file, like=state) if file.exists() else state
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
            for number in range(start + 1, steps + 1):
                after, metrics = step(state, batch_of(state))
                mx.eval(after, metrics)
                figures: dict[str, Any] = {name: value.item() for name, value in metrics.items()}
                _check_finite(phase, number, figures, after)
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
        """Drop the rows that a crash left behind the saved state; refuse to go on where some are missing."""
        rows = self.directory.history()
        kept = [row for row in rows if row.get("phase") != phase or (step and row["step"] <= step)]
        there = [row["step"] for row in kept if row.get("phase") == phase]
        if step and there != list(range(step + 1)):
            raise ValueError(
                f"demo: {self.directory.metrics} lacks steps of {phase} that the saved state has made: "
                "start a run of its own in another directory"
            )
        self.directory.rewrite(kept)


def made(state: TrainState) -> int:
    """Return how many steps a state has seen."""
    step: Any = state.step.item()
    return step


def _numbered(phase: str, phases: Sequence[str]) -> str:
    if phase not in phases or len(phases) < 2:
        return phase
    return f"{phase} ({phases.index(phase) + 1} of {len(phases)})"


def _check_finite(phase: str, number: int, figures: Mapping[str, float], after: TrainState) -> None:
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        held = [*nonfinite_paths(after), "the loss itself"][0]
        raise FloatingPointError(
            f"{' and '.join(broken)} not finite in step {number} of {phase}; first in {held}"
        )
