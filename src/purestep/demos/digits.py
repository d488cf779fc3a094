"""Train a convolutional network to read handwritten digits, with BatchNorm and Dropout."""

import argparse
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.convolution import TEST, Convolution, handwritten
from purestep.demos.shared import running, session
from purestep.demos.shared.session import Session, Settings

STEPS = 600
BATCH_SIZE = 64
PEAK_RATE = 3e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. A setting that is not given is absent from the result."""
    running.add_shared_arguments(parser, "digits", STEPS, "the split, the weights and the batches")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "digits", Settings(STEPS), learn_to_read)


def learn_to_read(session: Session) -> dict[str, Any]:
    """Train from random weights; return the figures."""
    settings = session.settings
    learnt, tested = split(settings.seed)
    with ps.rng.scope(mx.random.key(settings.seed)):
        model = Convolution()
        mx.eval(model.parameters())
    apply, params, model_state = ps.functional(model)

    def loss_fn(params: Any, model_state: Any, batch: Mapping[str, mx.array], rng: Any) -> Any:
        logits, model_state = apply(params, batch["images"], rng=rng, model_state=model_state)
        right = logits.argmax(-1) == batch["digits"]
        loss = ps.losses.cross_entropy(logits, batch["digits"])
        return loss, {"accuracy": ps.Mean.of(right.astype(mx.float32))}, model_state

    rate = ps.schedules.warmup_cosine_decay(0.0, PEAK_RATE, settings.steps // 20, settings.steps)
    transform = ps.optimizers.adamw(rate, weight_decay=0.01, mask=ps.transforms.matrices)
    session.say(
        f"{len(learnt['digits']):,} images to learn, {TEST} to read; "
        f"{ps.tree.size(params):,} parameters; files in {session.directory.path}/"
    )
    result = session.fit(
        session.step(loss_fn, transform, stateful=True),
        ps.TrainState.create(params, transform, seed=settings.seed, model_state=model_state),
        ps.data.Batches(learnt, BATCH_SIZE, seed=settings.seed),
        evaluate=[ps.Evaluation(ps.eval_step(loss_fn, stateful=True), [tested], name="test")],
    )
    accuracy = result.history.last("test_accuracy") or 0.0
    picture(session, result.history, accuracy)
    loss = result.history.last("test_loss")
    return {"test_accuracy": accuracy, "test_loss": loss, "steps": settings.steps}


def split(seed: int) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return the images to learn and the images to test, which the seed decides."""
    images, digits = handwritten()
    order = mx.random.permutation(len(digits), key=mx.random.key(seed))
    parts = [{"images": images[rows], "digits": digits[rows]} for rows in (order[TEST:], order[:TEST])]
    mx.eval(parts)
    return parts[0], parts[1]


def picture(session: Session, history: ps.callbacks.History, accuracy: float) -> None:
    """Draw the losses and the accuracies by step."""
    rows = list(history)
    panels = [
        Panel(
            name,
            [
                Curve("training", rows, figure, curves.BLUE, noisy=True, each="rows"),
                Curve("test", rows, f"test_{figure}", curves.ORANGE),
            ],
        )
        for name, figure in (("loss (nats)", "loss"), ("accuracy", "accuracy"))
    ]
    session.draw(panels, f"Handwritten digits: test accuracy {accuracy:.1%}")
