"""Train a character transformer on a text, and write some more of it."""

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from purestep import (
    Mean,
    TrainState,
    chain,
    checkpoint,
    compiled,
    eval_step,
    functional,
    losses,
    optimizers,
    schedules,
    train_step,
    transforms,
)
from purestep._core import hardware, tree
from purestep._core.rng import fold_in, scope
from purestep._core.types import Batch, Params, StepFn
from purestep.checkpoint.signals import Signals, signals
from purestep.data import Characters, RandomWindows, consecutive_windows
from purestep.demos import picture
from purestep.demos.ngram import ngram_loss
from purestep.demos.progress import TrainingProgress
from purestep.demos.run_directory import RunDirectory, latest, next_free
from purestep.demos.transformer import Transformer
from purestep.metrics import nonfinite_paths

CONTEXT = 64
BATCH_SIZE = 16
PEAK_RATE = 5e-3
SAMPLE = 500
TEMPERATURE = 0.7
SHORTEST = 2000  # characters: a tenth of it, the validation split, then fills a few windows
INTERRUPTED = 130


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a run. Everything else about it is decoration."""

    steps: int = 600
    seed: int = 0
    data: str | None = None
    compile: bool = True
    microbatches: int = 1
    dtype: str = "float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; those of `Settings` are absent from the result unless given."""
    unset: Any = argparse.SUPPRESS
    parser.add_argument("--steps", type=int, default=unset, help="updates to make (default 600)")
    parser.add_argument("--seed", type=int, default=unset, help="of the weights and the batches (default 0)")
    parser.add_argument(
        "--data", metavar="FILE", default=unset, help="a UTF-8 text (default: CPython's language reference)"
    )
    parser.add_argument(
        "--microbatches", type=int, default=unset, help=f"a divisor of {BATCH_SIZE} (default 1)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=unset, help="to compute in")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", default=unset, help="run the step uncompiled"
    )
    parser.add_argument("--out", metavar="DIR", help="where the run's files go (default runs/text)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or with the last one"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    console = Console(stderr=options.json, quiet=options.json, highlight=False)
    given = {name: value for name, value in vars(options).items() if name in Settings.__dataclass_fields__}
    if options.resume:
        directory = RunDirectory(options.out or latest("runs/text"))
        settings = resumed_settings(directory, given)
    else:
        directory = RunDirectory(options.out or next_free("runs/text"))
        settings = replace(Settings(), **given)
    check(settings)
    text = read_text(settings.data)
    facts = {
        "demo": "text",
        "settings": asdict(settings),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "computed_by": {"mlx": version("mlx"), "device": hardware.device_name(), "blas": hardware.blas()},
    }
    if options.resume:
        compare(directory.facts(), facts, console)
    else:
        directory.start(facts)
    return Run(settings, text, directory, console).go(as_json=options.json)


def resumed_settings(directory: RunDirectory, given: dict[str, Any]) -> Settings:
    """Return the settings a run began with; refuse options that contradict them."""
    begun = directory.facts()["settings"]
    for name, value in given.items():
        if begun[name] != value:
            raise ValueError(
                f"demo: --{name} is {value!r}, the run in {directory.path} began with {begun[name]!r}: "
                "leave it out to resume, or start a run of its own"
            )
    return Settings(**begun)


def check(settings: Settings) -> None:
    """Refuse settings before any work."""
    if settings.steps < 1:
        raise ValueError(f"demo: --steps must be at least 1, got {settings.steps}")
    if settings.microbatches < 1 or BATCH_SIZE % settings.microbatches:
        raise ValueError(f"demo: --microbatches must divide {BATCH_SIZE}, got {settings.microbatches}")
    if settings.seed < 0:
        raise ValueError(f"demo: --seed must be at least 0, got {settings.seed}")


def read_text(data: str | None) -> str:
    """Return the text to learn; refuse an empty, short or undecodable one."""
    if data is None:
        return "\n".join(topics[name] for name in sorted(topics))
    try:
        text = Path(data).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"demo: --data must be UTF-8 text, {data} is not, from byte {error.start} on"
        ) from None
    if len(text) < SHORTEST:
        raise ValueError(f"demo: --data must have at least {SHORTEST} characters, {data} has {len(text)}")
    return text


