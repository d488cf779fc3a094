"""`map`: a source whose batches are changed by a function."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx

from purestep._core import checks, tree
from purestep._core.rng import fold_in, from_seed
from purestep._core.types import Batch
from purestep._data.core.checking import step_of
from purestep._data.core.ranks import whole_of


class Mapped:
    """A source whose batches are changed by a function. `map` makes it."""

    def __init__(self, source: Any, function: Callable[..., Batch], seed: int | None):
        self._source, self._function, self._seed = source, function, seed
        self.on_policy = bool(getattr(source, "on_policy", False))

    def at(self, step: Any) -> Batch:
        """Return the changed batch of one step, or of one state for an on-policy source."""
        if not self.on_policy:
            step = step_of("map", step)
        batch = self._source.at(step)
        if self._seed is None:
            return _applied(self._function, batch)
        key = from_seed("map", "seed", self._seed)
        return _applied(self._function, batch, fold_in(key, step.step if self.on_policy else step))

    @property
    def whole(self) -> "Mapped":
        """The source of the rows of all processes."""
        whole = whole_of(self._source)
        return self if whole is self._source else Mapped(whole, self._function, self._seed)

    def __len__(self) -> int:
        """Return the number of batches of an epoch of the source."""
        return len(self._source)


class MappedIterable:
    """An iterable whose batches are changed by a function. `map` makes it."""

    def __init__(self, source: Any, function: Callable[..., Batch]):
        self._source, self._function = source, function

    def __iter__(self) -> Iterator[Batch]:
        return (_applied(self._function, batch) for batch in self._source)


class MappedStream(MappedIterable):
    """A mapped iterable whose source has a position. `map` makes it."""

    def get_state(self) -> Any:
        """Return the position of the source."""
        return self._source.get_state()

    def set_state(self, state: Any) -> None:
        """Continue the source at a position."""
        self._source.set_state(state)


def map(source: Any, function: Callable[..., Batch], *, seed: int | None = None) -> Any:
    """Return a source whose batches are changed by a function.

    Args:
        source: an object with `at(step)` or an on-policy source; or an iterable that can be read again.
        function: `function(batch) -> batch`, a pure function; it runs in the thread that prepares batches. It
            gets a copy: if it changes its batch in place, the batch of the source is unchanged.
        seed: in [0, 2**64). With it, the function is `function(batch, key)`, and the key is a function of the
            seed and the step: augmentation that a resumed run repeats. The source must have `at`.

    Raises:
        ValueError: if a seed is given for an iterable, or the source is an iterator.
        TypeError: if the source is one batch or cannot be iterated. Drawing a batch raises it if the function
            returns `None`.

    >>> import mlx.core as mx, purestep as ps
    >>> source = map(ps.data.Batches({"x": mx.arange(4)}, 2, shuffle=False), lambda b: {"x": b["x"] * 10})
    >>> source.at(1), len(source)
    ({'x': array([20, 30], dtype=int32)}, 2)
    """
    caller = "map"
    checks.function(caller, "function", function)
    if seed is not None:
        from_seed(caller, "seed", seed)
    if isinstance(source, (dict, mx.array, str, bytes)):
        found = type(source).__name__
        raise TypeError(f"{caller}: source must be an iterable of batches, got {found}; write [batch]")
    if hasattr(source, "at"):
        return Mapped(source, function, seed)
    if not isinstance(source, Iterable):
        found = type(source).__name__
        raise TypeError(f"{caller}: source must be iterable or have at(step), got {found}")
    if isinstance(source, Iterator):
        raise checks.error(caller, "source must not be an iterator: use the function in the iterator itself")
    if seed is not None:
        raise checks.error(
            caller, "source must have at(step) if a seed is given: a key is a function of the step"
        )
    has_position = hasattr(source, "get_state") and hasattr(source, "set_state")
    return (MappedStream if has_position else MappedIterable)(source, function)


def _applied(function: Callable[..., Batch], batch: Any, *keys: mx.array) -> Batch:
    changed = function(_copied(batch), *keys)
    if changed is None:
        raise TypeError("map: function must return a batch, got None")
    return changed


def _copied(batch: Any) -> Any:
    """Return a batch that may be changed in place. Copies of MLX arrays share their memory until then."""
    if isinstance(batch, dict):
        return {name: _copied(child) for name, child in batch.items()}
    if tree.is_namedtuple(batch):
        return type(batch)(*[_copied(child) for child in batch])
    if isinstance(batch, (list, tuple)):
        return type(batch)(_copied(child) for child in batch)
    return copy.copy(batch) if hasattr(batch, "shape") else batch
