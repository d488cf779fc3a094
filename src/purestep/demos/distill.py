"""Train a small character model with and without a teacher, and compare."""

import argparse
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep.demos.models.transformer import Transformer
from purestep.demos.shared import session
from purestep.demos.shared.building import clipped_adamw, seeded
from purestep.demos.shared.figures import made, means_over
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.session import Session

STEPS = 300
TEACHER_STEPS = 500
CONTEXT, BATCH_SIZE = 64, 16
LITTLE = 30_000  # characters for the student; the teacher trains on all of the training text
TEACHER: dict[str, int] = {"width": 48, "layers": 2, "heads": 3}
STUDENT: dict[str, int] = {"width": 32, "layers": 1, "heads": 2}
RATE = 5e-3
TEMPERATURE, ALPHA = 2.0, 0.8
PHASES = ("teacher", "alone", "taught")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    session.add_arguments(parser, "distill", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "distill", STEPS, teach, phases=PHASES)


def teach(session: Session) -> dict[str, Any]:
    """Train a teacher, a student without it and the same student with it; return the figures."""
    settings, text = session.settings, read_text(None)
    split = len(text) * 9 // 10
    characters = ps.data.Characters.of(text)
    much, little = (
        ps.data.RandomWindows(characters.encode(part), BATCH_SIZE, CONTEXT, settings.seed)
        for part in (text[:split], text[: min(LITTLE, split)])
    )
    validation = ps.data.consecutive_windows(
        characters.encode(text[split:]), 4 * BATCH_SIZE, CONTEXT, ignore_index=-100
    )

    def built(sizes: dict[str, int]) -> tuple[ps.types.Apply, ps.types.Params]:
        return seeded(lambda: Transformer(len(characters.symbols), **sizes), settings.seed)

    def train(
        phase: str,
        apply: ps.types.Apply,
        params: ps.types.Params,
        steps: int,
        source: ps.data.RandomWindows,
        teacher: Any,
    ) -> ps.types.Params:
        """Train on a source. If there is a teacher, `teacher(inputs)` returns the target logits."""

        def plain(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
            return ps.losses.cross_entropy(
                apply(params, batch["inputs"]), batch["targets"], ignore_index=-100
            )

        def taught(
            params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None
        ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
            return ps.losses.distillation_loss(
                apply(params, batch["inputs"]),
                batch["teacher_logits"],
                batch["targets"],
                temperature=TEMPERATURE,
                alpha=ALPHA,
            )

        def batch_of(state: ps.TrainState) -> ps.types.Batch:
            batch = source.at(made(state))
            return {**batch, "teacher_logits": teacher(batch["inputs"])} if teacher else batch

        look = ps.eval_step(plain)

        def measure(state: ps.TrainState) -> dict[str, float]:
            return {"validation_loss": means_over(look, state, validation)["loss"]}

        optimizer = clipped_adamw(RATE, steps)
        return session.train(
            phase,
            ps.TrainState.create(params, optimizer, seed=settings.seed),
            session.step(taught if teacher else plain, optimizer),
            batch_of,
            steps=steps,
            tokens=BATCH_SIZE * CONTEXT,
            measure=measure,
            shown={"loss": "loss", "validation_loss": "val", "grad_norm": "|g|"},
        ).params

    apply, params = built(TEACHER)
    teacher = train("teacher", apply, params, TEACHER_STEPS, much, None)
    known = lambda inputs: apply(teacher, inputs)  # noqa: E731
    student, first = built(STUDENT)
    train("alone", student, first, settings.steps, little, None)
    train("taught", student, first, settings.steps, little, mx.compile(known) if settings.compile else known)

    measured = {
        phase: [row["validation_loss"] for row in session.history(phase) if "validation_loss" in row]
        for phase in PHASES
    }
    result = {
        "teacher_loss": measured["teacher"][-1],
        "student_alone_loss": measured["alone"][-1],
        "student_alone_best_loss": min(measured["alone"]),
        "student_taught_loss": measured["taught"][-1],
        "steps": settings.steps,
    }
    picture(session, result)
    return result


def picture(session: Session, result: dict[str, Any]) -> None:
    """Draw the validation losses of both students and of the teacher."""
    alone, taught = session.history("alone"), session.history("taught")
    session.draw(
        [
            curves.Panel(
                "validation loss (nats per character)",
                [
                    curves.Curve("student alone", alone, "validation_loss", curves.ORANGE),
                    curves.Curve("student taught", taught, "validation_loss", curves.BLUE),
                ],
                levels={"teacher, at its end": result["teacher_loss"]},
            ),
            curves.Panel(
                "training loss on the text (nats per character)",
                [
                    curves.Curve("student alone", alone, "loss", curves.ORANGE, noisy=True),
                    curves.Curve("student taught", taught, "hard", curves.BLUE, noisy=True),
                ],
            ),
        ],
        f"Distillation: the student's validation loss is {result['student_alone_loss']:.3f} alone, "
        f"{result['student_taught_loss']:.3f} taught by the larger model",
    )
