"""`map`: a source whose batches are changed by a function."""

from collections.abc import Callable, Iterator
from typing import Any

from purestep._core import checks
from purestep._core.rng import fold_in, from_seed
from purestep._core.types import Batch


class Mapped:
    """A source whose batches are changed by a function. `map` makes it."""

    def __init__(self, source: Any, function: Callable[..., Batch], seed: int | None):
        self._source, self._function, self._seed = source, function, seed
        self.on_policy = bool(getattr(source, "on_policy", False))

    def at(self, step: Any) -> Batch:
        """Return the changed batch of one step, or of one state for an on-policy source."""
        batch = self._source.at(step)
        if self._seed is None:
            return self._function(batch)
        key = from_seed("map", "seed", self._seed)
        return self._function(batch, fold_in(key, step.step if self.on_policy else step))

    def __len__(self) -> int:
        """Return the number of batches of an epoch of the source."""
        return len(self._source)


class MappedIterable:
    """An iterable whose batches are changed by a function. `map` makes it."""

    def __init__(self, source: Any, function: Callable[..., Batch]):
        self._source, self._function = source, function

    def __iter__(self) -> Iterator[Batch]:
        return (self._function(batch) for batch in self._source)


def map(source: Any, function: Callable[..., Batch], *, seed: int | None = None) -> Any:
    """Return a source whose batches are changed by a function.

    Args:
        source: an object with `at(step)` or an on-policy source; or an iterable that can be read again.
        function: `function(batch) -> batch`, a pure function; it runs in the thread that prepares batches.
        seed: in [0, 2**64). With it, the function is `function(batch, key)`, and the key is a function of the
            seed and the step: augmentation that a resumed run repeats. The source must have `at`.

    Raises:
        ValueError: if a seed is given for an iterable, or the source is an iterator.

    >>> import mlx.core as mx, purestep as ps
    >>> source = map(ps.data.Batches({"x": mx.arange(4)}, 2, shuffle=False), lambda b: {"x": b["x"] * 10})
    >>> source.at(1), len(source)
    ({'x': array([20, 30], dtype=int32)}, 2)
    """
    caller = "map"
    checks.function(caller, "function", function)
    if seed is not None:
        from_seed(caller, "seed", seed)
    if hasattr(source, "at"):
        return Mapped(source, function, seed)
    if isinstance(source, Iterator):
        raise checks.error(caller, "source must not be an iterator: use the function in the iterator itself")
    if seed is not None:
        raise checks.error(
            caller, "source must have at(step) if a seed is given: a key is a function of the step"
        )
    return MappedIterable(source, function)
