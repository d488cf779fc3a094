"""Statistics of arrays inside a forward pass: what is recorded, where, and how calls are merged."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import mlx.core as mx

from purestep._core import checks, cuda
from purestep._core.tracing.custom import custom_function
from purestep._core.tree.patterns import compile_pattern, shown_paths

Statistics = dict[str, mx.array]
Observed = dict[tuple[str, ...], Statistics]
"""Statistics by the paths of the layers that they are stacked for, along their first axis."""


class Watch(NamedTuple):
    """What to record in the layers of a module.

    Attributes:
        caller: the public name for errors.
        patterns: patterns of the paths of layers; `*` is any text.
        kind: `"outputs"` calls `record(output, input)` for each call of a layer; `input` is `None` if the
            first argument is not a floating-point array. `"attention"` calls `record(queries, keys, scale,
            mask, sinks)` for each `mx.fast.scaled_dot_product_attention` within a layer.
        record: returns what is kept of one call: arrays whose size does not depend on the batch, or little.
            It receives arrays without a gradient.
        finish: `finish(recorded)` turns what was recorded in several layers into statistics of a size that
            does not depend on the batch. It returns pairs: indices of the layers, and their statistics,
            stacked along the first axis.
        merge: merges the statistics of two calls of the same layers.
    """

    caller: str
    patterns: tuple[str, ...]
    kind: str
    record: Callable[..., Statistics]
    finish: Callable[[list[Statistics]], list[tuple[list[int], Statistics]]]
    merge: Callable[[Statistics, Statistics], Statistics]


class Recorder:
    """The statistics of one evaluation of a loss function.

    What layers record is finished for many of them together, at the latest when one of them runs again.

    Attributes:
        watches: what is recorded.
        found: the statistics of each watch.
    """

    def __init__(self, watches: Sequence[Watch]):
        self.watches = watches
        self.found: list[Observed] = [{} for _ in watches]
        self.open = True
        self._waiting: list[dict[str, Statistics]] = [{} for _ in watches]
        self._owners: list[dict[str, Any]] = [{} for _ in watches]
        self._paths: dict[str, None] = {}

    def chosen(self, paths: Sequence[str]) -> dict[str, list[int]]:
        """Return the watches of each path that at least one watch matches."""
        self._paths |= dict.fromkeys(paths)
        found: dict[str, list[int]] = {}
        for index, watch in enumerate(self.watches):
            for text in watch.patterns:
                pattern = compile_pattern(watch.caller, text)
                for path in filter(pattern.fullmatch, paths):
                    if index not in found.setdefault(path, []):
                        found[path].append(index)
        return found

    def add(self, index: int, path: str, owner: Any, recorded: Statistics) -> None:
        """Record one call of a layer; `owner` is the module that it belongs to."""
        if self._owners[index].setdefault(path, owner) is not owner:
            raise checks.error(
                self.watches[index].caller,
                f"two modules of the loss have a layer {path}; measure each in a step of its own",
            )
        if path in self._waiting[index]:
            self._finish(index)
        self._waiting[index][path] = recorded

    def _finish(self, index: int) -> None:
        watch, found = self.watches[index], self.found[index]
        waiting, self._waiting[index] = self._waiting[index], {}
        paths = list(waiting)
        for places, statistics in watch.finish([*waiting.values()]) if waiting else []:
            key = tuple(paths[place] for place in places)
            found[key] = watch.merge(found[key], statistics) if key in found else statistics

    def close(self) -> None:
        """End the recording; refuse a pattern that recorded nothing."""
        self.open = False
        for index, (watch, found, owners) in enumerate(
            zip(self.watches, self.found, self._owners, strict=True)
        ):
            self._finish(index)
            _separate(watch, found)
            for text in watch.patterns:
                pattern = compile_pattern(watch.caller, text)
                if any(map(pattern.fullmatch, owners)):
                    continue
                matched = [path for path in self._paths if pattern.fullmatch(path)]
                if not self._paths:
                    reason = (
                        "no layer: the loss function runs no module of ps.functional with the trained params"
                    )
                elif not matched:
                    reason = f"none of {shown_paths([path for path in self._paths if path])}"
                elif watch.kind == "attention":
                    reason = f"{matched[0]}, which does not call mx.fast.scaled_dot_product_attention"
                else:
                    reason = (
                        f"{matched[0]}, which the loss function does not call or which returns no "
                        "floating-point array"
                    )
                raise checks.error(watch.caller, f"pattern {text!r} matches {reason}")


def _separate(watch: Watch, found: Observed) -> None:
    """Separate, in place, the layers of groups that share a layer: each layer then has one key."""
    counted = Counter(path for paths in found for path in paths)
    for paths in [paths for paths in found if any(counted[path] > 1 for path in paths)]:
        statistics = found.pop(paths)
        for index, path in enumerate(paths):
            own = {key: value[index : index + 1] for key, value in statistics.items()}
            found[path,] = watch.merge(found[path,], own) if (path,) in found else own


def alike(recorded: Sequence[Statistics], *same: str) -> list[list[int]]:
    """Return groups of indices with arrays of the same names, shapes and dtypes.

    Args:
        recorded: what layers recorded.
        same: names of arrays that must be the same object in a group.
    """
    found: dict[Any, list[int]] = {}
    for index, each in enumerate(recorded):
        form = tuple((name, x.shape, str(x.dtype), id(x) if name in same else 0) for name, x in each.items())
        found.setdefault(form, []).append(index)
    return list(found.values())


def stacked(arrays: Sequence[mx.array]) -> mx.array:
    """Return `mx.stack` of arrays of one shape; one kernel in a compiled step on CUDA."""
    if len(arrays) > 1 and cuda.serves(arrays):
        return cuda.joined(arrays).reshape(len(arrays), *arrays[0].shape)
    return mx.stack(list(arrays))


class _Now(threading.local):
    def __init__(self) -> None:
        self.recorder: Recorder | None = None


_now = _Now()


def recording(watches: Sequence[Watch]) -> AbstractContextManager[list[Observed]]:
    """Record statistics within the `with` block, which gets a list that is filled at its end."""
    return _recording(watches) if watches else nullcontext([])


@contextmanager
def _recording(watches: Sequence[Watch]) -> Iterator[list[Observed]]:
    before, _now.recorder = _now.recorder, Recorder(watches)
    recorder = _now.recorder
    try:
        yield recorder.found
        recorder.close()
    finally:
        recorder.open = False
        _now.recorder = before


def current() -> Recorder | None:
    """Return the recorder of this thread, or `None`."""
    return _now.recorder


def computed_first(caller: str, recorder: Recorder, out: mx.array, statistics: Statistics) -> mx.array:
    """Return `out`, available only after the statistics of it: its memory is then not held for them.

    Raises:
        ValueError: under an `mx.vmap` within the loss function, where the statistics of one example would
            leave the transformation.
    """
    ordered: Any = custom_function(lambda *given: list(given[:1]))

    @ordered.vjp
    def _(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return [*cotangents, *(mx.zeros_like(array) for array in primals[1:])]

    @ordered.vmap
    def _(inputs: Any, axes: Any) -> Any:
        if recorder.open:
            raise checks.error(
                caller, "a layer runs under mx.vmap within the loss function; call it with the whole batch"
            )
        return list(inputs[:1]), list(axes[:1])

    return ordered(out, *statistics.values())[0]
