"""Teach a transformer that knows nothing to sort digits by reward alone, with GRPO."""

import argparse
import math
from typing import Any

import mlx.core as mx

from purestep import Mean, TrainState, chain, functional, optimizers, schedules, transforms
from purestep._core.rng import scope
from purestep._core.types import Batch, Params
from purestep.data import rollout, sampler
from purestep.demos.models.digits import (
    DIGITS,
    EQUALS,
    STOP,
    VOCABULARY,
    Decoder,
    answer,
    correctness,
    prompts,
)
from purestep.demos.pictures import curves
from purestep.demos.shared import session
from purestep.demos.shared.running import say
from purestep.demos.shared.session import Session
from purestep.losses import grpo_loss, shift, token_logps

STEPS = 800
TRAIN, TEST = 4096, 256  # prompts
GROUP_SIZE, BATCH_SIZE = 8, 256
MAX_TOKENS = DIGITS + 1
TEMPERATURE = 1.0
PEAK_RATE = 1e-3
BETA = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    session.add_arguments(parser, "grpo", STEPS)


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    return session.conduct(options, "grpo", STEPS, learn_to_sort)


def learn_to_sort(session: Session) -> dict[str, Any]:
    """Train from nothing; return the figures."""
    settings = session.settings
    train, test = prompts(TRAIN, TEST, settings.seed)
    with scope(mx.random.key(settings.seed)):
        model = Decoder()
        mx.eval(model.parameters())
    apply, params, _ = functional(model)
    rate = schedules.warmup_cosine_decay(
        0.0, PEAK_RATE, settings.steps // 40, settings.steps, end_value=0.1 * PEAK_RATE
    )
    # Muon for the matrices of the blocks, AdamW for the rest.
    muon = optimizers.muon(
        rate,
        consistent_rms=0.2,
        matrices=lambda path, leaf: leaf.ndim == 2 and path.startswith("blocks"),
    )
    transform = chain(transforms.clip_by_global_norm(1.0), muon)

    # Each batch: 32 prompts, 8 completions a prompt, drawn by the parameters of the moment and scored.
    source = rollout(
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

    def loss(params: Params, batch: Batch, rng: mx.array) -> tuple[Mean, dict[str, Mean]]:
        inputs, targets = shift(batch["tokens"])
        logps = token_logps(apply(params, inputs), targets, temperature=TEMPERATURE)
        # The reference is the model before its first step, which is uniform: to stay near it is to keep
        # trying, where a policy that is sure of a wrong answer would get no variance to learn from.
        objective, metrics = grpo_loss(
            logps,
            batch["behavior_logps"],
            batch["advantages"],
            batch["completion_mask"],
            ref_logps=mx.full(logps.shape, -math.log(VOCABULARY)),
            beta=BETA,
        )
        return objective, {**metrics, "reward": Mean.of(batch["rewards"])}

    greedy = sampler(
        apply, max_tokens=MAX_TOKENS, temperature=0.0, stop_tokens=(STOP,), compile=settings.compile
    )

    def measure(state: TrainState) -> dict[str, float]:
        scores = correctness(test, greedy(state.params, test, state.rng).lists())
        return {"test_reward": sum(scores) / TEST, "test_sorted": scores.count(1.0) / TEST}

    state = session.train(
        "grpo",
        TrainState.create(params, transform, seed=settings.seed),
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
    """Draw the rewards of the run, and how many prompts it sorts."""
    history = session.history("grpo")
    curves.draw(
        session.directory.path / "curves.png",
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
