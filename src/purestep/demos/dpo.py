"""Teach a transformer that sorts digits up or down to prefer one order, with DPO."""

import argparse
import math
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep.demos.models.sorting import DIGITS, STOP, Decoder, prompts
from purestep.demos.shared import session
from purestep.demos.shared.building import seeded
from purestep.demos.shared.figures import as_float, made, means_over
from purestep.demos.shared.session import Session

STEPS = 200
REFERENCE_STEPS = 600
TRAIN, TEST = 4096, 512  # prompts
REFERENCE_BATCH, PAIRS = 256, 64
REFERENCE_RATE, RATE = 3e-3, 3e-5
BETA, SMOOTHING = 0.5, 0.1
SHOWN = {
    "loss": "loss",
    "test_rewards_accuracies": "accuracy",
    "test_rewards_margins": "margin",
    "samples_upwards": "upwards",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    session.add_arguments(parser, "dpo", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "dpo", STEPS, learn_a_preference, phases=("reference", "dpo"))


def learn_a_preference(session: Session) -> dict[str, Any]:
    """Train a reference that sorts up or down at random, then a policy that sorts up; return the figures."""
    settings = session.settings
    some = [
        [prompt for prompt in part if len(set(prompt)) > 2]  # 4 4 4 4 is the same in both orders
        for part in prompts(TRAIN, TEST, settings.seed)
    ]
    (chosen, rejected), (test_chosen, test_rejected) = (pairs(part) for part in some)
    apply, params = seeded(Decoder, settings.seed)
    mask = ps.losses.completion_mask(chosen[:1], DIGITS + 1)  # one row: all prompts have the same length

    def drawn(state: ps.TrainState, rows: int) -> mx.array:
        """Return the row numbers of a step's batch."""
        key = ps.rng.fold_in(mx.random.key(settings.seed), made(state))
        return mx.random.randint(0, chosen.shape[0], (rows,), key=key)

    # The reference trains on data that is half sorted upwards, half downwards.
    def likelihood(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array) -> ps.Mean:
        inputs, targets = ps.losses.shift(batch["tokens"])
        weights = mx.broadcast_to(mask, targets.shape)
        return ps.losses.cross_entropy(apply(params, inputs), targets, weights=weights)

    def either_way(state: ps.TrainState) -> ps.types.Batch:
        rows = drawn(state, REFERENCE_BATCH)
        half = REFERENCE_BATCH // 2
        return {"tokens": mx.concatenate([chosen[rows[:half]], rejected[rows[half:]]])}

    rate = ps.schedules.warmup_cosine_decay(0.0, REFERENCE_RATE, REFERENCE_STEPS // 20, REFERENCE_STEPS)
    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(rate))
    reference = session.train(
        "reference",
        ps.TrainState.create(params, transform, seed=settings.seed),
        session.step(likelihood, transform),
        either_way,
        steps=REFERENCE_STEPS,
        tokens=REFERENCE_BATCH * chosen.shape[1],
    ).params

    # The policy starts as the reference. The log-probabilities of the reference are computed once.
    def scores(params: ps.types.Params, tokens: mx.array) -> mx.array:
        inputs, targets = ps.losses.shift(tokens)
        logps = ps.losses.token_logps(apply(params, inputs), targets)
        return ps.losses.sequence_logps(logps, mx.broadcast_to(mask, logps.shape))

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

    def preference(
        params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None
    ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
        both = scores(params, mx.concatenate([batch["chosen"], batch["rejected"]]))
        chosen_logps, rejected_logps = mx.split(both, 2)
        loss, metrics = ps.losses.dpo_loss(
            chosen_logps,
            rejected_logps,
            batch["ref_chosen_logps"],
            batch["ref_rejected_logps"],
            beta=BETA,
            label_smoothing=SMOOTHING,
        )
        logps = {"logps_chosen": ps.Mean.of(chosen_logps), "logps_rejected": ps.Mean.of(rejected_logps)}
        return loss, {**metrics, **logps}

    look = ps.eval_step(preference)
    sample = ps.data.sampler(apply, max_tokens=DIGITS + 1, stop_tokens=(STOP,), compile=settings.compile)

    def measure(state: ps.TrainState) -> dict[str, float]:
        means = means_over(look, state, [test])
        figures = {f"test_{name}": mean for name, mean in means.items()}
        written = sample(state.params, some[1], mx.random.key(settings.seed)).tokens
        for name, wanted in (("upwards", test_chosen), ("downwards", test_rejected)):
            figures[f"samples_{name}"] = as_float((written == wanted).all(axis=1).astype(mx.float32).mean())
        return figures

    rate = ps.schedules.warmup_constant(0.0, RATE, settings.steps // 10)
    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(rate, weight_decay=0.0))
    session.train(
        "dpo",
        ps.TrainState.create(reference, transform, seed=settings.seed),
        session.step(preference, transform),
        lambda state: {name: array[drawn(state, PAIRS)] for name, array in train.items()},
        steps=settings.steps,
        tokens=2 * PAIRS * chosen.shape[1],
        measure=measure,
        shown=SHOWN,
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
    """Return the prompts with their digits in ascending and in descending order, int32 [prompts, length]."""
    both = (
        [*prompt, *sorted(prompt[:-1], reverse=down), STOP] for down in (False, True) for prompt in prompts
    )
    upwards, downwards = mx.split(mx.array(list(both), mx.int32), 2)
    return upwards, downwards


def picture(session: Session, result: dict[str, Any]) -> None:
    """Draw the rewards and the log-probabilities of both orders."""
    history = session.history("dpo")
    session.draw(
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
                # With smoothing s the loss has its minimum at the margin log((1 - s) / s).
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
