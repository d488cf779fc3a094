"""Train a small transformer with and without multi-token prediction, and compare.

The labels of one position, the hints, are mostly noise; the token after them is not.
"""

import argparse
import math
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep._loop.callbacks.pictures.picture import band, zoomed
from purestep.demos.models.transformer import Block
from purestep.demos.shared import running, session
from purestep.demos.shared.building import seeded
from purestep.demos.shared.session import Session, Settings
from purestep.demos.shared.settings import out_of_range

STEPS = 480
PAIRS = 5  # pairs of runs; each pair has its own first weights and batches
BATCH_SIZE = 64
MEASURED = 2048  # sequences in a measurement, drawn with a key that no training batch uses
WIDTH, HEADS, LAYERS = 48, 3, 1
MTP_HEADS, MTP_WEIGHT = 1, 1.0
RATE = 3e-3  # with 1e-3 and with 1e-2, both kinds end at a higher loss
MODULUS, TRUTH = 7, 0.15  # the share of hints that are always the sum; the others are uniform
EQUALS, HINT, SUM = MODULUS, MODULUS + 1, 2 * MODULUS + 1  # the tokens of =, of a hint of 0 and of a sum of 0
VOCABULARY = 3 * MODULUS + 1
IGNORED = -100
KINDS = {"alone": 0.0, "ahead": MTP_WEIGHT}
LABELS = {"alone": "predicts the next token only", "ahead": "predicts the token after it as well"}
FIGURES = ("loss", "hint_loss", "sum_loss", "sums_known")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    running.add_shared_arguments(parser, "mtp", STEPS, "all that is random")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "mtp", Settings(STEPS), compare, phases=phases(), fault=fault)


