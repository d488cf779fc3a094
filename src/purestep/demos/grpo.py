"""Teach an untrained transformer to sort digits with GRPO, from rewards alone."""

import argparse
import math
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep.demos.models.sorting import (
    DIGITS,
    EQUALS,
    STOP,
    VOCABULARY,
    Decoder,
    answer,
    correctness,
    prompts,
)
from purestep.demos.shared import session
from purestep.demos.shared.building import seeded
from purestep.demos.shared.running import say
from purestep.demos.shared.session import Session

STEPS = 800
TRAIN, TEST = 4096, 256  # prompts
GROUP_SIZE, BATCH_SIZE = 8, 256
MAX_TOKENS = DIGITS + 1
TEMPERATURE = 1.0
PEAK_RATE = 1e-3
BETA = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    session.add_arguments(parser, "grpo", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "grpo", STEPS, learn_to_sort)


def learn_to_sort(session: Session) -> dict[str, Any]:
    """Train from random weights; return the figures."""
    settings = session.settings
    train, test = prompts(TRAIN, TEST, settings.seed)
    apply, params = seeded(Decoder, settings.seed)
    rate = ps.schedules.warmup_cosine_decay(
        0.0, PEAK_RATE, settings.steps // 40, settings.steps, end_value=0.1 * PEAK_RATE
    )
    # Muon for the matrices of the blocks, AdamW for the rest.
    muon = ps.optimizers.muon(
        rate,
        consistent_rms=0.2,
        matrices=lambda path, leaf: leaf.ndim == 2 and path.startswith("blocks"),
    )
    transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), muon)

    # A batch has 32 prompts with 8 completions each, drawn with the current parameters and scored.
    source = ps.data.rollout(
        apply,
        train,
        correctness,
        max_tokens=MAX_TOKENS,
        group_size=GROUP_SIZE,
        batch_size=BATCH_SIZE,
        temperature=TEMPERATURE,
        stop_tokens=(STOP,),
        compile=settings.compile,
    )

    def loss(
        params: ps.types.Params, batch: ps.types.Batch, rng: mx.array
    ) -> tuple[ps.Mean, dict[str, ps.Mean]]:
        inputs, targets = ps.losses.shift(batch["tokens"])
        logps = ps.losses.token_logps(apply(params, inputs), targets, temperature=TEMPERATURE)
        # The reference is the untrained model, which is uniform. The KL term keeps the policy exploring: a
        # policy that is certain of a wrong answer gets rewards without variance, and so no gradient.
        objective, metrics = ps.losses.grpo_loss(
            logps,
            batch["behavior_logps"],
            batch["advantages"],
            batch["completion_mask"],
            ref_logps=mx.full(logps.shape, -math.log(VOCABULARY)),
            beta=BETA,
        )
        return objective, {**metrics, "reward": ps.Mean.of(batch["rewards"])}

    greedy = ps.data.sampler(
        apply, max_tokens=MAX_TOKENS, temperature=0.0, stop_tokens=(STOP,), compile=settings.compile
    )

    def measure(state: ps.TrainState) -> dict[str, float]:
        scores = correctness(test, greedy(state.params, test, state.rng).lists())
        return {"test_reward": sum(scores) / TEST, "test_sorted": scores.count(1.0) / TEST}

    state = session.train(
        "grpo",
        ps.TrainState.create(params, transform, seed=settings.seed),
        session.step(loss, transform),
        source.at,
        steps=settings.steps,
        tokens=BATCH_SIZE * (DIGITS + 1 + MAX_TOKENS),
        measure=measure,
        shown={
            "reward": "reward",
            "test_reward": "test reward",
            "test_sorted": "test sorted",
            "grad_norm": "|g|",
        },
    )
    history = session.history("grpo")
    rewards = [row["reward"] for row in history if "reward" in row]
    result = {
        "chance_reward": rewards[0],
        "reward": sum(rewards[-20:]) / len(rewards[-20:]),
        **{name: value for name, value in history[-1].items() if name.startswith("test_")},
        "steps": settings.steps,
    }
    picture(session, result)
    shown = test[:5]
    for prompt, completion in zip(shown, greedy(state.params, shown, state.rng).lists(), strict=True):
        verdict = "" if completion == answer(prompt) else "  (wrong)"
        say(session.console, f"{_written(prompt[:-1])} = {_written(completion)}{verdict}")
    return result


def picture(session: Session, result: dict[str, Any]) -> None:
    """Draw the rewards and the share of prompts that are sorted."""
    history = session.history("grpo")
    session.draw(
        [
            curves.Panel(
                "reward: mean share of places that are right",
                [
                    curves.Curve("training, sampled", history, "reward", curves.BLUE, noisy=True),
                    curves.Curve("unseen prompts, greedy", history, "test_reward", curves.ORANGE),
                ],
                levels={"before training, sampled": result["chance_reward"]},
                limits=(0, 1.02),
            ),
            curves.Panel(
                "share of unseen prompts sorted (greedy)",
                [curves.Curve("sorted", history, "test_sorted", curves.GREEN)],
                limits=(-0.02, 1.02),
            ),
        ],
        f"GRPO teaches a transformer to sort {DIGITS} digits: "
        f"reward {result['chance_reward']:.2f} to {result['reward']:.2f}",
    )


def _written(tokens: list[int]) -> str:
    return " ".join("." if token == STOP else "=" if token == EQUALS else str(token) for token in tokens)
