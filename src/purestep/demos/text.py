"""Train a character transformer on a text, and write some more of it."""

import argparse
import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import mlx.core as mx
from rich.console import Console

from purestep import (
    Mean,
    TrainState,
    chain,
    compiled,
    eval_step,
    functional,
    losses,
    optimizers,
    schedules,
    train_step,
    transforms,
)
from purestep._checkpoint.run.signals import Signals
from purestep._core import hardware, tree
from purestep._core.rng import fold_in, scope
from purestep._core.types import Batch, Params, StepFn
from purestep.data import Characters, RandomWindows, consecutive_windows
from purestep.demos.models.ngram import ngram_loss
from purestep.demos.models.transformer import Transformer
from purestep.demos.pictures import curves
from purestep.demos.pictures.curves import Curve, Panel
from purestep.demos.shared import running
from purestep.demos.shared.progress import TrainingProgress
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import StoppedError, say
from purestep.demos.shared.settings import out_of_range
from purestep.demos.shared.status import is_milestone
from purestep.metrics import nonfinite_paths

CONTEXT = 64
BATCH_SIZE = 16
PEAK_RATE = 5e-3
SAMPLE = 500  # characters to write at the end
DRAWN_A_STEP = 10  # about, in the time of a step
TEMPERATURE = 0.7
DTYPES = ("float32", "bfloat16")


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
    running.add_shared_arguments(parser, "text", Settings.steps, "the weights and the batches")
    unset: Any = argparse.SUPPRESS
    parser.add_argument(
        "--data", metavar="FILE", default=unset, help="a UTF-8 text (default: CPython's language reference)"
    )
    parser.add_argument(
        "--microbatches", type=int, default=unset, help=f"a divisor of {BATCH_SIZE} (default 1)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=unset, help="to compute in")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    console = running.open_console(options)
    settings, directory, begun = running.settled(options, "text", Settings(), fault)
    text = read_text(settings.data, lambda sentence: say(console, sentence, "yellow"))
    facts = {
        "demo": "text",
        "settings": asdict(settings),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "computed_by": running.computer(),
    }
    if begun is not None:
        if begun.get("sha256") != facts["sha256"]:
            raise ValueError("demo: the text is not the one this run began with")
        running.compare_computers(begun, console)
    prepared = Run(settings, text, directory, console)
    if begun is None:
        directory.start(facts)
    result = running.ended(prepared.go, "text", directory, console, options.json)
    if isinstance(result, int):
        return result
    sample = result.pop("sample")
    running.report(result, console, options.json)
    say(console, "\nwritten by the model:", "bold")
    say(console, sample)
    say(console, f"\nloss.png, metrics.jsonl, sample.txt and state.safetensors are in {directory.path}/")
    return 0


def fault(settings: Settings) -> str | None:
    """Return what is wrong with settings, or `None`.

    >>> fault(Settings(microbatches=3))
    '--microbatches must divide 16, got 3'
    """
    if settings.microbatches < 1 or BATCH_SIZE % settings.microbatches:
        return f"--microbatches must divide {BATCH_SIZE}, got {settings.microbatches}"
    if settings.dtype not in DTYPES:
        return f"--dtype must be one of {', '.join(DTYPES)}, got {settings.dtype!r:.40}"
    return out_of_range(settings.steps, settings.seed)


class Trained(NamedTuple):
    """What training ends with.

    Attributes:
        state: after the last step.
        validation_loss: of it, in nats a character.
        tokens_per_second: over the last steps.
        sample: a prompt, and what the model wrote after it.
    """

    state: TrainState
    validation_loss: float
    tokens_per_second: float
    sample: str


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

    def go(self, asked: Signals) -> dict[str, Any]:
        """Train from the last checkpoint to the end; return the figures, and under `sample` what it wrote."""
        began = time.perf_counter()
        say(
            self.console,
            f"{len(self.train_text):,} characters to learn, {len(self.validation_text):,} to predict; "
            f"{tree.size(self.initial.params):,} parameters; {hardware.device_name()}, "
            f"{hardware.blas()} BLAS; files in {self.directory.path}/",
        )
        baseline = ngram_loss(self.train_text, self.validation_text)
        say(
            self.console,
            f"to beat: a character trigram model, {baseline:.3f} nats a character on validation",
        )
        trained = self.train(self.directory.restore(self.initial), asked)
        with self.directory.writing(self.directory.path / "sample.txt"):
            (self.directory.path / "sample.txt").write_text(trained.sample, encoding="utf-8")
        with self.directory.writing(self.directory.path / "loss.png"):
            picture(self.directory, self.settings.steps, trained.validation_loss, baseline)
        return {
            "validation_loss": trained.validation_loss,
            "trigram_loss": baseline,
            "steps": self.settings.steps,
            "tokens_per_second": round(trained.tokens_per_second),
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
            "out": str(self.directory.path),
            "sample": trained.sample[CONTEXT:],
        }

    def train(self, state: TrainState, asked: Signals) -> Trained:
        """Make the remaining steps and write a sample.

        Raises:
            StoppedError: when asked to stop before the last step; the state is saved.
            FloatingPointError: when something is not finite; the last good state stays.
        """
        start, total, validation_loss = made(state), self.settings.steps, None
        tokens = BATCH_SIZE * CONTEXT
        progress = TrainingProgress(
            self.console, "text", total, start, self.evaluate_every, tokens,
            # The forward pass is a third of a step, here for four times as many windows.
            pause_steps=len(self.validation) * 4 / 3,
            after_steps=SAMPLE / DRAWN_A_STEP,
        )  # fmt: skip
        with progress:
            progress.say("compiling" if self.settings.compile else "the first step")
            for number in range(start, total):
                after, metrics = self.step(state, self.source.at(number))
                mx.eval(after, metrics)
                figures = {name: as_float(value) for name, value in metrics.items()}
                self.check_finite(number, figures, state, after)
                state, row = after, {"step": number + 1, **figures}
                row["tokens_per_second"] = round(tokens / progress.step_seconds())
                milestone = is_milestone(number + 1, total, self.evaluate_every)
                if milestone:
                    self.save(state)
                    validation_loss = row["validation_loss"] = self.evaluate(state)
                    progress.pause()
                self.directory.record(row)
                progress.show(number + 1, described(figures, validation_loss), milestone=milestone)
                if asked.received and number + 1 < total:
                    self.save(state)
                    raise StoppedError(f"after step {number + 1}")
            if validation_loss is None:
                validation_loss = self.evaluate(state)
            speed = progress.tokens_per_second()
            sample = self.sample(state.params)
            progress.finish()
        return Trained(state, validation_loss, speed, sample)

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
        self.directory.save(self.directory.state, state)

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


def described(figures: Mapping[str, float], validation_loss: float | None) -> list[str]:
    """Return the figures of a step as the status line shows them, the most important first.

    >>> described({"loss": 1.5, "learning_rate": 0.005, "grad_norm": 0.7}, None)
    ['loss 1.500', 'val   -  ', 'lr 5.0e-03', '|g| 0.70']
    """
    return [
        f"loss {figures['loss']:.3f}",
        f"val {'  -  ' if validation_loss is None else f'{validation_loss:.3f}'}",
        f"lr {figures['learning_rate']:.1e}",
        f"|g| {figures['grad_norm']:.2f}",
    ]


def picture(directory: RunDirectory, steps: int, validation_loss: float, baseline: float) -> None:
    """Draw training and validation loss by step, and the loss to beat."""
    history = directory.history()
    panel = Panel(
        "loss (nats a character)",
        [
            Curve("training", history, "loss", curves.BLUE, noisy=True),
            Curve("validation", history, "validation_loss", curves.ORANGE),
        ],
        levels={"trigram model, validation": baseline},
    )
    title = (
        f"A character transformer, {steps} steps: validation loss {validation_loss:.3f}; "
        f"to beat: a trigram model, {baseline:.3f}"
    )
    curves.draw(directory.path / "loss.png", [panel], title)


def made(state: TrainState) -> int:
    """Return how many steps a state has seen."""
    return int(as_float(state.step))


def as_float(value: mx.array) -> float:
    """Return a 0-d array as a Python number; waits for the device."""
    return cast(float, value.item())
