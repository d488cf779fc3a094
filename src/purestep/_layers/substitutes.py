"""MLX's functions and layers, replaced by those of this package while a module runs in `functional`.

Code of a module refers to `mx.addmm` or `mx.fast.rms_norm` by name. While a block of `substituted` is open in
a thread, these names give the functions of this package in that thread; other threads get MLX's. Activations
are replaced only as layers and as attributes: some models call `mlx.nn.silu` in a function that is compiled
with `shapeless=True` and kept for later calls, and a function with its own gradient has no shapeless form.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from purestep._core import cuda
from purestep._layers import activations, attention, parts, reduced

_ACTIVATIONS = ("gelu", "gelu_approx", "mish", "silu")
_NAMES: list[tuple[Any, str, Callable[..., Any]]] = [
    (mx, "addmm", reduced.addmm),
    (mx, "split", parts.split),
    (mx.fast, "rms_norm", reduced.rms_norm),
    (mx.fast, "layer_norm", reduced.layer_norm),
]

FUNCTIONS: dict[int, Callable[..., Any]] = {
    id(getattr(nn, name)): getattr(activations, name) for name in _ACTIVATIONS
}
"""The replacements of activations that a module holds as an attribute, by the `id` of MLX's function."""


class _Open(threading.local):
    def __init__(self) -> None:
        self.depth = 0


_open = _Open()
_lock = threading.Lock()
_installed = 0


class substituted:  # noqa: N801
    """A `with` block in which MLX's names stand for the functions of this package, in this thread."""

    def __enter__(self) -> None:
        if not _open.depth:
            _install(1)
        _open.depth += 1
        self._attention = attention.fast_on_cpu()
        self._attention.__enter__()

    def __exit__(self, *error: object) -> None:
        self._attention.__exit__()
        _open.depth -= 1
        if not _open.depth:
            _install(-1)


def _dispatched(original: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original, updated=())
    def function(*args: Any, **kwargs: Any) -> Any:
        return (own if _open.depth else original)(*args, **kwargs)

    return function


_ORIGINALS = [(home, name, getattr(home, name)) for home, name, _ in _NAMES]
_OWN = [(home, name, _dispatched(getattr(home, name), own)) for home, name, own in _NAMES]


def _install(change: int) -> None:
    global _installed
    with _lock:
        before, _installed = _installed, _installed + change
        if bool(before) != bool(_installed):
            for home, name, function in _OWN if _installed else _ORIGINALS:
                setattr(home, name, function)


class _Embedding(nn.Embedding):
    def __call__(self, x: mx.array) -> mx.array:
        return parts.lookup(self.weight, x)

    def as_linear(self, x: mx.array) -> mx.array:
        return _product(self, x) if _one_dtype(x, self) else super().as_linear(x)


class _Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        return _product(self, x) if _one_dtype(x, self) else super().__call__(x)


def _product(layer: Any, x: mx.array) -> mx.array:
    return reduced.linear(x, layer["weight"], layer.get("bias"))


def _one_dtype(x: Any, layer: Any) -> bool:
    """Tell whether a layer's product is computed with a gradient of its own: on a GPU, in a compiled step."""
    if not cuda.usable():
        return False
    arrays = [x, *(layer[name] for name in ("weight", "bias") if name in layer)]
    alike = all(isinstance(each, mx.array) and each.dtype == arrays[1].dtype for each in arrays)
    return alike and x.ndim > 1


class _GELU(nn.GELU):
    def __call__(self, x: mx.array) -> mx.array:
        if self._approx == "none":
            return activations.gelu(x)
        return activations.gelu_approx(x) if self._approx in ("precise", "tanh") else super().__call__(x)


class _SiLU(nn.SiLU):
    def __call__(self, x: mx.array) -> mx.array:
        return activations.silu(x)


class _Mish(nn.Mish):
    def __call__(self, x: mx.array) -> mx.array:
        return activations.mish(x)


def _with_affine(kind: Any) -> Any:
    """Return a subclass that applies the layer's `weight` and `bias`, or only `bias`, by `affine`."""
    names = ("weight", "bias") if kind in _NORMS else ("bias",)

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        held = {name: self[name] for name in names if name in self}
        if not reduced.is_reduced(*held.values()):
            return kind.__call__(self, x, *args, **kwargs)
        for name in held:
            dict.pop(self, name)
        try:
            out = kind.__call__(self, x, *args, **kwargs)
        finally:
            dict.update(self, held)
        return reduced.affine(out, held.get("weight"), held.get("bias"))

    return type(kind.__name__, (kind,), {"__call__": call})


_NORMS = (nn.GroupNorm, nn.InstanceNorm, nn.BatchNorm)
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
CLASSES: dict[Any, Any] = {
    nn.Embedding: _Embedding,
    nn.Linear: _Linear,
    nn.GELU: _GELU,
    nn.SiLU: _SiLU,
    nn.Mish: _Mish,
    **{kind: _with_affine(kind) for kind in (*_NORMS, *_CONVOLUTIONS)},
}
"""The replacements of layers in the copy of a module, by their exact class."""

for _kind, _own_kind in CLASSES.items():
    _own_kind.__name__ = _own_kind.__qualname__ = _kind.__name__  # errors name the layer
