"""Randomness as a function of a key: what `mlx.nn` modules draw, without a global stream.

A key is a uint32 array of shape [2], as made by `mx.random.key`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from purestep._core import checks, context, graph


@contextmanager
def scope(key: mx.array) -> Iterator[None]:
    """Make every draw without a key of its own, inside the `with` block, a function of `key`.

    `mlx.nn.Dropout` and its like draw from MLX's global stream. Within the scope that stream starts
    from `key`, eager, compiled, under `mx.grad` and under `mx.vmap`; on leaving, also by an exception,
    the stream goes on as if the block had drawn nothing.

    >>> key = mx.random.key(0)
    >>> with scope(key):
    ...     a = mx.random.uniform(shape=(3,))
    >>> with scope(key):
    ...     b = mx.random.uniform(shape=(3,))
    >>> mx.array_equal(a, b)
    array(True, dtype=bool)
    """
    check_key("rng.scope", key)
    stream = _state()[0]
    saved = copy.copy(stream)
    stream[:] = key
    try:
        with context.scene(_STREAM):
            yield
    finally:
        _state()[0][:] = saved


class _Stream:
    """The scene of a stream of random numbers: a function that is recomputed draws what it drew before."""

    def capture(self) -> context.Entry:
        now = copy.copy(_state()[0])

        @contextmanager
        def again() -> Iterator[None]:
            with scope(now):
                yield

        return again

    def inspect(self, fun: Any, args: Any, kwargs: Any) -> None:
        pass

    def settle(self, given: dict[int, mx.array]) -> None:
        pass


_STREAM = _Stream()


@contextmanager
def forbidden(caller: str, remedy: str = "pass rng=") -> Iterator[None]:
    """Refuse, on leaving, a block that drew from the global stream; the stream itself is untouched."""
    with scope(mx.random.key(0)):
        yield
        if graph.primitives(_state()[0]):
            stop = "" if caller.endswith(",") else ":"
            raise ValueError(f"{caller}{stop} random numbers were drawn without a key: {remedy}")


def fold_in(key: mx.array, number: int | mx.array) -> mx.array:
    """Return the key for one member of a family: a step, an epoch, a rank.

    A pure function of both arguments; different numbers, or different keys, give unrelated keys.

    Args:
        key: uint32 [2].
        number: an integer in [0, 2**32), or a 0-d integer array.

    >>> fold_in(mx.random.key(0), 7).shape
    (2,)
    """
    check_key("rng.fold_in", key)
    if not isinstance(number, mx.array):
        number = checks.integer("rng.fold_in", "number", number, least=0)
        if number >= 2**32:
            raise checks.error("rng.fold_in", f"number must be less than 2**32, got {number}")
    # The key is hashed before the number is mixed in: the keys of seeds 0 and 1 differ in one bit only.
    hashed = mx.random.split(key)[0]
    return mx.random.split(mx.bitwise_xor(hashed, mx.array(number).astype(mx.uint32)))[0]


def from_seed(caller: str, name: str, seed: int) -> mx.array:
    """Return the key of an integer seed in [0, 2**64).

    Raises:
        TypeError, ValueError: for anything else, with the names of the function and the argument.
    """
    seed = checks.integer(caller, name, seed, least=0)
    if seed >= 2**64:
        raise checks.error(caller, f"{name} must be less than 2**64, got {seed}")
    return mx.random.key(seed)


def _state() -> Any:
    """Return MLX's global random state, which its type stubs leave opaque: this thread's, at index 0."""
    return mx.random.state


def check_key(caller: str, key: mx.array) -> None:
    """Refuse what is not one PRNG key."""
    if not isinstance(key, mx.array) or key.dtype != mx.uint32 or key.shape != (2,):
        shown = f"{key.dtype} {key.shape}" if isinstance(key, mx.array) else repr(key)
        raise ValueError(
            f"{caller}: a key must be a uint32 array of shape (2,), from mx.random.key, got {shown}"
        )
