"""Pretrain a small language model on a text, then tune it with LoRA to follow instructions."""

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._checkpoint.disk import atomic
from purestep._core.escaping import printable
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.instructions import TASKS, Bytes, Lessons, prepared, words_of
from purestep.demos.models.llama import Llama
from purestep.demos.shared import exporting, running, session
from purestep.demos.shared.building import built
from purestep.demos.shared.reading import read_text
from purestep.demos.shared.session import Session

PHASES = ("pretraining", "finetuning")
SIZES = {"width": 96, "layers": 3, "heads": 4, "inner": 256}
CONTEXT, BATCH_SIZE = 64, 16  # of pretraining
PRETRAINING_RATE, RATE = 5e-3, 1e-2
TRAIN, TEST = 3000, 100  # instructions of each task
ROWS = 52  # of a batch of instructions
REPLAYED = 0.1  # pieces of the text for each instruction, so that the model does not forget the text
MEASURED = 16_384  # bytes of the text that measure it
RANK, ALPHA = 8, 16.0
LAYERS = "*_proj"
SHOWN = 2  # answers of each task
PURPLE = "#7b4fa3"
ENDS = (("before", 0), ("after", -1))


@dataclass(frozen=True)
class Settings(session.Settings):
    """The settings that determine the results of a run bit for bit."""

    steps: int = 500
    pretrain: int = 600
    rank: int = RANK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. A setting that is not given is absent from the result."""
    running.add_shared_arguments(parser, "finetune", Settings.steps, "all that is random")
    unset: Any = argparse.SUPPRESS
    said = f"number of updates of pretraining (default {Settings.pretrain})"
    parser.add_argument("--pretrain", type=int, metavar="STEPS", default=unset, help=said)
    parser.add_argument("--rank", type=int, default=unset, help=f"rank of the adapters (default {RANK})")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "finetune", Settings(), tune, phases=PHASES, fault=fault)


def fault(settings: Settings) -> str | None:
    """Return the first error in the settings, or `None`.

    >>> fault(Settings(rank=0))
    '--rank must be from 1 to 96, got 0'
    """
    if settings.pretrain < 1:
        return f"--pretrain must be at least 1, got {settings.pretrain}"
    if not 1 <= settings.rank <= SIZES["width"]:
        return f"--rank must be from 1 to {SIZES['width']}, got {settings.rank}"
    return session.in_range(settings)


def tune(session: Session) -> dict[str, Any]:
    """Pretrain a model, tune it with adapters, save both for mlx-lm; return the figures."""
    settings, text = session.settings, read_text(None)
    learnt, unseen = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    tokens = mx.array(Bytes().encode(unseen)[:MEASURED], mx.int32)
    measured = ps.data.consecutive_windows(tokens, 4 * BATCH_SIZE, CONTEXT, ignore_index=-100)
    model = built(lambda: Llama(**SIZES), settings.seed)
    pretrain(session, model, learnt, measured)
    adapted = ps.adapters.lora(
        model, LAYERS, rank=settings.rank, alpha=ALPHA, key=mx.random.key(settings.seed)
    )
    lessons = prepared(learnt, words_of(text), (TRAIN, TEST), ROWS, REPLAYED, settings.seed)
    report = ps.adapters.report(adapted)
    share = report.trained / (report.trained + report.frozen)
    session.say(
        f"LoRA of rank {settings.rank}: {report.trained:,} parameters are trained, {share:.1%} of all"
    )
    apply, first, _ = ps.functional(adapted)
    history, params = finetune(session, apply, first, lessons, measured)
    say_answers(session, apply, first, params, lessons)
    found = {
        **{f"exact_{task.lower()}_after": history.last(f"exact_{task.lower()}") for task in TASKS},
        "text_loss_before": history.column("text_loss")[1][0],
        "text_loss_after": history.last("text_loss"),
        "trained_parameters": report.trained,
        "trained_share": share,
        "steps": settings.steps,
    }
    exact = {when: [history.column(f"exact_{task.lower()}")[1][at] for task in TASKS] for when, at in ENDS}
    figures = {f"exact_{when}": statistics.fmean(rates) for when, rates in exact.items()} | found
    picture(session, list(history), figures)
    some = next(iter(lessons.batches.values()))["inputs"]
    return figures | save(session, model, adapted, params, some)


def pretrain(session: Session, model: Llama, text: str, measured: list[ps.types.Batch]) -> None:
    """Train all parameters of a model on a text, in place."""
    settings = session.settings
    apply, params, _ = ps.functional(model)
    transform = ps.chain(
        ps.transforms.clip_by_global_norm(1.0),
        ps.optimizers.muon(
            rate_of(PRETRAINING_RATE, settings.pretrain),
            consistent_rms=0.2,
            matrices=lambda path, leaf: leaf.ndim == 2 and path.startswith("model.layers"),
        ),
    )
    source = ps.data.RandomWindows(
        mx.array(Bytes().encode(text), mx.int32), BATCH_SIZE, CONTEXT, settings.seed
    )
    session.say(
        f"{source.tokens.size:,} bytes of text; {ps.tree.size(params):,} parameters; "
        f"{running.computer()['device']}, {running.computer()['blas']} BLAS; "
        f"files in {session.directory.path}/"
    )
    loss_fn = text_loss(apply)
    result = session.fit(
        session.step(loss_fn, transform),
        ps.TrainState.create(params, transform, seed=settings.seed),
        source,
        evaluate=[ps.Evaluation(ps.eval_step(loss_fn), measured, name="text")],
        steps=settings.pretrain,
        phase="pretraining",
    )
    ps.write_back(model, result.state.params)


def finetune(
    session: Session,
    apply: ps.types.Apply,
    params: ps.types.Params,
    lessons: Lessons,
    measured: list[ps.types.Batch],
) -> tuple[ps.callbacks.History, ps.types.Params]:
    """Train adapters on answers to instructions; return the figures by step, and the adapters."""
    settings = session.settings

    def loss_fn(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        logits = apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], weights=batch["weights"])

    def exact(state: ps.TrainState) -> dict[str, mx.array]:
        """Return the share of answers, by task, that the model would write without an error."""
        found = {}
        for task, batch in lessons.batches.items():
            # It writes an answer if each byte is the most probable one after the bytes before it.
            right = apply(state.params, batch["inputs"]).argmax(axis=-1) == batch["targets"]
            found[task.lower()] = mx.logical_or(right, batch["weights"] == 0).all(axis=1).mean()
        return found

    transform = ps.chain(
        ps.transforms.clip_by_global_norm(1.0),
        ps.optimizers.adamw(rate_of(RATE, settings.steps), b2=0.99, weight_decay=0.0),
    )
    result = session.fit(
        session.step(loss_fn, transform),
        ps.TrainState.create(params, transform, seed=settings.seed),
        lessons.learnt,
        evaluate=[
            ps.Evaluation(exact, name="exact"),
            ps.Evaluation(ps.eval_step(text_loss(apply)), measured, name="text"),
        ],
        phase="finetuning",
    )
    return result.history, result.state.params


def rate_of(peak: float, steps: int) -> ps.types.Schedule:
    """Return a learning rate with a warm-up and a cosine decay."""
    return ps.schedules.warmup_cosine_decay(0.0, peak, steps // 20, steps, end_value=peak / 20)


def text_loss(apply: ps.types.Apply) -> ps.types.LossFn:
    """Return the loss of predicting a text, in nats per byte."""

    def loss_fn(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        return ps.losses.cross_entropy(apply(params, batch["inputs"]), batch["targets"], ignore_index=-100)

    return loss_fn


def say_answers(
    session: Session,
    apply: ps.types.Apply,
    before: ps.types.Params,
    after: ps.types.Params,
    lessons: Lessons,
) -> None:
    """Print what the model writes for some instructions before and after, and keep it in a file."""
    shown = [each for of_task in lessons.unseen.values() for each in of_task[:SHOWN]]
    prompts = [Bytes().encode(each.prompt) for each in shown]
    sample = ps.data.sampler(
        apply,
        max_tokens=max(len(each.answer) for each in shown) + 1,
        temperature=0.0,
        stop_tokens=[Bytes.eos_token_id],
        compile=False,
    )
    written = [
        [
            Bytes().decode(tokens).removesuffix("\n")
            for tokens in sample(params, prompts, mx.random.key(0)).lists()
        ]
        for params in (before, after)
    ]
    lines = [f"{'unseen instruction':<22}{'before':<14}after", ""]
    for each, first, last in zip(shown, *written, strict=True):
        verdict = "" if last == each.answer else f"  (wrong: {each.answer})"
        lines.append(f"{each.prompt:<22}{printable(first):<14}{printable(last)}{verdict}")
    session.say("\n".join(["", *lines]))
    with session.directory.writing(session.directory.path / "answers.txt"):
        atomic.write_text(session.directory.path / "answers.txt", "\n".join(lines) + "\n")


def save(
    session: Session, model: Llama, adapted: Llama, params: ps.types.Params, tokens: mx.array
) -> dict[str, Any]:
    """Save the model and the adapters in mlx-lm's layout; return the difference of mlx-lm's logits."""
    base, adapters = (session.directory.path / name for name in ("model", "adapters"))
    with session.directory.writing(base):
        exporting.export(base, model, CONTEXT)
    with session.directory.writing(adapters):
        ps.adapters.save(adapters, adapted, params)
    logits = ps.functional(adapted)[0](params, tokens)
    return {"mlx_lm_difference": exporting.compare(session, base, adapters, tokens, logits)}


def picture(session: Session, rows: list[dict[str, float]], figures: dict[str, Any]) -> None:
    """Draw the share of exact answers to unseen instructions by task, and the loss of the text."""
    colors = (curves.BLUE, curves.ORANGE, curves.GREEN, PURPLE)
    panels = [
        Panel(
            "share of unseen instructions answered exactly",
            [
                Curve(task, rows, f"exact_{task.lower()}", color)
                for task, color in zip(TASKS, colors, strict=False)
            ],
            limits=(-0.02, 1.02),
        ),
        Panel(
            "loss of the unseen text (nats per byte)",
            [Curve("with the adapters", rows, "text_loss", curves.BLUE)],
            levels={"before": figures["text_loss_before"]},
        ),
    ]
    session.draw(
        panels,
        f"LoRA on {figures['trained_share']:.0%} of the parameters: {figures['exact_before']:.1%} to "
        f"{figures['exact_after']:.1%} of unseen instructions answered exactly",
    )
