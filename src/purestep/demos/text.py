"""Train a character transformer on a text and continue the text."""

import argparse
import hashlib
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.ngram import ngram_loss
from purestep.demos.models.transformer import Transformer
from purestep.demos.shared import running, session
from purestep.demos.shared.building import clipped_adamw, seeded
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.session import Session
from purestep.demos.shared.writing import continued

CONTEXT = 64
BATCH_SIZE = 16
PEAK_RATE = 5e-3
SAMPLE = 500  # characters to write at the end
TEMPERATURE = 0.7
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings(session.Settings):
    """The settings that determine the results of a run bit for bit."""

    steps: int = 600
    data: str | None = None
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
    return session.conduct(options, "text", Settings(), learn, fault=fault, facts_of=facts_of)


def fault(settings: Settings) -> str | None:
    """Return the first error in the settings, or `None`.

    >>> fault(Settings(microbatches=3))
    '--microbatches must divide 16, got 3'
    """
    if settings.microbatches < 1 or BATCH_SIZE % settings.microbatches:
        return f"--microbatches must divide {BATCH_SIZE}, got {settings.microbatches}"
    if settings.dtype not in DTYPES:
        return f"--dtype must be one of {', '.join(DTYPES)}, got {settings.dtype!r:.40}"
    return session.in_range(settings)


def facts_of(settings: Settings, begun: Mapping[str, Any] | None, console: Console) -> dict[str, Any]:
    """Return the checksum of the text; refuse to resume a run with another text."""
    text = read_text(settings.data, lambda sentence: running.say(console, sentence, "yellow"))
    facts = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    if begun is not None and begun.get("sha256") != facts["sha256"]:
        raise ValueError("demo: --data must be the text this run began with, got another text")
    return facts


def learn(session: Session) -> dict[str, Any]:
    """Train on nine tenths of the text, predict the rest, and continue it; return the figures."""
    settings, text = session.settings, read_text(session.settings.data)
    learnt, unseen = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    characters = ps.data.Characters.of(text)
    source = ps.data.RandomWindows(characters.encode(learnt), BATCH_SIZE, CONTEXT, settings.seed)
    validation = ps.data.consecutive_windows(
        characters.encode(unseen), 4 * BATCH_SIZE, CONTEXT, ignore_index=-100
    )
    apply, params = seeded(lambda: Transformer(len(characters.symbols)), settings.seed)
    transform = clipped_adamw(PEAK_RATE, settings.steps)

    def loss_fn(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        logits = apply(ps.tree.cast(params, getattr(mx, settings.dtype)), batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=-100)

    baseline, computer = ngram_loss(learnt, unseen), running.computer()
    session.say(
        f"{len(learnt):,} characters to learn, {len(unseen):,} to predict; "
        f"{ps.tree.size(params):,} parameters; {computer['device']}, "
        f"{computer['blas']} BLAS; files in {session.directory.path}/\n"
        f"to beat: a character trigram model, {baseline:.3f} nats per character on validation"
    )
    meter = ps.callbacks.throughput()
    result = session.fit(
        session.step(loss_fn, transform, microbatches=settings.microbatches),
        ps.TrainState.create(params, transform, seed=settings.seed),
        source,
        # Not compiled: on a CPU, building the kernels takes longer than a dozen batches.
        evaluate=[ps.Evaluation(ps.eval_step(loss_fn), validation, name="validation")],
        callbacks=[meter],
    )
    written = continued(
        apply, result.state.params, characters.encode(unseen[:CONTEXT]), SAMPLE,
        temperature=TEMPERATURE, seed=settings.seed,
    )  # fmt: skip
    loss, sample = result.history.last("validation_loss") or math.nan, characters.decode(written)
    save(session, result.state, unseen[:CONTEXT] + sample)
    picture(session, result.history, loss, baseline)
    session.say(f"\nwritten by the model:\n{sample}")
    speeds = meter.history.column("tokens_per_second")[1]
    return {
        "validation_loss": loss,
        "trigram_loss": baseline,
        "steps": settings.steps,
        "tokens_per_second": round(statistics.median(speeds or [0])),
    }


def save(session: Session, state: ps.TrainState, sample: str) -> None:
    """Write the last state and the sample into files of their own."""
    directory = session.directory
    with directory.writing(directory.path / "state.safetensors"):
        ps.checkpoint.save(directory.path / "state.safetensors", state)
    with directory.writing(directory.path / "sample.txt"):
        (directory.path / "sample.txt").write_text(sample, encoding="utf-8")


def picture(session: Session, history: ps.callbacks.History, loss: float, baseline: float) -> None:
    """Draw the training and validation loss by step, and the loss of the trigram model."""
    rows = list(history)
    panel = Panel(
        "loss (nats per character)",
        [
            Curve("training", rows, "loss", curves.BLUE, noisy=True, each="rows"),
            Curve("validation", rows, "validation_loss", curves.ORANGE),
        ],
        levels={"trigram model, validation": baseline},
    )
    title = f"A character transformer: validation loss {loss:.3f}; to beat: a trigram model, {baseline:.3f}"
    session.draw([panel], title, "loss.png")