def compare(begun: dict[str, Any], facts: dict[str, Any], console: Console) -> None:
    """Refuse to resume on another text; say when other libraries compute, for then the bits may differ."""
    if begun["sha256"] != facts["sha256"]:
        raise ValueError("demo: the text is not the one this run began with")
    if begun["computed_by"] != facts["computed_by"]:
        console.print(
            f"begun with {begun['computed_by']}, resumed with {facts['computed_by']}: the bits may differ",
            style="yellow",
        )


class Run:
    """One run: what it trains, on what, and where it writes."""

    def __init__(self, settings: Settings, text: str, directory: RunDirectory, console: Console):
        self.settings, self.directory, self.console = settings, directory, console
        split = len(text) * 9 // 10
        self.train_text, self.validation_text = text[:split], text[split:]
        self.characters = Characters.of(text)
        self.source = RandomWindows(
            self.characters.encode(self.train_text), BATCH_SIZE, CONTEXT, settings.seed
        )
        self.validation = consecutive_windows(
            self.characters.encode(self.validation_text), 4 * BATCH_SIZE, CONTEXT, ignore_index=-100
        )
        with scope(mx.random.key(settings.seed)):
            model = Transformer(len(self.characters.symbols))
            mx.eval(model.parameters())
        self.apply, params, _ = functional(model)
        self.transform = chain(
            transforms.clip_by_global_norm(1.0),
            optimizers.adamw(
                schedules.warmup_cosine_decay(
                    0.0, PEAK_RATE, settings.steps // 20, settings.steps, end_value=0.05 * PEAK_RATE
                ),
                b2=0.99,
                weight_decay=0.1,
                mask=transforms.matrices,
            ),
        )
        self.initial = TrainState.create(params, self.transform, seed=settings.seed)
        step = train_step(self.loss, self.transform, microbatches=settings.microbatches)
        self.step: StepFn = compiled(step) if settings.compile else step
        # Not compiled: on a CPU a dozen batches are measured sooner than their kernels are built.
        self.measure = eval_step(self.loss)
        self.evaluate_every = max(1, min(200, math.ceil(settings.steps / 4)))

    def loss(self, params: Params, batch: Batch, rng: mx.array | None) -> Mean:
        """Return the cross entropy of a batch."""
        params = tree.cast(params, getattr(mx, self.settings.dtype))
        logits = self.apply(params, batch["inputs"], rng=rng)
        return losses.cross_entropy(logits, batch["targets"], ignore_index=-100)

    def go(self, *, as_json: bool) -> int:
        """Train from the last checkpoint to the end and report; stop when asked, or at a NaN."""
        began = time.perf_counter()
        self.console.print(
            f"{len(self.train_text):,} characters to learn, {len(self.validation_text):,} to predict; "
            f"{tree.size(self.initial.params):,} parameters; {hardware.device_name()}, "
            f"{hardware.blas()} BLAS; files in {self.directory.path}/"
        )
        baseline = ngram_loss(self.train_text, self.validation_text)
        self.console.print(
            f"to beat: a character trigram model, {baseline:.3f} nats a character on validation"
        )
        state = self.directory.restore(self.initial)
        with signals() as asked:
            try:
                state, validation_loss, speed = self.train(state, asked)
            except FloatingPointError as error:
                self.console.print(f"stopped: {error}", style="red", soft_wrap=True)
                print(f"demo: {error}", file=sys.stderr) if as_json else None
                return 1
        if asked.received and made(state) < self.settings.steps:
            self.console.print(
                f"interrupted after step {made(state)}; the state is saved. To go on:\n"
                f"  python -m purestep demo text --resume --out {self.directory.path}",
                soft_wrap=True,
            )
            return INTERRUPTED
        sample = self.sample(state.params)
        (self.directory.path / "sample.txt").write_text(sample, encoding="utf-8")
        title = f"{self.settings.steps} steps: validation {validation_loss:.3f}, trigram {baseline:.3f}"
        curve = self.directory.path / "loss.png"
        picture.loss_curve(curve, self.directory.history(), ("trigram model", baseline), title)
        self.report(
            {
                "validation_loss": validation_loss,
                "trigram_loss": baseline,
                "steps": self.settings.steps,
                "tokens_per_second": round(speed),
                "seconds": round(time.perf_counter() - began, 1),
                "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
                "out": str(self.directory.path),
            },
            sample,
            as_json,
        )
        return 0

    def train(self, state: TrainState, asked: Signals) -> tuple[TrainState, float, float]:
        """Make the remaining steps; return the state, its validation loss, and tokens a second."""
        start, validation_loss = made(state), None
        with TrainingProgress(self.console, self.settings.steps, start, BATCH_SIZE * CONTEXT) as progress:
            for number in range(start, self.settings.steps):
                after, metrics = self.step(state, self.source.at(number))
                mx.eval(after, metrics)
                figures = {name: as_float(value) for name, value in metrics.items()}
                self.check_finite(number, figures, state, after)
                state, row = after, {"step": number + 1, **figures}
                row["tokens_per_second"] = round(BATCH_SIZE * CONTEXT / progress.step_seconds())
                milestone = (number + 1) % self.evaluate_every == 0 or number + 1 == self.settings.steps
                if milestone:
                    self.save(state)
                    validation_loss = row["validation_loss"] = self.evaluate(state)
                    progress.pause()
                self.directory.record(row)
                progress.show(number + 1, {**row, "validation_loss": validation_loss}, milestone=milestone)
                if asked.received:
                    self.save(state)
                    break
            speed = progress.tokens_per_second()
        return state, self.evaluate(state) if validation_loss is None else validation_loss, speed

    def check_finite(
        self, number: int, figures: dict[str, float], before: TrainState, after: TrainState
    ) -> None:
        """Stop before a state that a NaN has touched takes the place of a good one."""
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if not broken:
            return
        held = [*nonfinite_paths(before), *nonfinite_paths(after), "the loss itself"][0]
        saved = self.directory.state.exists()
        kept = (
            f"the last good checkpoint is {self.directory.state}"
            if saved
            else "no checkpoint was written yet"
        )
        raise FloatingPointError(
            f"{' and '.join(broken)} not finite in step {number + 1}; first in {held}; {kept}"
        )

    def save(self, state: TrainState) -> None:
        """Write the checkpoint, unless the state is damaged: the last good one then stays."""
        damaged = nonfinite_paths(state)
        if damaged:
            raise FloatingPointError(
                f"{damaged[0]} is not finite after step {made(state)}; the last good checkpoint stays"
            )
        checkpoint.save(self.directory.state, state)

    def evaluate(self, state: TrainState) -> float:
        """Return the loss over every character of the validation text but its first."""
        means = []
        for batch in self.validation:
            means.append(self.measure(state, batch)["loss"])
            mx.eval(means[-1])
        return as_float(Mean.merge(*means).value)

    def sample(self, params: Params) -> str:
        """Write on from the first characters of the validation text."""
        prompt = self.validation_text[:CONTEXT]
        window = self.characters.encode(prompt)

        key, drawn = mx.random.key(self.settings.seed), []
        for number in range(SAMPLE):
            logits = self.apply(params, window[None])[0, -1]
            token = mx.random.categorical(logits / TEMPERATURE, key=fold_in(key, number)).astype(mx.int32)[
                None
            ]
            window = mx.concatenate([window[1:], token])
            mx.eval(window)
            drawn.append(token)
        return prompt + self.characters.decode(mx.concatenate(drawn))

    def report(self, result: dict[str, Any], sample: str, as_json: bool) -> None:
        """Print the figures and some of the text."""
        if as_json:
            print(json.dumps(result))
            return
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in result.items():
            table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        self.console.print(table)
        self.console.print("\nwritten by the model:", style="bold")
        self.console.print(sample[CONTEXT:], markup=False)
        self.console.print(
            f"\nloss.png, metrics.jsonl, sample.txt and state.safetensors are in {self.directory.path}/"
        )


def made(state: TrainState) -> int:
    """Return how many steps a state has seen."""
    return int(as_float(state.step))


def as_float(value: mx.array) -> float:
    """Return a 0-d array as a Python number; waits for the device."""
    return cast(float, value.item())
