"""Attention of ordinary operations, whose gradient can be differentiated again.

On CUDA, MLX's fused attention has a fused gradient, and that gradient has none.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from purestep._core import hardware


class _Open(threading.local):
    def __init__(self) -> None:
        self.depth = 0


_open = _Open()
_original: Any = mx.fast.scaled_dot_product_attention
_lock = threading.Lock()
_installed = 0


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Let MLX's fused attention be `attention` within the `with` block, in this thread, on a GPU."""
    if not hardware.on_gpu():  # a CPU has no fused attention
        yield
        return
    _install(1)
    _open.depth += 1
    try:
        yield
    finally:
        _open.depth -= 1
        _install(-1)


def _dispatched(*args: Any, **kwargs: Any) -> Any:
    plain = _open.depth and kwargs.get("sinks") is None
    return (attention if plain else _original)(*args, **kwargs)


def _install(change: int) -> None:
    """Replace the attention while any thread is in a block; blocks of several threads may overlap."""
    global _installed, _original
    with _lock:
        if not _installed:
            _original = mx.fast.scaled_dot_product_attention
        _installed += change
        mx.fast.scaled_dot_product_attention = _dispatched if _installed else _original


def attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **_: Any) -> mx.array:
    """Return `softmax(scale q k + mask) v`, as `mx.fast.scaled_dot_product_attention` without sinks.

    Args:
        q: [batch, heads, queries, width].
        k: [batch, groups, keys, width]; `groups` divides `heads`.
        v: [batch, groups, keys, any width].
        scale: of the products.
        mask: `None`, `"causal"`, or an array that broadcasts to [batch, heads, queries, keys]: Boolean, true
            for what is seen, or added to the products.
    """
    batch, heads, queries, width = q.shape
    groups, keys = k.shape[1:3]
    grouped = (batch, groups, heads // groups, queries)
    scores = (q.reshape(*grouped, width) * scale) @ k[:, :, None].swapaxes(-1, -2)
    if isinstance(mask, str):
        mask = mx.tri(queries, keys, keys - queries, dtype=mx.float32).astype(mx.bool_)
    if mask is not None:
        mask = mx.broadcast_to(mask, (batch, heads, queries, keys)).reshape(*grouped, keys)
        hidden = mx.array(-mx.inf, scores.dtype)
        scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
    mixed = mx.softmax(scores, axis=-1, precise=True).astype(v.dtype) @ v[:, :, None]
    return mixed.reshape(batch, heads, queries, v.shape[-1])
