"""What the short demos share: options, a directory of files, phases of training that resume, a report."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from purestep import GradientTransform, TrainState, checkpoint, compiled, train_step
from purestep._core import hardware
from purestep._core.types import Batch, LossFn, StepFn
from purestep.checkpoint import atomic
from purestep.checkpoint.signals import Signals, signals
from purestep.demos.progress import TrainingProgress
from purestep.demos.run_directory import RunDirectory, latest, next_free
from purestep.metrics import nonfinite_paths

INTERRUPTED = 130
MEASUREMENTS = 8  # a phase


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a run."""

    steps: int
    seed: int = 0
    compile: bool = True


class StoppedError(Exception):
    """Somebody asked to stop, and the state is saved."""


def add_arguments(parser: argparse.ArgumentParser, name: str, steps: int) -> None:
    """Declare the options of a demo; those of `Settings` are absent from the result unless given."""
    unset: Any = argparse.SUPPRESS
    parser.add_argument("--steps", type=int, default=unset, help=f"updates to make (default {steps})")
    parser.add_argument("--seed", type=int, default=unset, help="of all that is random (default 0)")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", default=unset, help="run uncompiled"
    )
    parser.add_argument("--out", metavar="DIR", help=f"where the run's files go (default runs/{name})")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or with the last one"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")


