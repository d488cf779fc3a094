"""Teach a small transformer to add, with and without predicting the tokens after the next one."""

import argparse
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep import optimizers, schedules, transforms
from purestep.demos import curves, session
from purestep.demos.curves import Curve, Panel
from purestep.demos.session import Session, made
from purestep.demos.transformer import Block
from purestep.functional import functional
from purestep.losses.multi_token import MultiTokenPrediction, multi_token_loss
from purestep.mean import Mean
from purestep.rng import fold_in, scope
from purestep.state import TrainState
from purestep.steps.evaluate import eval_step, evaluate
from purestep.transforms.combining import chain
from purestep.types import Batch, LossFn, Params

STEPS = 600
DIGITS = 3
BATCH_SIZE = 64
HELD_OUT = 512  # sums in the measurements, drawn from a key that no training batch uses
WIDTH, HEADS, LAYERS, N_PREDICT = 48, 3, 2, 2
MTP_WEIGHT = 0.3
RATE = 3e-3
PHASES = {"alone": 0.0, "ahead": MTP_WEIGHT}  # the next token alone, and the two after it as well
LABELS = {"alone": "next token alone", "ahead": f"and the {N_PREDICT} after it"}
PLUS, EQUALS, VOCABULARY = 10, 11, 12
IGNORED = -100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    session.add_arguments(parser, "mtp", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    return session.conduct(options, "mtp", STEPS, compare)


class Sums(NamedTuple):
    """A source of additions `123+989=1112`, of which the digits of the sum are to be predicted.

    They are written from the most significant digit on: to know the first, one has to look ahead through
    the carries at digits that are due later.
    """

    digits: int
    batch_size: int
    seed: int

    def at(self, step: int) -> Batch:
        """Return the batch of one step: inputs and targets, int32 [batch, 3 * digits + 2]."""
        key = fold_in(mx.random.key(self.seed), step)
        a, b = mx.random.randint(0, 10, (2, self.batch_size, self.digits), key=key)
        carry, written = mx.zeros(self.batch_size, mx.int32), []
        for place in reversed(range(self.digits)):
            column = a[:, place] + b[:, place] + carry
            written.append(column % 10)
            carry = column // 10
        total = mx.stack([carry, *reversed(written)], axis=1)
        signs = mx.broadcast_to(mx.array([PLUS, EQUALS]), (self.batch_size, 2))
        tokens = mx.concatenate([a, signs[:, :1], b, signs[:, 1:], total], axis=1)
        given = mx.arange(tokens.shape[1]) < 2 * self.digits + 2
        return {"inputs": tokens[:, :-1], "targets": mx.where(given, IGNORED, tokens)[:, 1:]}


class Adder(nn.Module):
    """A decoder with tied embeddings, and heads for the tokens after the next."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.embedding.weight = 0.05 * mx.random.normal((VOCABULARY, WIDTH))
        self.blocks = [Block(WIDTH, HEADS) for _ in range(LAYERS)]
        self.norm = nn.RMSNorm(WIDTH)
        self.mtp = MultiTokenPrediction(WIDTH, HEADS, N_PREDICT, feed_width=2 * WIDTH)

    def __call__(self, tokens: mx.array, *, ahead: bool) -> list[mx.array]:
        """Return the hidden states of each depth, or those for the next token alone."""
        x = embedded = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.mtp(x, embedded) if ahead else [x]


def compare(session: Session) -> dict[str, Any]:
    """Train the same model twice, from the same weights on the same batches; return the figures."""
    settings = session.settings
    with scope(mx.random.key(settings.seed)):
        model = Adder()
        mx.eval(model.parameters())
    apply, params, _ = functional(model)
    transform = chain(
        transforms.clip_by_global_norm(1.0),
        optimizers.adamw(
            schedules.warmup_cosine_decay(
                0.0, RATE, settings.steps // 12, settings.steps, end_value=RATE / 10
            ),
            b2=0.99,
            weight_decay=0.01,
            mask=transforms.matrices,
        ),
    )
    source = Sums(DIGITS, BATCH_SIZE, settings.seed)
    # Its step number is past any that training asks for.
    held_out = Sums(DIGITS, HELD_OUT, settings.seed).at(2**31)

    def loss_of(mtp_weight: float) -> LossFn:
        def loss_fn(params: Params, batch: Batch, rng: mx.array | None) -> tuple[Mean, dict[str, Mean]]:
            states = apply(params, batch["inputs"], rng=rng, ahead=mtp_weight > 0)
            matrix, targets = params["embedding"]["weight"], batch["targets"]
            loss, means = multi_token_loss(
                states, matrix, targets, mtp_weight=mtp_weight, ignore_index=IGNORED
            )
            return loss, {"next_token_loss": means["next_token_loss"]}

        return loss_fn

    def figures(params: Params, batch: Batch, rng: mx.array | None) -> tuple[Mean, dict[str, Mean]]:
        """Return what is compared: the next token alone, whatever the model was trained on."""
        loss, _ = loss_of(0.0)(params, batch, rng)
        logits = apply(params, batch["inputs"], ahead=False)[0] @ params["embedding"]["weight"].T
        asked = batch["targets"] != IGNORED
        right = mx.logical_or(logits.argmax(axis=-1) == batch["targets"], mx.logical_not(asked))
        return loss, {"digits_right": Mean.of(right, asked), "sums_right": Mean.of(right.all(axis=-1))}

    # Not compiled: on a CPU a few measurements are done sooner than their kernels are built.
    look = eval_step(figures)

    def measure(state: TrainState) -> dict[str, float]:
        found = evaluate(look, state, [held_out])
        return {
            "validation_loss": found["loss"],
            "digits_right": found["digits_right"],
            "sums_right": found["sums_right"],
        }

    result: dict[str, Any] = {}
    for phase, mtp_weight in PHASES.items():
        state = session.train(
            phase,
            TrainState.create(params, transform, seed=settings.seed),
            session.step(loss_of(mtp_weight), transform),
            lambda state: source.at(made(state)),
            steps=settings.steps,
            tokens=BATCH_SIZE * (3 * DIGITS + 2),
            measure=measure,
            shown=("next_token_loss", "validation_loss", "digits_right", "grad_norm"),
        )
        result |= {f"{phase}_{figure}": value for figure, value in measure(state).items()}
    shares = ", ".join(f"{result[f'{phase}_digits_right']:.1%} {phase}" for phase in PHASES)
    title = f"Adding {DIGITS}-digit numbers, {settings.steps} steps: digits right {shares}"
    colors = dict(zip(PHASES, (curves.BLUE, curves.ORANGE), strict=True))

    def lines(figure: str) -> list[Curve]:
        return [Curve(LABELS[phase], session.history(phase), figure, colors[phase]) for phase in PHASES]

    panels = [
        Panel("held-out next-token loss (nats)", lines("validation_loss")),
        Panel("held-out digits right", lines("digits_right"), limits=(0.0, 1.03)),
    ]
    curves.draw(session.directory.path / "curves.png", panels, title)
    return {"steps": settings.steps, **result}
