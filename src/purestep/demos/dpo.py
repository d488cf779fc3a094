"""Teach a transformer that sorts digits up or down to prefer one order, with DPO."""

import argparse
import math
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
from purestep.demos.models.sorting import DIGITS, STOP, Decoder, prompts
from purestep.demos.shared import running, session
from purestep.demos.shared.building import seeded
from purestep.demos.shared.session import Session, Settings

STEPS = 200
REFERENCE_STEPS = 600
TRAIN, TEST = 4096, 512  # prompts
REFERENCE_BATCH, PAIRS = 256, 64
REFERENCE_RATE, RATE = 3e-3, 3e-5
BETA, SMOOTHING = 0.5, 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    running.add_shared_arguments(parser, "dpo", STEPS, "all that is random")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "dpo", Settings(STEPS), learn_a_preference, phases=("reference", "dpo"))


def learn_a_preference(session: Session) -> dict[str, Any]:
    """Train a reference that sorts up or down at random, then a policy that sorts up; return the figures."""
    settings = session.settings
    train, test = (
        [prompt for prompt in part if len(set(prompt)) > 2]  # 4 4 4 4 is the same in both orders
        for part in prompts(TRAIN, TEST, settings.seed)
    )
    apply, params = seeded(Decoder, settings.seed)
    reference = learn_either_order(session, apply, params, train)
    history = learn_one_order(session, apply, reference, train, test)

    def ends(label: str, name: str) -> dict[str, float]:
        values = history.column(name)[1]
        return {f"{label}_before": values[0], f"{label}_after": values[-1]}

    figures = {
        "reward_accuracy": history.last("test_rewards_accuracies"),
        "reward_margin": history.last("test_rewards_margins"),
        **ends("logp_chosen", "test_logps_chosen"),
        **ends("logp_rejected", "test_logps_rejected"),
        **ends("samples_upwards", "samples_upwards"),
        **ends("samples_downwards", "samples_downwards"),
        "steps": settings.steps,
    }
    picture(session, list(history), figures)
    return figures


def learn_either_order(
    session: Session, apply: ps.types.Apply, params: ps.types.Params, prompts: list[list[int]]
) -> ps.types.Params:
    """Train on digits of which half are sorted upwards, half downwards; return the parameters."""

    def loss_fn(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array) -> ps.Mean:
        inputs, targets = ps.losses.shift(batch["tokens"])
        completion = ps.losses.completion_mask(batch["tokens"], DIGITS + 1)
        return ps.losses.cross_entropy(apply(params, inputs), targets, weights=completion)

    seed = session.settings.seed
    rate = ps.schedules.warmup_cosine_decay(0.0, REFERENCE_RATE, REFERENCE_STEPS // 20, REFERENCE_STEPS)
    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(rate))
    return session.fit(
        session.step(loss_fn, transform),
        ps.TrainState.create(params, transform, seed=seed),
        ps.data.Batches({"tokens": mx.concatenate([*pairs(prompts)])}, REFERENCE_BATCH, seed=seed),
        steps=REFERENCE_STEPS,
        phase="reference",
    ).state.params


def learn_one_order(
    session: Session,
    apply: ps.types.Apply,
    reference: ps.types.Params,
    train: list[list[int]],
    test: list[list[int]],
) -> ps.callbacks.History:
    """Train the reference to prefer digits sorted upwards; return the figures by step."""
    seed = session.settings.seed

    def scores(params: ps.types.Params, tokens: mx.array) -> mx.array:
        inputs, targets = ps.losses.shift(tokens)
        logps = ps.losses.token_logps(apply(params, inputs), targets)
        return ps.losses.sequence_logps(logps, ps.losses.completion_mask(tokens, DIGITS + 1))

    def examples(prompts: list[list[int]]) -> dict[str, mx.array]:
        """Return pairs of completions, with their log-probabilities by the reference."""
        found = dict(zip(("chosen", "rejected"), pairs(prompts), strict=True))
        return found | {f"ref_{name}_logps": scores(reference, tokens) for name, tokens in found.items()}

    def loss_fn(
        params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None
    ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
        both = scores(params, mx.concatenate([batch["chosen"], batch["rejected"]]))
        chosen, rejected = mx.split(both, 2)
        references = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
        loss, metrics = ps.losses.dpo_loss(
            chosen, rejected, *references, beta=BETA, label_smoothing=SMOOTHING
        )
        logps = {"logps_chosen": ps.Mean.of(chosen), "logps_rejected": ps.Mean.of(rejected)}
        return loss, {**metrics, **logps}

    unseen = examples(test)
    sample = ps.data.sampler(
        apply, max_tokens=DIGITS + 1, stop_tokens=(STOP,), compile=session.settings.compile
    )

    def samples(state: ps.TrainState) -> dict[str, mx.array]:
        written = sample(state.params, test, mx.random.key(seed)).tokens
        orders = {"upwards": unseen["chosen"], "downwards": unseen["rejected"]}
        return {name: (written == wanted).all(axis=1).mean() for name, wanted in orders.items()}

    rate = ps.schedules.warmup_constant(0.0, RATE, session.settings.steps // 10)
    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(rate, weight_decay=0.0))
    return session.fit(
        session.step(loss_fn, transform),
        ps.TrainState.create(reference, transform, seed=seed),
        ps.data.Batches(examples(train), PAIRS, seed=seed),
        evaluate=[
            ps.Evaluation(ps.eval_step(loss_fn), [unseen], name="test"),
            ps.Evaluation(samples, name="samples"),
        ],
        phase="dpo",
    ).history


def pairs(prompts: list[list[int]]) -> tuple[mx.array, mx.array]:
    """Return the prompts with their digits in ascending and in descending order, int32 [prompts, length]."""
    both = (
        [*prompt, *sorted(prompt[:-1], reverse=down), STOP] for down in (False, True) for prompt in prompts
    )
    upwards, downwards = mx.split(mx.array(list(both), mx.int32), 2)
    return upwards, downwards


def picture(session: Session, rows: list[dict[str, float]], figures: dict[str, Any]) -> None:
    """Draw the rewards and the log-probabilities of both orders."""

    def panel(label: str, lines: dict[str, str], **options: Any) -> Panel:
        colors = (curves.BLUE, curves.ORANGE, curves.GREEN)
        named = zip(lines.items(), colors, strict=False)
        return Panel(label, [Curve(said, rows, name, color) for (name, said), color in named], **options)

    panels = [
        panel(
            "implicit reward on unseen pairs",
            {
                "test_rewards_chosen": "chosen (sorted upwards)",
                "test_rewards_rejected": "rejected (sorted downwards)",
                "test_rewards_margins": "margin: chosen - rejected",
            },
            # With smoothing s the loss has its minimum at the margin log((1 - s) / s).
            levels={"margin of the least loss": math.log((1 - SMOOTHING) / SMOOTHING)},
        ),
        panel(
            "log-probability of an unseen completion (nats)",
            {"test_logps_chosen": "chosen", "test_logps_rejected": "rejected"},
        ),
        panel(
            "share of unseen pairs, of samples",
            {
                "samples_upwards": "samples sorted upwards",
                "samples_downwards": "samples sorted downwards",
                "test_rewards_accuracies": "pairs told apart",
            },
            limits=(-0.02, 1.02),
        ),
    ]
    margin, before, after = (
        figures[name] for name in ("reward_margin", "samples_upwards_before", "samples_upwards_after")
    )
    session.draw(
        panels,
        f"DPO prefers digits sorted upwards: margin {margin:.1f}, "
        f"upwards {before:.0%} to {after:.0%} of samples",
    )
