"""Gradient noise, drawn from a key in the state."""

from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, rng, scalars, tree
from purestep._core.types import Params, Tree, Updates
from purestep._transforms.core.base import GradientTransform, checked


class AddNoiseState(NamedTuple):
    """State of `add_noise`.

    Attributes:
        count: 0-d int32, the number of updates made.
        rng_key: uint32 [2], the key for the noise of the next update.
    """

    count: mx.array
    rng_key: mx.array


def add_noise(
    eta: float | mx.array, gamma: float | mx.array, key: mx.array | int | None = None
) -> GradientTransform:
    """Add normal noise of variance `eta / t ** gamma` to the gradients at update `t`, counted from 1.

    Differences from optax:

    1. `key` must be given. optax warns and uses 0.
    2. Each array's noise depends on its path, not on its position among the other arrays.

    Args:
        eta: the variance of the first update's noise, at least 0.
        gamma: how fast the variance decays, at least 0.
        key: uint32 [2], from `mx.random.key`; or an integer seed. It is stored in the state.

    Reference: Neelakantan et al., arXiv:1511.06807.

    >>> transform = add_noise(0.01, 0.55, key=0)
    >>> state = transform.init({"w": mx.zeros(3)})
    >>> updates, state = transform.update({"w": mx.ones(3)}, state)
    >>> state.count
    array(1, dtype=int32)
    """
    caller = "add_noise"
    eta = checks.number(caller, "eta", eta, least=0)
    gamma = checks.number(caller, "gamma", gamma, least=0)
    first = as_key(caller, key)

    def update(
        updates: Updates, state: AddNoiseState, params: Params | None = None
    ) -> tuple[Updates, AddNoiseState]:
        count = scalars.increment(state.count)
        deviation = mx.sqrt(eta * mx.power(count.astype(mx.float32), -gamma))
        following, now = mx.random.split(state.rng_key)
        keys = leaf_keys(now, updates)

        def noisy(path: str, update: mx.array) -> mx.array:
            noise = deviation * mx.random.normal(update.shape, key=keys[path])
            return (update + noise).astype(update.dtype)

        return tree.map_with_path(noisy, updates), AddNoiseState(count, following)

    return checked(caller, lambda params: AddNoiseState(mx.array(0, mx.int32), first), update)


def as_key(caller: str, key: Any) -> mx.array:
    """Return a PRNG key or the key of an integer seed; refuse any other value, also `None`."""
    if not isinstance(key, mx.array):
        return rng.from_seed(caller, "key", key)
    rng.check_key(caller, key)
    return key


def leaf_keys(key: mx.array, values: Tree) -> dict[str, mx.array]:
    """Return a key for each leaf, by path; the order of keys in a dict has no effect."""
    ordered = sorted(tree.paths(values))
    return dict(zip(ordered, mx.random.split(key, len(ordered)), strict=True)) if ordered else {}
