"""Train a character transformer on a text and continue the text."""

import argparse
import hashlib
import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.ngram import ngram_loss
from purestep.demos.models.transformer import Transformer
from purestep.demos.shared import running
from purestep.demos.shared.building import clipped_adamw, seeded
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import say
from purestep.demos.shared.settings import out_of_range
from purestep.demos.shared.writing import continued

CONTEXT = 64
BATCH_SIZE = 16
PEAK_RATE = 5e-3
SAMPLE = 500  # characters to write at the end
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
    divisor = f"a divisor of {BATCH_SIZE} (default 1)"
    parser.add_argument("--microbatches", type=int, default=unset, help=divisor)
    said = "dtype of the computation (default float32)"
    parser.add_argument("--dtype", choices=DTYPES, default=unset, help=said)


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
    result = running.ended(lambda asked: prepared.go(), "text", directory, console, options.json)
    if isinstance(result, int):
        return result
    sample = result.pop("sample")
    running.report(result, console, options.json)
    files = "loss.png, metrics.jsonl, sample.txt, state.safetensors and checkpoints/"
    say(console, f"\nwritten by the model:\n{sample}\n\n{files} are in {directory.path}/")
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

    def loss(self, params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        """Return the cross-entropy of a batch."""
        params = ps.tree.cast(params, getattr(mx, self.settings.dtype))
        logits = self.apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=-100)

    def go(self) -> dict[str, Any]:
        """Train from the last checkpoint to the end; return the figures, with the written `sample`."""
        began, computer = time.perf_counter(), running.computer()
        baseline = ngram_loss(self.train_text, self.validation_text)
        say(
            self.console,
            f"{len(self.train_text):,} characters to learn, {len(self.validation_text):,} to predict; "
            f"{ps.tree.size(self.initial.params):,} parameters; {computer['device']}, "
            f"{computer['blas']} BLAS; files in {self.directory.path}/\n"
            f"to beat: a character trigram model, {baseline:.3f} nats per character on validation",
        )
        meter = ps.callbacks.throughput()
        result = self.train(meter)
        loss, prompt = result.history.last("validation_loss") or math.nan, self.validation_text[:CONTEXT]
        written = continued(
            self.apply, result.state.params, self.characters.encode(prompt), SAMPLE,
            temperature=TEMPERATURE, seed=self.settings.seed,
        )  # fmt: skip
        sample = prompt + self.characters.decode(written)
        speeds = meter.history.column("tokens_per_second")[1]
        self.directory.save(self.directory.state, result.state)
        with self.directory.writing(self.directory.path / "sample.txt"):
            (self.directory.path / "sample.txt").write_text(sample, encoding="utf-8")
        with self.directory.writing(self.directory.path / "loss.png"):
            picture(self.directory, result.history, loss, baseline)
        return {
            "validation_loss": loss,
            "trigram_loss": baseline,
            "steps": self.settings.steps,
            "tokens_per_second": round(statistics.median(speeds or [0])),
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
            "out": str(self.directory.path),
            "sample": sample[CONTEXT:],
        }

    def train(self, *callbacks: ps.callbacks.Callback) -> ps.FitResult:
        """Run the remaining steps.

        Raises:
            StoppedError: if an interruption arrives before the last step; the state is saved.
            FloatingPointError: if the parameters are not finite; the last good checkpoint is kept.
        """
        # Evaluation is not compiled: on a CPU, building its kernels takes longer than a dozen batches.
        every = max(1, min(200, math.ceil(self.settings.steps / 4)))
        evaluation = ps.Evaluation(ps.eval_step(self.loss), self.validation, every=every, name="validation")
        shown = ps.callbacks.progress("text", console=self.console)
        lines = ps.callbacks.jsonl(self.directory.metrics)
        checkpoints = self.directory.path / "checkpoints"
        with ps.checkpoint.Checkpointer(checkpoints, keep=ps.checkpoint.keep_last(1)) as checkpointer:
            result = ps.fit(
                self.step, self.initial, self.source, steps=self.settings.steps, evaluate=evaluation,
                checkpointer=checkpointer, callbacks=[shown, lines, *callbacks],
                log_every=max(1, min(10, self.settings.steps // 20)),
            )  # fmt: skip
        return running.finished(result)


def picture(directory: RunDirectory, history: ps.callbacks.History, loss: float, baseline: float) -> None:
    """Draw the training and validation loss by step, and the loss of the trigram model."""
    rows = list(history)
    panel = Panel(
        "loss (nats per character)",
        [
            Curve("training", rows, "loss", curves.BLUE, noisy=True),
            Curve("validation", rows, "validation_loss", curves.ORANGE),
        ],
        levels={"trigram model, validation": baseline},
    )
    title = f"A character transformer: validation loss {loss:.3f}; to beat: a trigram model, {baseline:.3f}"
    curves.draw(directory.path / "loss.png", [panel], title)