def conduct(
    options: argparse.Namespace, name: str, steps: int, work: Callable[["Session"], dict[str, Any]]
) -> int:
    """Open or resume a run, do the work, report what it returns; return the exit code."""
    began = time.perf_counter()
    console = Console(stderr=options.json, quiet=options.json, highlight=False)
    given = {key: value for key, value in vars(options).items() if key in Settings.__dataclass_fields__}
    settings = replace(Settings(steps), **given)
    if settings.steps < 1:
        raise ValueError(f"demo: --steps must be at least 1, got {settings.steps}")
    if settings.seed < 0:
        raise ValueError(f"demo: --seed must be at least 0, got {settings.seed}")
    if options.resume:
        directory = RunDirectory(options.out or latest(f"runs/{name}"))
        settings = _resumed(directory, name, given, console)
    else:
        directory = RunDirectory(options.out or next_free(f"runs/{name}"))
        directory.start({"demo": name, "settings": asdict(settings), "computed_by": _computer()})
    with signals() as asked:
        session = Session(settings, directory, console, asked)
        try:
            result = work(session)
        except StoppedError as stopped:
            console.print(
                f"interrupted {stopped}; the state is saved. To go on:\n"
                f"  python -m purestep demo {name} --resume --out {directory.path}",
                soft_wrap=True,
            )
            return INTERRUPTED
        except FloatingPointError as error:
            console.print(f"stopped: {error}", style="red", soft_wrap=True)
            print(f"demo: {error}", file=sys.stderr) if options.json else None
            return 1
    result |= {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
        "out": str(directory.path),
    }
    if options.json:
        print(json.dumps(result))
        return 0
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in result.items():
        table.add_row(key.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"\ncurves.png, metrics.jsonl and the states are in {directory.path}/")
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
    ):
        self.settings, self.directory, self.console = settings, directory, console
        self._asked = asked

    def step(self, loss_fn: LossFn, transform: GradientTransform) -> StepFn:
        """Return the training step, compiled unless the settings say otherwise."""
        step = train_step(loss_fn, transform)
        return compiled(step) if self.settings.compile else step

    def history(self, phase: str) -> list[dict[str, Any]]:
        """Return the metrics of one phase; its first row, of step 0, holds measurements alone."""
        return [row for row in self.directory.history() if row["phase"] == phase]

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
        shown: Sequence[str] = ("loss", "grad_norm"),
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
            shown: the figures to show.

        Raises:
            StoppedError: when asked to stop.
            FloatingPointError: when a metric is not finite; the last good state stays.
        """
        file = self.directory.path / f"{phase}.safetensors"
        state = checkpoint.load(file, like=state) if file.exists() else state
        start, every = made(state), max(1, math.ceil(steps / MEASUREMENTS))
        self._rewind(phase, start)
        if start == 0:
            self.directory.record({"phase": phase, "step": 0, **measure(state)})
        measured: Mapping[str, float] = {}
        with PhaseProgress(self.console, phase, steps, start, tokens) as progress:
            for number in range(start + 1, steps + 1):
                after, metrics = step(state, batch_of(state))
                mx.eval(after, metrics)
                figures: dict[str, Any] = {name: value.item() for name, value in metrics.items()}
                _check_finite(phase, number, figures, after)
                state, row = after, {"phase": phase, "step": number, **figures}
                progress.step_seconds()
                milestone = number % every == 0 or number == steps
                if milestone:
                    measured = measure(state)
                    progress.pause()
                self.directory.record(row | dict(measured) if milestone else row)
                if milestone or self._asked.received:
                    checkpoint.save(file, state)
                merged = {**figures, **measured}
                progress.show(
                    number, {name: merged[name] for name in shown if name in merged}, milestone=milestone
                )
                if self._asked.received and number < steps:
                    raise StoppedError(f"after step {number} of {phase}")
        return state

    def _rewind(self, phase: str, step: int) -> None:
        """Drop the rows that a crash left behind the saved state."""
        rows = self.directory.history()
        kept = [row for row in rows if row["phase"] != phase or (step and row["step"] <= step)]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        atomic.write(self.directory.metrics, lambda file: _write(file, lines))


class PhaseProgress(TrainingProgress):
    """The progress of one phase, with whatever figures it has."""

    def __init__(self, console: Console, phase: str, total: int, start: int, tokens_per_step: int):
        super().__init__(console, total, start, tokens_per_step)
        self._phase = phase

    def show(self, step: int, figures: Mapping[str, Any], *, milestone: bool) -> None:
        """Show the figures of a step; a milestone also leaves a line where there is no live bar."""
        rate = self.tokens_per_second()
        left = int((self.total - step) * self.tokens_per_step / rate) if rate else 0
        named = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        text = f"{named}  {rate / 1000:.1f}k tok/s  {left // 60}:{left % 60:02d} left"
        self._bar.update(self._task, completed=step, description=f"{self._phase}  {text}")
        if milestone and not self.console.is_terminal:
            self.console.print(f"{self._phase} {step}/{self.total}  {text}", highlight=False, soft_wrap=True)


def made(state: TrainState) -> int:
    """Return how many steps a state has seen."""
    step: Any = state.step.item()
    return step


def _check_finite(phase: str, number: int, figures: Mapping[str, float], after: TrainState) -> None:
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        held = [*nonfinite_paths(after), "the loss itself"][0]
        raise FloatingPointError(
            f"{' and '.join(broken)} not finite in step {number} of {phase}; first in {held}"
        )


def _resumed(directory: RunDirectory, name: str, given: Mapping[str, Any], console: Console) -> Settings:
    """Return the settings a run began with; refuse options that contradict them."""
    begun = directory.facts()
    if begun["demo"] != name:
        raise ValueError(f"demo: {directory.path} holds a run of {begun['demo']}, not of {name}")
    for key, value in given.items():
        if begun["settings"][key] != value:
            raise ValueError(
                f"demo: --{key} is {value!r}, the run in {directory.path} began with "
                f"{begun['settings'][key]!r}: leave it out to resume, or start a run of its own"
            )
    if begun["computed_by"] != _computer():
        console.print(
            f"begun with {begun['computed_by']}, resumed with {_computer()}: the bits may differ",
            style="yellow",
        )
    return Settings(**begun["settings"])


def _computer() -> dict[str, str]:
    return {"mlx": version("mlx"), "device": hardware.device_name(), "blas": hardware.blas()}


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
