"""Train a small character model with and without a teacher, and compare."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.transformer import Transformer
from purestep.demos.shared import running, session
from purestep.demos.shared.building import clipped_adamw, seeded
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.session import Session, Settings

STEPS = 300
TEACHER_STEPS = 500
CONTEXT, BATCH_SIZE = 64, 16
LITTLE = 30_000  # characters for the student; the teacher trains on all of the training text
TEACHER: dict[str, int] = {"width": 48, "layers": 2, "heads": 3}
STUDENT: dict[str, int] = {"width": 32, "layers": 1, "heads": 2}
RATE = 5e-3
TEMPERATURE, ALPHA = 2.0, 0.8
PHASES = ("teacher", "alone", "taught")

Logits = Callable[[mx.array], mx.array]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    running.add_shared_arguments(parser, "distill", STEPS, "all that is random")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "distill", Settings(STEPS), teach, phases=PHASES)


class Text(NamedTuple):
    """The training text, all of it and a little of it, and the text to predict."""

    vocabulary: int
    much: ps.data.RandomWindows
    little: ps.data.RandomWindows
    validation: list[ps.types.Batch]


def teach(session: Session) -> dict[str, Any]:
    """Train a teacher, a student without it and the same student with it; return the figures."""
    text, steps = prepared(session.settings.seed), session.settings.steps
    teacher, first = train(session, "teacher", TEACHER, text, text.much, TEACHER_STEPS)
    _, alone = train(session, "alone", STUDENT, text, text.little, steps)
    _, taught = train(session, "taught", STUDENT, text, text.little, steps, teacher)
    figures = {
        "teacher_loss": first.last("validation_loss"),
        "student_alone_loss": alone.last("validation_loss"),
        "student_alone_best_loss": min(alone.column("validation_loss")[1]),
        "student_taught_loss": taught.last("validation_loss"),
        "steps": steps,
    }
    picture(session, list(alone), list(taught), figures)
    return figures


def prepared(seed: int) -> Text:
    """Return the text as sources of batches."""
    text = read_text(None)
    split = len(text) * 9 // 10
    characters = ps.data.Characters.of(text)
    much, little = (
        ps.data.RandomWindows(characters.encode(part), BATCH_SIZE, CONTEXT, seed)
        for part in (text[:split], text[: min(LITTLE, split)])
    )
    validation = ps.data.consecutive_windows(
        characters.encode(text[split:]), 4 * BATCH_SIZE, CONTEXT, ignore_index=-100
    )
    return Text(len(characters.symbols), much, little, validation)


def train(
    session: Session,
    phase: str,
    sizes: dict[str, int],
    text: Text,
    source: ps.data.RandomWindows,
    steps: int,
    teacher: Logits | None = None,
) -> tuple[Logits, ps.callbacks.History]:
    """Train a model from random weights; return it, and its figures by step."""
    seed = session.settings.seed
    apply, params = seeded(lambda: Transformer(text.vocabulary, **sizes), seed)

    def alone(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        return ps.losses.cross_entropy(apply(params, batch["inputs"]), batch["targets"], ignore_index=-100)

    def taught(
        params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None
    ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
        assert teacher is not None
        inputs, targets = batch["inputs"], batch["targets"]
        return ps.losses.distillation_loss(
            apply(params, inputs), teacher(inputs), targets, temperature=TEMPERATURE, alpha=ALPHA
        )

    transform = clipped_adamw(RATE, steps)
    result = session.fit(
        session.step(alone if teacher is None else taught, transform),
        ps.TrainState.create(params, transform, seed=seed),
        source,
        evaluate=[ps.Evaluation(ps.eval_step(alone), text.validation, name="validation")],
        steps=steps,
        phase=phase,
    )
    return partial(apply, result.state.params), result.history


def picture(
    session: Session,
    alone: list[dict[str, float]],
    taught: list[dict[str, float]],
    figures: dict[str, Any],
) -> None:
    """Draw the validation losses of both students and of the teacher."""
    validation = Panel(
        "validation loss (nats per character)",
        [
            Curve("student alone", alone, "validation_loss", curves.ORANGE),
            Curve("student taught", taught, "validation_loss", curves.BLUE),
        ],
        levels={"teacher, at its end": figures["teacher_loss"]},
    )
    training = Panel(
        "training loss on the text (nats per character)",
        [
            Curve("student alone", alone, "loss", curves.ORANGE, noisy=True, each="rows"),
            Curve("student taught", taught, "hard", curves.BLUE, noisy=True, each="rows"),
        ],
    )
    session.draw(
        [validation, training],
        f"Distillation: the student's validation loss is {figures['student_alone_loss']:.3f} alone, "
        f"{figures['student_taught_loss']:.3f} taught by the larger model",
    )
