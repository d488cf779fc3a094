"""Teach a small transformer from hints that mostly mislead, with and without predicting what follows them."""

import argparse
import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from purestep import (
    Mean,
    TrainState,
    chain,
    eval_step,
    evaluate,
    functional,
    optimizers,
    schedules,
    transforms,
)
from purestep._core.rng import fold_in, scope
from purestep._core.types import Batch, LossFn, Params
from purestep._modules.bridge import Apply
from purestep.demos.models.transformer import Block
from purestep.demos.pictures import curves
from purestep.demos.pictures.curves import Curve, Panel
from purestep.demos.pictures.picture import band, zoomed
from purestep.demos.shared import session
from purestep.demos.shared.session import Session, made
from purestep.losses import MultiTokenPrediction, multi_token_loss

STEPS = 480
PAIRS = 5  # of runs, each pair from weights and batches of its own
BATCH_SIZE = 64
MEASURED = 2048  # sequences in the measurements, drawn from a key that no training batch uses
WIDTH, HEADS, LAYERS = 48, 3, 1
MTP_HEADS, MTP_WEIGHT = 1, 1.0
RATE = 3e-3  # either kind ends at a higher loss with 1e-3, and with 1e-2
MODULUS, TRUTH = 7, 0.15  # the share of hints that are the sum on purpose; the others are drawn evenly
EQUALS, HINT, SUM = MODULUS, MODULUS + 1, 2 * MODULUS + 1  # what a hint and a sum of 0 are written as
VOCABULARY = 3 * MODULUS + 1
IGNORED = -100
KINDS = {"alone": 0.0, "ahead": MTP_WEIGHT}
LABELS = {"alone": "predicts the next token alone", "ahead": "predicts the one after it as well"}
FIGURES = ("validation_loss", "hint_loss", "sum_loss", "sums_known")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    session.add_arguments(parser, "mtp", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    # Each seed makes one for every pair.
    return session.conduct(options, "mtp", STEPS, compare, phases=phases(), seeds=2**64 // PAIRS)


def phases() -> list[str]:
    """Return the names of the runs, in their order."""
    return [f"{kind}-{pair}" for pair in range(1, PAIRS + 1) for kind in KINDS]


class Hints(NamedTuple):
    """A source of sequences `a b = hint sum`, of which the hint and the sum are to be predicted.

    The sum is that of `a` and `b` modulo `MODULUS`. The hint is the sum now and then, and noise otherwise:
    as a label it teaches the sum slowly. The token after it states the sum, but a model of the next token
    predicts that from where the hint stands; only a head that looks a token further teaches the sum, free
    of noise, to the very state that has to predict the hint.
    """

    batch_size: int
    seed: int

    def at(self, step: int) -> Batch:
        """Return the batch of one step: inputs and targets, int32 [batch, 4]."""
        key = fold_in(mx.random.key(self.seed), step)
        terms_key, truth_key, noise_key = mx.random.split(key, 3)
        terms = mx.random.randint(0, MODULUS, (self.batch_size, 2), key=terms_key)
        total = terms.sum(axis=1, keepdims=True) % MODULUS
        noise = mx.random.randint(0, MODULUS, total.shape, key=noise_key)
        hint = mx.where(mx.random.uniform(shape=total.shape, key=truth_key) < TRUTH, total, noise)
        equals = mx.full(total.shape, EQUALS)
        tokens = mx.concatenate([terms, equals, hint + HINT, total + SUM], axis=1).astype(mx.int32)
        return {"inputs": tokens[:, :-1], "targets": mx.where(tokens < HINT, IGNORED, tokens)[:, 1:]}


def least_hint_loss() -> float:
    """Return the nats that hints cost whoever knows the sum.

    >>> round(math.log(MODULUS) - least_hint_loss(), 3)  # what is there to be learned
    0.056
    """
    each = (1 - TRUTH) / MODULUS
    right = TRUTH + each
    return -right * math.log(right) - (MODULUS - 1) * each * math.log(each)


class Reader(nn.Module):
    """A decoder with tied embeddings, and a head for the token after the next."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.embedding.weight = 0.05 * mx.random.normal((VOCABULARY, WIDTH))
        self.blocks = [Block(WIDTH, HEADS) for _ in range(LAYERS)]
        self.norm = nn.RMSNorm(WIDTH)
        self.mtp = MultiTokenPrediction(WIDTH, MTP_HEADS, 1, feed_width=WIDTH)

    def __call__(self, tokens: mx.array, *, ahead: bool) -> list[mx.array]:
        """Return the hidden states of each depth, or those for the next token alone."""
        x = embedded = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.mtp(x, embedded) if ahead else [x]


def begin(seed: int) -> tuple[Apply, Params]:
    """Return the model as a function, and the weights that a seed gives it."""
    with scope(mx.random.key(seed)):
        model = Reader()
        mx.eval(model.parameters())
    apply, params, _ = functional(model)
    return apply, params


def compare(session: Session) -> dict[str, Any]:
    """Train pairs of equal models, from the same weights on the same batches; return the figures.

    What is compared is how much is learned in as many steps. A step with the head takes longer, and a pair
    may go the other way, when the model without it happens to find the sum early: hence several pairs.
    """
    settings = session.settings
    apply, _ = begin(settings.seed)
    warmup = settings.steps // 12
    transform = chain(
        transforms.clip_by_global_norm(1.0),
        optimizers.adamw(
            schedules.warmup_cosine_decay(0.0, RATE, warmup, settings.steps, end_value=RATE / 10),
            b2=0.99,
            weight_decay=0.01,
            mask=transforms.matrices,
        ),
    )

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
        states = apply(params, batch["inputs"], rng=rng, ahead=False)
        matrix, targets = params["embedding"]["weight"], batch["targets"]

        def loss_over(first: int) -> Mean:
            within = (targets >= first) & (targets < first + MODULUS)
            only = mx.where(within, targets, IGNORED)
            return multi_token_loss(states, matrix, only, ignore_index=IGNORED)[0]

        # The likeliest hint is the sum, to who knows it.
        guess = (states[0][:, -2] @ matrix.T).argmax(axis=-1) - HINT
        found = {"hint_loss": loss_over(HINT), "sum_loss": loss_over(SUM)}
        found["sums_known"] = Mean.of(guess == targets[:, -1] - SUM)
        return multi_token_loss(states, matrix, targets, ignore_index=IGNORED)[0], found

    steps = {kind: session.step(loss_of(weight), transform) for kind, weight in KINDS.items()}
    # Not compiled: on a CPU a few measurements are done sooner than their kernels are built.
    look = eval_step(figures)
    ends: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for pair in range(PAIRS):
        seed = settings.seed * PAIRS + pair  # no two values of --seed share a pair
        (_, params), source = begin(seed), Hints(BATCH_SIZE, seed)
        # Its step number is past any that training asks for.
        unseen = Hints(MEASURED, seed).at(2**31)

        def measure(state: TrainState, unseen: Batch = unseen) -> dict[str, float]:
            found = evaluate(look, state, [unseen])
            found["validation_loss"] = found["loss"]
            return {figure: found[figure] for figure in FIGURES}

        for kind, step in steps.items():
            state = session.train(
                f"{kind}-{pair + 1}",
                TrainState.create(params, transform, seed=seed),
                step,
                lambda state, source=source: source.at(made(state)),
                steps=settings.steps,
                tokens=BATCH_SIZE * 4,
                measure=measure,
                shown={"next_token_loss": "loss", "validation_loss": "val", "sums_known": "sums known"},
            )
            ends[kind].append(measure(state))
    result = summary(ends)
    picture(session, result)
    return {"steps": settings.steps, **result}


def summary(ends: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the means over the pairs, the figures of every pair, and how many pairs looking ahead won."""
    result: dict[str, Any] = {}
    for kind, runs in ends.items():
        for figure in FIGURES:
            result[f"{kind}_{figure}"] = sum(run[figure] for run in runs) / len(runs)
    for kind, runs in ends.items():
        for figure in ("validation_loss", "sums_known"):
            result[f"{kind}_{figure}_by_pair"] = [round(run[figure], 4) for run in runs]
    both = list(zip(ends["alone"], ends["ahead"], strict=True))
    won = sum(ahead["validation_loss"] < alone["validation_loss"] for alone, ahead in both)
    return {**result, "pairs": len(both), "pairs_won_ahead": won}


def picture(session: Session, result: dict[str, Any]) -> None:
    """Draw the loss of the next token, and what is learned of the sums: means and bands over the pairs."""
    colors = dict(zip(KINDS, (curves.BLUE, curves.ORANGE), strict=True))

    def lines(figure: str) -> list[Curve]:
        found = []
        for kind, color in colors.items():
            runs = [session.history(f"{kind}-{pair}") for pair in range(1, PAIRS + 1)]
            found.append(Curve(LABELS[kind], band(runs, figure), "mean", color, band=("low", "high")))
        return found

    losses = lines("validation_loss")
    # Of two predicted tokens one is the sum: certain to who can add, and has seen both terms.
    levels = {"nothing known of the hint": math.log(MODULUS) / 2, "best possible": least_hint_loss() / 2}
    seen = [[row[name] for row in curve.history] for curve in losses for name in ("low", "high")]
    panels = [
        Panel("next-token loss on unseen batches (nats)", losses, levels, zoomed(seen, levels.values())),
        Panel(
            "share of sums known before the hint is read",
            lines("sums_known"),
            {"by chance": 1 / MODULUS},
            (0, 1.03),
        ),
    ]
    alone, ahead = (result[f"{kind}_validation_loss"] for kind in ("alone", "ahead"))
    title = (
        f"A head that predicts one token further: next-token loss {ahead:.3f} with it, {alone:.3f} without; "
        f"lower in {result['pairs_won_ahead']} of {result['pairs']} pairs\n"
        f"Sequences are a b = hint sum, and most hints are not the sum of a and b. "
        f"Lines: mean of {result['pairs']} runs; bands: lowest to highest"
    )
    curves.draw(session.directory.path / "curves.png", panels, title)
