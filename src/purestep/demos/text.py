"""Train a character transformer on a text and continue the text."""

import argparse
import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import mlx.core as mx
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.display.live import TrainingProgress
from purestep._loop.callbacks.display.status import is_milestone
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.ngram import ngram_loss
from purestep.demos.models.transformer import Transformer
from purestep.demos.shared import running
from purestep.demos.shared.building import clipped_adamw, seeded
from purestep.demos.shared.figures import as_float, check_finite, made, means_over
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import Signals, StoppedError, say
from purestep.demos.shared.settings import out_of_range

CONTEXT = 64
BATCH_SIZE = 16
PEAK_RATE = 5e-3
SAMPLE = 500  # characters to write at the end
DRAWN_A_STEP = 10  # characters drawn in the time of a training step, roughly
TEMPERATURE = 0.7
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """The settings that determine the results of a run bit for bit."""

    steps: int = 600
    seed: int = 0
    data: str | None = None
    compile: bool = True
    microbatches: int = 1
    dtype: str = "float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. A setting that is not given is absent from the result."""
    running.add_shared_arguments(parser, "text", Settings.steps, "the weights and the batches")
    unset: Any = argparse.SUPPRESS
    parser.add_argument(
        "--data", metavar="FILE", default=unset, help="a UTF-8 text (default: CPython's language reference)"
    )
    parser.add_argument(
        "--microbatches", type=int, default=unset, help=f"a divisor of {BATCH_SIZE} (default 1)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=unset,
        help="dtype of the computation (default float32)",
    )


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
            raise ValueError("demo: --data must be the text this run began with, got another text")
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
    """Return the first error in the settings, or `None`.

    >>> fault(Settings(microbatches=3))
    '--microbatches must divide 16, got 3'
    """
    if settings.microbatches < 1 or BATCH_SIZE % settings.microbatches:
        return f"--microbatches must divide {BATCH_SIZE}, got {settings.microbatches}"
    if settings.dtype not in DTYPES:
        return f"--dtype must be one of {', '.join(DTYPES)}, got {settings.dtype!r:.40}"
    return out_of_range(settings.steps, settings.seed)


class Trained(NamedTuple):
    """The results of training.

    Attributes:
        state: the state after the last step.
        validation_loss: its loss on the validation text, in nats per character.
        tokens_per_second: the rate of the last steps.
        sample: a prompt and the text that the model wrote after it.
    """

    state: ps.TrainState
    validation_loss: float
    tokens_per_second: float
    sample: str


class Run:
    """One run: the model, the text and the output directory."""

    def __init__(self, settings: Settings, text: str, directory: RunDirectory, console: Console):
        self.settings, self.directory, self.console = settings, directory, console
        split = len(text) * 9 // 10
        self.train_text, self.validation_text = text[:split], text[split:]
        self.characters = ps.data.Characters.of(text)
        self.source = ps.data.RandomWindows(
            self.characters.encode(self.train_text), BATCH_SIZE, CONTEXT, settings.seed
        )
        self.validation = ps.data.consecutive_windows(
            self.characters.encode(self.validation_text), 4 * BATCH_SIZE, CONTEXT, ignore_index=-100
        )
        self.apply, params = seeded(lambda: Transformer(len(self.characters.symbols)), settings.seed)
        self.transform = clipped_adamw(PEAK_RATE, settings.steps)
        self.initial = ps.TrainState.create(params, self.transform, seed=settings.seed)
        step = ps.train_step(self.loss, self.transform, microbatches=settings.microbatches)
        self.step: ps.types.StepFn = ps.compiled(step) if settings.compile else step
        # Not compiled: on a CPU, building the kernels takes longer than measuring a dozen batches.
        self.measure = ps.eval_step(self.loss)
        self.evaluate_every = max(1, min(200, math.ceil(settings.steps / 4)))

    def loss(self, params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        """Return the cross-entropy of a batch."""
        params = ps.tree.cast(params, getattr(mx, self.settings.dtype))
        logits = self.apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=-100)

    def go(self, asked: Signals) -> dict[str, Any]:
        """Train from the last checkpoint to the end; return the figures, with the written `sample`."""
        began, computer = time.perf_counter(), running.computer()
        say(
            self.console,
            f"{len(self.train_text):,} characters to learn, {len(self.validation_text):,} to predict; "
            f"{ps.tree.size(self.initial.params):,} parameters; {computer['device']}, "
            f"{computer['blas']} BLAS; files in {self.directory.path}/",
        )
        baseline = ngram_loss(self.train_text, self.validation_text)
        say(
            self.console,
            f"to beat: a character trigram model, {baseline:.3f} nats per character on validation",
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

    def train(self, state: ps.TrainState, asked: Signals) -> Trained:
        """Run the remaining steps and write a sample.

        Raises:
            StoppedError: if an interruption arrives before the last step; the state is saved.
            FloatingPointError: if a figure is not finite; the last good checkpoint is kept.
        """
        start, total, validation_loss = made(state), self.settings.steps, None
        tokens = BATCH_SIZE * CONTEXT
        progress = TrainingProgress(
            self.console, "text", total, start, self.evaluate_every, tokens,
            # A forward pass takes a third of a step; a validation batch has four times as many windows.
            pause_steps=len(self.validation) * 4 / 3,
            after_steps=SAMPLE / DRAWN_A_STEP,
        )  # fmt: skip
        with progress:
            progress.say("compiling" if self.settings.compile else "the first step")
            for number in range(start, total):
                after, metrics = self.step(state, self.source.at(number))
                mx.eval(after, metrics)
                figures = {name: as_float(value) for name, value in metrics.items()}
                kept = (
                    f"the last good checkpoint is {self.directory.state}"
                    if self.directory.state.exists()
                    else "no checkpoint was written yet"
                )
                check_finite(f"step {number + 1}", figures, state, after, note=f"; {kept}")
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

    def save(self, state: ps.TrainState) -> None:
        """Write the checkpoint. A state that is not finite raises, and the last good checkpoint is kept."""
        damaged = ps.metrics.nonfinite_paths(state)
        if damaged:
            raise FloatingPointError(
                f"{damaged[0]} is not finite after step {made(state)}; the last good checkpoint is kept"
            )
        self.directory.save(self.directory.state, state)

    def evaluate(self, state: ps.TrainState) -> float:
        """Return the loss over the validation text, without its first character."""
        return means_over(self.measure, state, self.validation)["loss"]

    def sample(self, params: ps.types.Params) -> str:
        """Continue the first characters of the validation text."""
        prompt = self.validation_text[:CONTEXT]
        window = self.characters.encode(prompt)

        key, drawn = mx.random.key(self.settings.seed), []
        for number in range(SAMPLE):
            logits = self.apply(params, window[None])[0, -1]
            token = mx.random.categorical(logits / TEMPERATURE, key=ps.rng.fold_in(key, number))
            token = token.astype(mx.int32)[None]
            window = mx.concatenate([window[1:], token])
            mx.eval(window)
            drawn.append(token)
        return prompt + self.characters.decode(mx.concatenate(drawn))


def described(figures: Mapping[str, float], validation_loss: float | None) -> list[str]:
    """Return the figures of a step as the status line shows them, most important first.

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
    """Draw the training and validation loss by step, and the loss of the trigram model."""
    history = directory.history()
    panel = Panel(
        "loss (nats per character)",
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
