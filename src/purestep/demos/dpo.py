"""Teach a transformer that sorts digits either way which way is preferred, with DPO."""

import argparse
import math
from typing import Any

import mlx.core as mx

from purestep import Mean, TrainState, chain, eval_step, functional, losses, optimizers, schedules, transforms
from purestep._core.rng import fold_in, scope
from purestep._core.types import Batch, Params
from purestep.data import sampler
from purestep.demos.models.digits import DIGITS, STOP, Decoder, prompts
from purestep.demos.pictures import curves
from purestep.demos.shared import session
from purestep.demos.shared.session import Session, made
from purestep.losses import completion_mask, dpo_loss, sequence_logps, shift, token_logps

STEPS = 200
REFERENCE_STEPS = 600
TRAIN, TEST = 4096, 512  # prompts
REFERENCE_BATCH, PAIRS = 256, 64
REFERENCE_RATE, RATE = 3e-3, 3e-5
BETA, SMOOTHING = 0.5, 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    session.add_arguments(parser, "dpo", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    return session.conduct(options, "dpo", STEPS, learn_a_preference, phases=("reference", "dpo"))


def learn_a_preference(session: Session) -> dict[str, Any]:
    """Train a reference that sorts up or down by chance, then a policy that prefers up; return figures."""
    settings = session.settings
    some = [
        [prompt for prompt in part if len(set(prompt)) > 2]  # 4 4 4 4 reads the same either way
        for part in prompts(TRAIN, TEST, settings.seed)
    ]
    (chosen, rejected), (test_chosen, test_rejected) = (pairs(part) for part in some)
    with scope(mx.random.key(settings.seed)):
        model = Decoder()
        mx.eval(model.parameters())
    apply, params, _ = functional(model)
    mask = completion_mask(chosen[:1], DIGITS + 1)  # of one row: every prompt is as long

    def drawn(state: TrainState, rows: int) -> mx.array:
        """Return the numbers of the rows of a step's batch."""
        key = fold_in(mx.random.key(settings.seed), made(state))
        return mx.random.randint(0, chosen.shape[0], (rows,), key=key)

    # The reference: half of its data is sorted upwards, half downwards.
    def likelihood(params: Params, batch: Batch, rng: mx.array) -> Mean:
        inputs, targets = shift(batch["tokens"])
        weights = mx.broadcast_to(mask, targets.shape)
        return losses.cross_entropy(apply(params, inputs), targets, weights=weights)

    def either_way(state: TrainState) -> Batch:
        rows = drawn(state, REFERENCE_BATCH)
        half = REFERENCE_BATCH // 2
        return {"tokens": mx.concatenate([chosen[rows[:half]], rejected[rows[half:]]])}

    rate = schedules.warmup_cosine_decay(0.0, REFERENCE_RATE, REFERENCE_STEPS // 20, REFERENCE_STEPS)
    transform = chain(transforms.clip_by_global_norm(1.0), optimizers.adamw(rate))
    reference = session.train(
        "reference",
        TrainState.create(params, transform, seed=settings.seed),
        session.step(likelihood, transform),
        either_way,
        steps=REFERENCE_STEPS,
        tokens=REFERENCE_BATCH * chosen.shape[1],
    ).params

    # The policy: begins as the reference, whose log-probabilities are computed once.
    def scores(params: Params, tokens: mx.array) -> mx.array:
        inputs, targets = shift(tokens)
        logps = token_logps(apply(params, inputs), targets)
        return sequence_logps(logps, mx.broadcast_to(mask, logps.shape))

    train = {
        "chosen": chosen,
        "rejected": rejected,
        "ref_chosen_logps": scores(reference, chosen),
        "ref_rejected_logps": scores(reference, rejected),
    }
    test = {
        "chosen": test_chosen,
        "rejected": test_rejected,
        "ref_chosen_logps": scores(reference, test_chosen),
        "ref_rejected_logps": scores(reference, test_rejected),
    }
    mx.eval(train, test)

    def preference(params: Params, batch: Batch, rng: mx.array | None) -> tuple[Mean, dict[str, Mean]]:
        both = scores(params, mx.concatenate([batch["chosen"], batch["rejected"]]))
        chosen_logps, rejected_logps = mx.split(both, 2)
        loss, metrics = dpo_loss(
            chosen_logps,
            rejected_logps,
            batch["ref_chosen_logps"],
            batch["ref_rejected_logps"],
            beta=BETA,
            label_smoothing=SMOOTHING,
        )
        logps = {"logps_chosen": Mean.of(chosen_logps), "logps_rejected": Mean.of(rejected_logps)}
        return loss, {**metrics, **logps}

    evaluate = eval_step(preference)
    sample = sampler(apply, max_tokens=DIGITS + 1, stop_tokens=(STOP,), compile=settings.compile)

    def measure(state: TrainState) -> dict[str, float]:
        figures: dict[str, Any] = {
            f"test_{name}": mean.value.item() for name, mean in evaluate(state, test).items()
        }
        written = sample(state.params, some[1], mx.random.key(settings.seed)).tokens
        for name, wanted in (("upwards", test_chosen), ("downwards", test_rejected)):
            figures[f"samples_{name}"] = (written == wanted).all(axis=1).astype(mx.float32).mean().item()
        return figures

    rate = schedules.warmup_constant(0.0, RATE, settings.steps // 10)
    transform = chain(transforms.clip_by_global_norm(1.0), optimizers.adamw(rate, weight_decay=0.0))
    session.train(
        "dpo",
        TrainState.create(reference, transform, seed=settings.seed),
        session.step(preference, transform),
        lambda state: {name: array[drawn(state, PAIRS)] for name, array in train.items()},
        steps=settings.steps,
        tokens=2 * PAIRS * chosen.shape[1],
        measure=measure,
        shown={
            "loss": "loss",
            "test_rewards_accuracies": "accuracy",
            "test_rewards_margins": "margin",
            "samples_upwards": "upwards",
        },
    )
    history = session.history("dpo")
    first, last = history[0], history[-1]
    result = {
        "reward_accuracy": last["test_rewards_accuracies"],
        "reward_margin": last["test_rewards_margins"],
        "logp_chosen_before": first["test_logps_chosen"],
        "logp_chosen_after": last["test_logps_chosen"],
        "logp_rejected_before": first["test_logps_rejected"],
        "logp_rejected_after": last["test_logps_rejected"],
        "samples_upwards_before": first["samples_upwards"],
        "samples_upwards_after": last["samples_upwards"],
        "samples_downwards_before": first["samples_downwards"],
        "samples_downwards_after": last["samples_downwards"],
        "steps": settings.steps,
    }
    picture(session, result)
    return result


def pairs(prompts: list[list[int]]) -> tuple[mx.array, mx.array]:
    """Return the prompts with their digits sorted upwards, and downwards, int32 [prompts, length]."""
    both = (
        [*prompt, *sorted(prompt[:-1], reverse=down), STOP] for down in (False, True) for prompt in prompts
    )
    upwards, downwards = mx.split(mx.array(list(both), mx.int32), 2)
    return upwards, downwards


def picture(session: Session, result: dict[str, Any]) -> None:
    """Draw how the two ways of sorting come apart."""
    history = session.history("dpo")
    curves.draw(
        session.directory.path / "curves.png",
        [
            curves.Panel(
                "implicit reward on unseen pairs",
                [
                    curves.Curve("chosen (sorted upwards)", history, "test_rewards_chosen", curves.BLUE),
                    curves.Curve(
                        "rejected (sorted downwards)", history, "test_rewards_rejected", curves.ORANGE
                    ),
                    curves.Curve("margin: chosen - rejected", history, "test_rewards_margins", curves.GREEN),
                ],
                # With smoothing s the loss is least at the margin log((1 - s) / s), not at infinity.
                levels={"margin of the least loss": math.log((1 - SMOOTHING) / SMOOTHING)},
            ),
            curves.Panel(
                "log-probability of an unseen completion (nats)",
                [
                    curves.Curve("chosen", history, "test_logps_chosen", curves.BLUE),
                    curves.Curve("rejected", history, "test_logps_rejected", curves.ORANGE),
                ],
            ),
            curves.Panel(
                "share of unseen pairs, of samples",
                [
                    curves.Curve("pairs told apart", history, "test_rewards_accuracies", curves.GREEN),
                    curves.Curve("samples sorted upwards", history, "samples_upwards", curves.BLUE),
                    curves.Curve("samples sorted downwards", history, "samples_downwards", curves.ORANGE),
                ],
                limits=(-0.02, 1.02),
            ),
        ],
        f"DPO prefers digits sorted upwards: margin {result['reward_margin']:.1f}, "
        f"upwards {result['samples_upwards_before']:.0%} to {result['samples_upwards_after']:.0%} of samples",
    )
