"""Random numbers as a function of a key, also in `mlx.nn` modules.

A key is a uint32 array of shape [2], as made by `mx.random.key`.
"""

import copy
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any

import mlx.core as mx

from purestep._core import checks
from purestep._core.tracing import context, graph

_STREAMS: Any = mx.random.state  # MLX's; the array at index 0 is the stream of this thread
_FIRST = mx.random.key(0)


def scope(key: mx.array) -> "Scope":
    """Make every draw without a key, within the `with` block, a function of `key`.

    `mlx.nn.Dropout` and similar layers draw from the global stream. Within the block that stream starts from
    `key`: eager, compiled, under `mx.grad` and under `mx.vmap`. After the block, also after an exception, the
    stream continues as if the block had drawn nothing.

    >>> key = mx.random.key(0)
    >>> with scope(key):
    ...     a = mx.random.uniform(shape=(3,))
    >>> with scope(key):
    ...     b = mx.random.uniform(shape=(3,))
    >>> mx.array_equal(a, b)
    array(True, dtype=bool)
    """
    return Scope(key)


class Scope(ContextDecorator):
    """A block whose draws are a function of a key. `scope` makes it; a step opens four of them."""

    def __init__(self, key: mx.array):
        self._key = key
        self._saved: list[mx.array] = []

    def __enter__(self) -> None:
        check_key("rng.scope", self._key)
        stream = _STREAMS[0]
        self._saved.append(stream.__copy__())
        stream[:] = self._key
        context.begin(_STREAM)

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> None:
        context.end()
        _STREAMS[0][:] = self._saved.pop()


class _Stream:
    """The scene of the random stream: a recomputed function draws the same numbers as in its first run."""

    def capture(self) -> context.Entry:
        now = copy.copy(_STREAMS[0])

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


def forbidden(caller: str, remedy: str = "pass rng=") -> Scope:
    """Raise an error after a block that drew from the global stream. The stream itself is unchanged."""
    return _Forbidden(caller, remedy)


class _Forbidden(Scope):
    def __init__(self, caller: str, remedy: str):
        super().__init__(_FIRST)
        self._caller, self._remedy = caller, remedy

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> None:
        drawn = kind is None and graph.primitives(_STREAMS[0])
        super().__exit__()
        if drawn:
            stop = "" if self._caller.endswith(",") else ":"
            raise ValueError(f"{self._caller}{stop} random numbers were drawn without a key: {self._remedy}")


def fold_in(key: mx.array, number: int | mx.array) -> mx.array:
    """Return a new key from a key and a number, such as a step, an epoch or a rank.

    It is a pure function of both arguments. Different numbers or different keys give unrelated keys.

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
        number = mx.array(number, mx.uint32)
    # The keys of seeds 0 and 1 differ in one bit only, so the key is hashed before the number is mixed in.
    hashed = mx.random.split(key)[0]
    return mx.random.split(mx.bitwise_xor(hashed, number.astype(mx.uint32)))[0]


def from_seed(caller: str, name: str, seed: int) -> mx.array:
    """Return the key of an integer seed in [0, 2**64).

    Raises:
        TypeError, ValueError: for any other seed, with the names of the function and the argument.
    """
    seed = checks.integer(caller, name, seed, least=0)
    if seed >= 2**64:
        raise checks.error(caller, f"{name} must be less than 2**64, got {seed}")
    return mx.random.key(seed)


def check_key(caller: str, key: mx.array) -> None:
    """Refuse a value that is not a single key."""
    if not isinstance(key, mx.array) or key.dtype != mx.uint32 or key.shape != (2,):
        shown = f"{key.dtype} {key.shape}" if isinstance(key, mx.array) else repr(key)
        raise ValueError(
            f"{caller}: a key must be a uint32 array of shape (2,), from mx.random.key, got {shown}"
        )
