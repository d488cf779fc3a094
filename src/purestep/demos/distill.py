"""Train a small character model on a little text twice, alone and with a teacher, and compare."""

import argparse
from typing import Any

import mlx.core as mx

from purestep import (
    GradientTransform,
    Mean,
    TrainState,
    chain,
    eval_step,
    functional,
    losses,
    optimizers,
    schedules,
    transforms,
)
from purestep._core.rng import scope
from purestep._core.types import Batch, Params
from purestep._modules.bridge import Apply
from purestep.data import Characters, RandomWindows, consecutive_windows
from purestep.demos.models.transformer import Transformer
from purestep.demos.pictures import curves
from purestep.demos.shared import session
from purestep.demos.shared.session import Session, made
from purestep.demos.text import read_text
from purestep.losses import distillation_loss

STEPS = 300
TEACHER_STEPS = 500
CONTEXT, BATCH_SIZE = 64, 16
LITTLE = 30_000  # characters that the student sees; the teacher sees all of the training text
TEACHER: dict[str, int] = {"width": 48, "layers": 2, "heads": 3}
STUDENT: dict[str, int] = {"width": 32, "layers": 1, "heads": 2}
RATE = 5e-3
TEMPERATURE, ALPHA = 2.0, 0.8
PHASES = ("teacher", "alone", "taught")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    session.add_arguments(parser, "distill", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    return session.conduct(options, "distill", STEPS, teach, phases=PHASES)


def teach(session: Session) -> dict[str, Any]:
    """Train a teacher, a student alone and the same student taught; return the figures."""
    settings, text = session.settings, read_text(None)
    split = len(text) * 9 // 10
    characters = Characters.of(text)
    much, little = (
        RandomWindows(characters.encode(part), BATCH_SIZE, CONTEXT, settings.seed)
        for part in (text[:split], text[: min(LITTLE, split)])
    )
    validation = consecutive_windows(
        characters.encode(text[split:]), 4 * BATCH_SIZE, CONTEXT, ignore_index=-100
    )

    def built(sizes: dict[str, int]) -> tuple[Apply, Params]:
        with scope(mx.random.key(settings.seed)):
            model = Transformer(len(characters.symbols), **sizes)
            mx.eval(model.parameters())
        return functional(model)[:2]

    def transform(steps: int) -> GradientTransform:
        rate = schedules.warmup_cosine_decay(0.0, RATE, steps // 20, steps, end_value=0.05 * RATE)
        adamw = optimizers.adamw(rate, b2=0.99, weight_decay=0.1, mask=transforms.matrices)
        return chain(transforms.clip_by_global_norm(1.0), adamw)

    def train(
        phase: str, apply: Apply, params: Params, steps: int, source: RandomWindows, teacher: Any
    ) -> Params:
        """Train on a source; with a teacher, `teacher(inputs)` gives the logits to learn from."""

        def plain(params: Params, batch: Batch, rng: mx.array | None) -> Mean:
            return losses.cross_entropy(apply(params, batch["inputs"]), batch["targets"], ignore_index=-100)

        def taught(params: Params, batch: Batch, rng: mx.array | None) -> tuple[Mean, dict[str, Mean]]:
            return distillation_loss(
                apply(params, batch["inputs"]),
                batch["teacher_logits"],
                batch["targets"],
                temperature=TEMPERATURE,
                alpha=ALPHA,
            )

        def batch_of(state: TrainState) -> Batch:
            batch = source.at(made(state))
            return {**batch, "teacher_logits": teacher(batch["inputs"])} if teacher else batch

        evaluate = eval_step(plain)

        def measure(state: TrainState) -> dict[str, float]:
            means = []
            for batch in validation:
                means.append(evaluate(state, batch)["loss"])
                mx.eval(means[-1])
            loss: Any = Mean.merge(*means).value.item()
            return {"validation_loss": loss}

        optimizer = transform(steps)
        return session.train(
            phase,
            TrainState.create(params, optimizer, seed=settings.seed),
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
    """Draw the validation losses of the student, alone and taught, and the teacher's."""
    alone, taught = session.history("alone"), session.history("taught")
    curves.draw(
        session.directory.path / "curves.png",
        [
            curves.Panel(
                "validation loss (nats a character)",
                [
                    curves.Curve("student alone", alone, "validation_loss", curves.ORANGE),
                    curves.Curve("student taught", taught, "validation_loss", curves.BLUE),
                ],
                levels={"teacher, at its end": result["teacher_loss"]},
            ),
            curves.Panel(
                "training loss on the text (nats a character)",
                [
                    curves.Curve("student alone", alone, "loss", curves.ORANGE, noisy=True),
                    curves.Curve("student taught", taught, "hard", curves.BLUE, noisy=True),
                ],
            ),
        ],
        f"Distillation: the student's validation loss is {result['student_alone_loss']:.3f} alone, "
        f"{result['student_taught_loss']:.3f} taught by the larger model",
    )