def fault(settings: Settings) -> str | None:
    """Return the first error in the settings, or `None`. A seed is turned into one seed for each pair."""
    return out_of_range(settings.steps, settings.seed, seeds=2**64 // PAIRS)


def phases() -> list[str]:
    """Return the names of the runs in order."""
    return [f"{kind}-{pair}" for pair in range(1, PAIRS + 1) for kind in KINDS]


class Hints(NamedTuple):
    """A source of sequences `a b = hint sum`; a model predicts the hint and the sum.

    The sum is `(a + b) % MODULUS`. The hint equals the sum in a small share of the sequences and is noise in
    the others, so it is a noisy label of the sum. A model predicts the hint from its state at `=`. The loss
    of the next token trains that state on the noisy hint only. The loss of a head that predicts one token
    further trains the same state on the sum itself.
    """

    batch_size: int
    seed: int

    def at(self, step: int) -> ps.types.Batch:
        """Return the batch of one step: inputs and targets, int32 [batch, 4]."""
        key = ps.rng.fold_in(mx.random.key(self.seed), step)
        terms_key, truth_key, noise_key = mx.random.split(key, 3)
        terms = mx.random.randint(0, MODULUS, (self.batch_size, 2), key=terms_key)
        total = terms.sum(axis=1, keepdims=True) % MODULUS
        noise = mx.random.randint(0, MODULUS, total.shape, key=noise_key)
        hint = mx.where(mx.random.uniform(shape=total.shape, key=truth_key) < TRUTH, total, noise)
        equals = mx.full(total.shape, EQUALS)
        tokens = mx.concatenate([terms, equals, hint + HINT, total + SUM], axis=1).astype(mx.int32)
        return {"inputs": tokens[:, :-1], "targets": mx.where(tokens < HINT, IGNORED, tokens)[:, 1:]}


def least_hint_loss() -> float:
    """Return the loss on hints, in nats, of a model that knows the sum: the entropy of a hint.

    >>> round(math.log(MODULUS) - least_hint_loss(), 3)  # the most that the loss can fall
    0.056
    """
    each = (1 - TRUTH) / MODULUS
    right = TRUTH + each
    return -right * math.log(right) - (MODULUS - 1) * each * math.log(each)


class Reader(nn.Module):
    """A decoder with tied embeddings and a head for the token after the next."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.embedding.weight = 0.05 * mx.random.normal((VOCABULARY, WIDTH))
        self.blocks = [Block(WIDTH, HEADS) for _ in range(LAYERS)]
        self.norm = nn.RMSNorm(WIDTH)
        self.mtp = ps.losses.MultiTokenPrediction(WIDTH, MTP_HEADS, 1, feed_width=WIDTH)

    def __call__(self, tokens: mx.array, *, ahead: bool) -> list[mx.array]:
        """Return the hidden states of each prediction depth; only those of the next token without `ahead`."""
        x = embedded = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.mtp(x, embedded) if ahead else [x]


def compare(session: Session) -> dict[str, Any]:
    """Train pairs of models from the same weights on the same batches; return the figures.

    The comparison is at equal numbers of steps; a step with the head takes longer. A single pair can favour
    the model without the head, if that model happens to learn the sum early. Several pairs are averaged.
    """
    settings = session.settings
    apply, _ = seeded(Reader, settings.seed)
    transform = optimizer(settings.steps)
    steps = {kind: session.step(loss_of(apply, weight), transform) for kind, weight in KINDS.items()}
    # Not compiled: on a CPU, building the kernels takes longer than a few measurements.
    look = ps.eval_step(measures_of(apply))
    histories: dict[str, list[ps.callbacks.History]] = {kind: [] for kind in KINDS}
    for pair in range(PAIRS):
        seed = settings.seed * PAIRS + pair  # two values of --seed never share a pair
        (_, params), source = seeded(Reader, seed), Hints(BATCH_SIZE, seed)
        unseen = Hints(MEASURED, seed).at(2**31)  # training never reaches this step number
        for kind, step in steps.items():
            result = session.fit(
                step,
                ps.TrainState.create(params, transform, seed=seed),
                source,
                evaluate=[ps.Evaluation(look, [unseen], name="validation")],
                phase=f"{kind}-{pair + 1}",
            )
            histories[kind].append(result.history)
    figures = summary(histories)
    picture(session, histories, figures)
    return {"steps": settings.steps, **figures}


def optimizer(steps: int) -> ps.GradientTransform:
    """Return AdamW with gradient clipping, a warm-up and a cosine decay."""
    rate = ps.schedules.warmup_cosine_decay(0.0, RATE, steps // 12, steps, end_value=RATE / 10)
    return ps.chain(
        ps.transforms.clip_by_global_norm(1.0),
        ps.optimizers.adamw(rate, b2=0.99, weight_decay=0.01, mask=ps.transforms.matrices),
    )


def loss_of(apply: ps.types.Apply, mtp_weight: float) -> ps.types.LossFn:
    """Return the loss function of training; with a weight above 0 it looks ahead."""

    def loss_fn(
        params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None
    ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
        states = apply(params, batch["inputs"], rng=rng, ahead=mtp_weight > 0)
        matrix, targets = params["embedding"]["weight"], batch["targets"]
        loss, means = ps.losses.multi_token_loss(
            states, matrix, targets, mtp_weight=mtp_weight, ignore_index=IGNORED
        )
        return loss, {"next_token_loss": means["next_token_loss"]}

    return loss_fn


def measures_of(apply: ps.types.Apply) -> ps.types.LossFn:
    """Return the compared figures, which measure the next token only, for both kinds of training."""

    def measure(
        params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None
    ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
        states = apply(params, batch["inputs"], rng=rng, ahead=False)
        matrix, targets = params["embedding"]["weight"], batch["targets"]

        def loss_over(first: int) -> ps.Mean:
            within = (targets >= first) & (targets < first + MODULUS)
            only = mx.where(within, targets, IGNORED)
            return ps.losses.multi_token_loss(states, matrix, only, ignore_index=IGNORED)[0]

        # A model that knows the sum predicts it as the most probable hint.
        guess = (states[0][:, -2] @ matrix.T).argmax(axis=-1) - HINT
        found = {"hint_loss": loss_over(HINT), "sum_loss": loss_over(SUM)}
        found["sums_known"] = ps.Mean.of(guess == targets[:, -1] - SUM)
        return ps.losses.multi_token_loss(states, matrix, targets, ignore_index=IGNORED)[0], found

    return measure


def summary(histories: dict[str, list[ps.callbacks.History]]) -> dict[str, Any]:
    """Return the means over the pairs, the figures of each pair, and the number of pairs won by `ahead`."""
    ends = {
        (kind, figure): [history.column(f"validation_{figure}")[1][-1] for history in runs]
        for kind, runs in histories.items()
        for figure in FIGURES
    }
    means = {f"{kind}_{figure}": sum(values) / len(values) for (kind, figure), values in ends.items()}
    by_pair = {
        f"{kind}_{figure}_by_pair": [round(value, 4) for value in values]
        for (kind, figure), values in ends.items()
        if figure in ("loss", "sums_known")
    }
    both = list(zip(ends["alone", "loss"], ends["ahead", "loss"], strict=True))
    won = sum(ahead < alone for alone, ahead in both)
    return {**means, **by_pair, "pairs": len(both), "pairs_won_ahead": won}


def picture(
    session: Session, histories: dict[str, list[ps.callbacks.History]], figures: dict[str, Any]
) -> None:
    """Draw the next-token loss and the share of known sums: means and bands over the pairs."""
    colors = dict(zip(KINDS, (curves.BLUE, curves.ORANGE), strict=True))

    def lines(figure: str) -> list[Curve]:
        bands = {kind: band([list(run) for run in runs], figure) for kind, runs in histories.items()}
        return [
            Curve(LABELS[kind], rows, "mean", colors[kind], band=("low", "high"))
            for kind, rows in bands.items()
        ]

    losses = lines("validation_loss")
    # Half of the predicted tokens are sums, which a model that can add predicts with certainty.
    levels = {"nothing known of the hint": math.log(MODULUS) / 2, "best possible": least_hint_loss() / 2}
    seen = [[row[name] for row in curve.history] for curve in losses for name in ("low", "high")]
    panels = [
        Panel("next-token loss on unseen batches (nats)", losses, levels, zoomed(seen, levels.values())),
        Panel(
            "share of sums known before the hint is read",
            lines("validation_sums_known"),
            {"by chance": 1 / MODULUS},
            (0, 1.03),
        ),
    ]
    alone, ahead = (figures[f"{kind}_loss"] for kind in ("alone", "ahead"))
    title = (
        f"A head that predicts one token further: next-token loss {ahead:.3f} with it, {alone:.3f} without; "
        f"lower in {figures['pairs_won_ahead']} of {figures['pairs']} pairs\n"
        f"Sequences are a b = hint sum, and most hints are not the sum of a and b. "
        f"Lines: mean of {figures['pairs']} runs; bands: lowest to highest"
    )
    session.draw(panels, title)
