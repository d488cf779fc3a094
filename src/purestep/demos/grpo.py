"""Teach an untrained transformer to sort digits with GRPO, from rewards alone."""

import argparse
import math
import statistics
from typing import Any

import mlx.core as mx

import purestep as ps
from purestep._loop.callbacks.pictures import curves
from purestep._loop.callbacks.pictures.curves import Curve, Panel
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
from purestep.demos.shared import running, session
from purestep.demos.shared.building import seeded
from purestep.demos.shared.session import Session, Settings

STEPS = 800
TRAIN, TEST = 4096, 256  # prompts
GROUP_SIZE, BATCH_SIZE = 8, 256
MAX_TOKENS = DIGITS + 1
TEMPERATURE = 1.0
PEAK_RATE = 1e-3
BETA = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    running.add_shared_arguments(parser, "grpo", STEPS, "all that is random")


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    return session.conduct(options, "grpo", Settings(STEPS), learn_to_sort)


def learn_to_sort(session: Session) -> dict[str, Any]:
    """Train from random weights; return the figures."""
    settings = session.settings
    train, test = prompts(TRAIN, TEST, settings.seed)
    apply, params = seeded(Decoder, settings.seed)
    transform = muon(settings.steps)
    sampling: dict[str, Any] = {
        "max_tokens": MAX_TOKENS, "stop_tokens": (STOP,), "compile": settings.compile,
    }  # fmt: skip
    # A batch has 32 prompts with 8 completions each, drawn with the current parameters and scored.
    source = ps.data.rollout(
        apply, train, correctness, group_size=GROUP_SIZE, batch_size=BATCH_SIZE, temperature=TEMPERATURE,
        **sampling,
    )  # fmt: skip
    greedy = ps.data.sampler(apply, temperature=0.0, **sampling)

    def loss_fn(
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
        return objective, {"reward": ps.Mean.of(batch["rewards"]), **metrics}

    def measure(state: ps.TrainState) -> dict[str, float]:
        scores = correctness(test, greedy(state.params, test, state.rng).lists())
        return {"reward": sum(scores) / TEST, "sorted": scores.count(1.0) / TEST}

    first = ps.TrainState.create(params, transform, seed=settings.seed)
    result = session.fit(
        session.step(loss_fn, transform), first, source, evaluate=[ps.Evaluation(measure, name="test")]
    )
    history = result.history
    figures = {
        "chance_reward": source.at(first)["rewards"].mean().item(),
        "reward": statistics.fmean(history.column("reward")[1][-2:]),
        "test_reward": history.last("test_reward"),
        "test_sorted": history.last("test_sorted"),
        "steps": settings.steps,
    }
    picture(session, list(history), figures)
    written = greedy(result.state.params, test[:5], result.state.rng).lists()
    for prompt, completion in zip(test[:5], written, strict=True):
        verdict = "" if completion == answer(prompt) else "  (wrong)"
        session.say(f"{_written(prompt[:-1])} = {_written(completion)}{verdict}")
    return figures


def muon(steps: int) -> ps.GradientTransform:
    """Return Muon for the matrices of the blocks and AdamW for the rest."""
    rate = ps.schedules.warmup_cosine_decay(0.0, PEAK_RATE, steps // 40, steps, end_value=0.1 * PEAK_RATE)
    return ps.chain(
        ps.transforms.clip_by_global_norm(1.0),
        ps.optimizers.muon(
            rate,
            consistent_rms=0.2,
            matrices=lambda path, leaf: leaf.ndim == 2 and path.startswith("blocks"),
        ),
    )


def picture(session: Session, rows: list[dict[str, float]], figures: dict[str, Any]) -> None:
    """Draw the rewards and the share of prompts that are sorted."""
    rewards = Panel(
        "reward: mean share of places that are right",
        [
            Curve("training, sampled", rows, "reward", curves.BLUE, noisy=True, each="rows"),
            Curve("unseen prompts, greedy", rows, "test_reward", curves.ORANGE),
        ],
        levels={"before training, sampled": figures["chance_reward"]},
        limits=(0, 1.02),
    )
    right = Panel(
        "share of unseen prompts sorted (greedy)",
        [Curve("sorted", rows, "test_sorted", curves.GREEN)],
        limits=(-0.02, 1.02),
    )
    session.draw(
        [rewards, right],
        f"GRPO teaches a transformer to sort {DIGITS} digits: "
        f"reward {figures['chance_reward']:.2f} to {figures['reward']:.2f}",
    )


def _written(tokens: list[int]) -> str:
    return " ".join("." if token == STOP else "=" if token == EQUALS else str(token) for token in tokens)
