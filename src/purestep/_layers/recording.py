"""Recording in the layers of a module while it runs, without changing it."""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import tree
from purestep._layers import observing
from purestep._layers.calling import with_call
from purestep._layers.observing import Recorder

_original: Any = mx.fast.scaled_dot_product_attention
_lock = threading.Lock()
_installed = 0


class _Layers:
    """The layers of one running module that are recorded."""

    def __init__(self, recorder: Recorder, owner: Any, entries: dict[int, tuple[str, list[int]]]):
        self.recorder, self.owner, self.entries = recorder, owner, entries
        self.within: list[tuple[str, list[int]]] = []  # the recorded layers that run now
        self._masks: dict[int, tuple[mx.array, mx.array]] = {}  # by the `id` of the first, without a gradient

    def outputs(self, entry: tuple[str, list[int]], out: mx.array, given: mx.array | None) -> mx.array:
        """Record an output of a layer; return it, available only after that."""
        for index in entry[1]:
            if self.recorder.watches[index].kind == "outputs":
                out = self._record(index, entry[0], out, _stopped(out, given))
        return out

    def attention(self, out: mx.array, q: mx.array, k: mx.array, scale: float, mask: Any, sinks: Any) -> Any:
        """Record for each watch in the innermost of its layers that run now; return `out`, as `outputs`."""
        if isinstance(mask, mx.array):
            # One object for one mask, so that the layers with the same mask are measured together.
            mask = self._masks.setdefault(id(mask), (mask, mx.stop_gradient(mask)))[1]
        recorded: set[int] = set()
        for path, indices in reversed(self.within):
            for index in indices:
                if self.recorder.watches[index].kind == "attention" and index not in recorded:
                    recorded.add(index)
                    out = self._record(index, path, out, (*_stopped(q, k), scale, mask, *_stopped(sinks)))
        return out

    def _record(self, index: int, path: str, out: mx.array, given: Sequence[Any]) -> mx.array:
        watch = self.recorder.watches[index]
        recorded = watch.record(*given)
        self.recorder.add(index, path, self.owner, recorded)
        return observing.computed_first(watch.caller, self.recorder, out, recorded)


def _stopped(*given: Any) -> list[Any]:
    return [mx.stop_gradient(x) if isinstance(x, mx.array) else x for x in given]


class _Now(threading.local):
    def __init__(self) -> None:
        self.layers: _Layers | None = None


_now = _Now()


@contextmanager
def watched(owner: Any, named: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
    """Record in the layers of a module that runs within the `with` block, if the current step wants it."""
    recorder = observing.current()
    if recorder is None:
        yield
        return
    chosen = recorder.chosen([path for path, _ in named])
    layers = [(path, layer) for path, layer in named if path in chosen]
    entries = {id(layer): (path, chosen[path]) for path, layer in layers}
    before, _now.layers = _now.layers, _Layers(recorder, owner, entries)
    kinds = [(layer, type(layer)) for _, layer in layers]
    _install(1)
    try:
        for layer, kind in kinds:
            layer.__class__ = _recorded(kind)
        yield
    finally:
        for layer, kind in kinds:
            layer.__class__ = kind
        _install(-1)
        _now.layers = before


@contextmanager
def unwatched() -> Iterator[None]:
    """Record nothing within the `with` block, in this thread."""
    before, _now.layers = _now.layers, None
    try:
        yield
    finally:
        _now.layers = before


@functools.cache
def _recorded(kind: type) -> type:
    """Return the subclass of a layer's class whose calls are recorded."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        layers = _now.layers
        entry = None if layers is None else layers.entries.get(id(self))
        if layers is None or entry is None:
            return kind.__call__(self, *args, **kwargs)  # type: ignore[operator]
        layers.within.append(entry)
        try:
            out = kind.__call__(self, *args, **kwargs)  # type: ignore[operator]
        finally:
            layers.within.pop()
        first = args[0] if args else None
        given = first if isinstance(first, mx.array) and mx.issubdtype(first.dtype, mx.floating) else None
        leaves = tree.leaves(out)
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating):
                leaves[index] = layers.outputs(entry, leaf, given)
                return tree.unflatten(out, leaves)
        return out

    return with_call(kind, call)


def _attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: Any = None,
    sinks: mx.array | None = None,
    **options: Any,
) -> mx.array:
    out = _original(q, k, v, scale=scale, mask=mask, sinks=sinks, **options)
    layers = _now.layers
    return out if layers is None else layers.attention(out, q, k, scale, mask, sinks)


def _install(change: int) -> None:
    """Replace the attention while any thread records; other threads get the result of the one before."""
    global _installed, _original
    with _lock:
        before, _installed = _installed, _installed + change
        now: Any = mx.fast.scaled_dot_product_attention
        if not before and now is not _attention:
            _original = now  # of MLX, of a capture of the graph, or of a CPU
            mx.fast.scaled_dot_product_attention = _attention  # type: ignore[assignment]
        elif not _installed and now is _attention:
            mx.fast.scaled_dot_product_attention = _original
