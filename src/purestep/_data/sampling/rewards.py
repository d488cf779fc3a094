"""Rewards and advantages of sampled completions, checked."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx

from purestep._core import checks

RewardFn: TypeAlias = Callable[..., Sequence[float]]
AdvantageFn: TypeAlias = Callable[[mx.array, int], mx.array]

_LARGEST = 2.0**127  # rewards must be smaller than this: their sums and differences stay finite in float32


def checked_rewards(caller: str, rewards: Any, count: int) -> mx.array:
    """Return what a reward function returned as float32 [count]; raise an error unless all are finite."""
    if isinstance(rewards, mx.array) or hasattr(rewards, "tolist"):
        rewards = rewards.tolist()
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise TypeError(
            f"{caller}: reward_fn must return a sequence of numbers, got a {type(rewards).__name__}"
        )
    if len(rewards) != count:
        raise checks.error(
            caller, f"reward_fn must return {count} rewards, one for each completion, got {len(rewards)}"
        )
    rewards = [reward.tolist() if hasattr(reward, "tolist") else reward for reward in rewards]
    for number, reward in enumerate(rewards):
        if not checks.is_number(reward):
            raise TypeError(
                f"{caller}: reward_fn must return numbers, got {reward!r} for completion {number}"
            )
        if not abs(reward) < _LARGEST:  # false for NaN too
            raise checks.error(
                caller, f"reward_fn must return finite rewards, got {reward} for completion {number}"
            )
    return mx.array([float(reward) for reward in rewards], mx.float32)


def checked_advantages(caller: str, advantages: Any, rewards: mx.array) -> mx.array:
    """Return what an advantage function returned; raise an error unless it has the shape of the rewards."""
    if not isinstance(advantages, mx.array):
        raise TypeError(f"{caller}: advantage_fn must return an array, got {type(advantages).__name__}")
    if advantages.shape != rewards.shape:
        raise checks.error(caller, f"advantage_fn must return shape {rewards.shape}, got {advantages.shape}")
    return advantages
