"""Train a convolutional network to read handwritten digits, with BatchNorm and Dropout."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from rich.console import Console

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.convolution import TEST, Convolution, handwritten
from purestep.demos.shared import running
from purestep.demos.shared.run_directory import RunDirectory
from purestep.demos.shared.running import Signals, say
from purestep.demos.shared.settings import out_of_range

BATCH_SIZE = 64
PEAK_RATE = 3e-3
EVALUATIONS = 8


@dataclass(frozen=True)
class Settings:
    """The settings that determine the results of a run bit for bit."""

    steps: int = 600
    seed: int = 0
    compile: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. A setting that is not given is absent from the result."""
    running.add_shared_arguments(parser, "digits", Settings.steps, "the split, the weights and the batches")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    console = running.open_console(options)
    settings, directory, begun = running.settled(
        options, "digits", Settings(), lambda found: out_of_range(found.steps, found.seed)
    )
    if begun is not None:
        running.compare_computers(begun, console)
    else:
        directory.start({"demo": "digits", "settings": asdict(settings), "computed_by": running.computer()})

    def whole(asked: Signals) -> dict[str, Any]:
        return train(settings, directory, console)

    result = running.ended(whole, "digits", directory, console, options.json)
    if isinstance(result, int):
        return result
    running.report(result, console, options.json)
    say(console, f"\ncurves.png, metrics.jsonl and checkpoints/ are in {directory.path}/")
    return 0


def split(seed: int) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return the images to learn and the images to test, which the seed decides."""
    images, digits = handwritten()
    order = mx.random.permutation(len(digits), key=mx.random.key(seed))
    parts = [{"images": images[rows], "digits": digits[rows]} for rows in (order[TEST:], order[:TEST])]
    mx.eval(parts)
    return parts[0], parts[1]


def loss_fn_of(apply: ps.types.Apply) -> Any:
    """Return the loss function: cross entropy, with the accuracy as a metric."""

    def loss_fn(params: Any, model_state: Any, batch: Mapping[str, mx.array], rng: Any) -> Any:
        logits, model_state = apply(params, batch["images"], rng=rng, model_state=model_state)
        right = logits.argmax(-1) == batch["digits"]
        loss = ps.losses.cross_entropy(logits, batch["digits"])
        return loss, {"accuracy": ps.Mean.of(right.astype(mx.float32))}, model_state

    return loss_fn


def train(settings: Settings, directory: RunDirectory, console: Console) -> dict[str, Any]:
    """Train from the last checkpoint to the end; return the figures.

    Raises:
        StoppedError: if the run is interrupted; the state is saved.
        FloatingPointError: if the parameters are not finite; the last good checkpoint is kept.
    """
    began = time.perf_counter()
    learnt, tested = split(settings.seed)
    with ps.rng.scope(mx.random.key(settings.seed)):
        model = Convolution()
        mx.eval(model.parameters())
    apply, params, model_state = ps.functional(model)
    loss_fn = loss_fn_of(apply)
    rate = ps.schedules.warmup_cosine_decay(0.0, PEAK_RATE, settings.steps // 20, settings.steps)
    transform = ps.optimizers.adamw(rate, weight_decay=0.01, mask=ps.transforms.matrices)
    state = ps.TrainState.create(params, transform, seed=settings.seed, model_state=model_state)
    step: ps.types.StepFn = ps.train_step(loss_fn, transform, stateful=True)
    every = max(1, settings.steps // EVALUATIONS)
    say(
        console,
        f"{len(learnt['digits']):,} images to learn, {TEST} to read; "
        f"{ps.tree.size(params):,} parameters; files in {directory.path}/",
    )
    with ps.checkpoint.Checkpointer(
        directory.path / "checkpoints", keep=ps.checkpoint.keep_last(2), metric="test_loss"
    ) as checkpointer:
        result = running.finished(
            ps.fit(
                ps.compiled(step) if settings.compile else step,
                state,
                ps.data.Batches(learnt, BATCH_SIZE, seed=settings.seed),
                steps=settings.steps,
                evaluate=ps.Evaluation(
                    ps.eval_step(loss_fn, stateful=True), [tested], every=every, name="test"
                ),
                checkpointer=checkpointer,
                callbacks=[
                    ps.callbacks.progress("digits", console=console),
                    ps.callbacks.jsonl(directory.metrics),
                ],
            )
        )
    accuracy = result.history.last("test_accuracy") or 0.0
    picture(directory, result.history, accuracy)
    return {
        "test_accuracy": accuracy,
        "test_loss": result.history.last("test_loss"),
        "steps": settings.steps,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(mx.get_peak_memory() / 1e6),
        "out": str(directory.path),
    }


def picture(directory: RunDirectory, history: ps.callbacks.History, accuracy: float) -> None:
    """Draw the losses and the accuracies by step."""
    rows = list(history)
    panels = [
        Panel(
            name,
            [
                Curve("training", rows, figure, curves.BLUE, noisy=True),
                Curve("test", rows, f"test_{figure}", curves.ORANGE),
            ],
        )
        for name, figure in (("loss (nats)", "loss"), ("accuracy", "accuracy"))
    ]
    with directory.writing(directory.path / "curves.png"):
        curves.draw(
            directory.path / "curves.png", panels, f"Handwritten digits: test accuracy {accuracy:.1%}"
        )
